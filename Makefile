# Two commands set everything up on a fresh machine: `make demo` and `make test`.
# .venv        the core (demo, tests). torch 2.13.0 is the CPU build where the index offers one.
# .venv-peers  the libraries we measure ourselves against (parity tests, benchmarks). They need
#              torchvision, and so the torch that it was built for.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_PEERS ?= torch==2.15.0 torchvision
DIPTYCH_DATA ?= ../shared/data
export DIPTYCH_DATA
PIP = -m pip install -qq --disable-pip-version-check

.PHONY: demo test test-core test-peers check format bench real parity slow clean help

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/.ready: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) "$(TORCH)"
	.venv/bin/python $(PIP) -c constraints.txt -e ".[dev]"
	touch $@

.venv-peers/.ready: pyproject.toml constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python $(PIP) $(TORCH_PEERS)
	.venv-peers/bin/python $(PIP) -c constraints.txt -e ".[dev,peers]"
	touch $@

demo: .venv/.ready        ## train on generated scenes, judge, search, write demo/report.html
	.venv/bin/diptych demo --out demo

test: test-core test-peers ## every test of CI

test-core: .venv/.ready
	.venv/bin/python -m pytest -m "not slow and not peers and not real"

test-peers: .venv-peers/.ready
	.venv-peers/bin/python -m pytest -m "peers and not slow"

check: .venv/.ready        ## format, lint, types, tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(MAKE) test

format: .venv/.ready       ## rewrite the files in the house format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/.ready .venv-peers/.ready ## benchmarks against the peers, in one run each
	.venv-peers/bin/python benchmarks/losses.py
	.venv-peers/bin/python benchmarks/train_step.py
	.venv-peers/bin/python benchmarks/search.py
	.venv-peers/bin/python benchmarks/load.py
	.venv-peers/bin/python benchmarks/quality_per_minute.py
	.venv/bin/python benchmarks/startup.py
	.venv/bin/python benchmarks/stateful.py

real: .venv/.ready         ## train and judge on the real data of DIPTYCH_DATA
	.venv/bin/python -m pytest -m real tests/test_real_data.py
	.venv/bin/python experiments/real.py
	.venv/bin/python experiments/finetune.py
	.venv/bin/python experiments/change.py

parity: .venv-peers/.ready   ## our numbers against the original libraries', written to docs/parity.md
	.venv-peers/bin/python experiments/parity.py

slow: .venv/.ready .venv-peers/.ready   ## tests too long for CI
	.venv/bin/python -m pytest -s -m "slow and not peers and not real"
	.venv-peers/bin/python -m pytest -s -m "slow and peers"

clean:           ## remove what these targets made
	rm -rf .venv .venv-peers demo runs build dist
