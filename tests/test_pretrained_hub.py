"""Models from a hub: what is fetched, what is cached, what is said when it cannot be had.

The hub's library reads its settings when it is imported, so each test asks in a new process.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hub_server import COMMIT, serving

from diptych.errors import CheckpointError, RequestError
from diptych.pretrained.hub import ALIASES, Repository, fetch, repository_of, wanted_files

ASK = """
import json, sys
from diptych.errors import DiptychError
from diptych.pretrained.hub import fetch, repository_of
try:
    folder, notes = fetch(repository_of(sys.argv[1]), offline="offline" in sys.argv)
    files = sorted(path.name for path in folder.iterdir())
    said = {"folder": str(folder), "notes": notes, "files": files}
except DiptychError as error:
    said = {"error": str(error), "kind": type(error).__name__}
print(json.dumps(said))
"""

OPEN_CLIP = {
    "open_clip_config.json": b'{"model_cfg": 1}',
    "open_clip_model.safetensors": b"weights",
    "open_clip_pytorch_model.bin": b"the same again",
    "model.safetensors": b"and again",
    "config.json": b'{"model_type": 2}',
    "tokenizer.json": b'{"model": 3}',
    "README.md": b"words",
}
TRANSFORMERS = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"the same again",
    "flax_model.msgpack": b"and again",
    "merges.txt": b"a b",
    "spiece.model": b"pieces",
    "onnx/model.onnx": b"and again",
}


@pytest.fixture
def hub():
    with serving() as running:
        running.repositories = {"org/clip": OPEN_CLIP, "org/siglip": TRANSFORMERS}
        yield running


@pytest.fixture
def ask(tmp_path, hub):
    def asked(spec, *arguments, endpoint=None, **environment):
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint or hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **environment,
        }
        command = [sys.executable, "-c", ASK, spec, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    return asked


@contextmanager
def nowhere():
    """An address at which nothing listens."""
    with serving() as gone:
        address = gone.url
    yield address


def test_only_the_files_of_one_layout_are_fetched(ask, hub):
    said = ask("hf:org/clip")
    wanted = ["config.json", "open_clip_config.json", "open_clip_model.safetensors"]
    assert said["files"] == [*wanted, "tokenizer.json"]
    assert sorted(hub.fetched) == said["files"]


def test_all_pieces_of_divided_weights_are_fetched_and_no_other_format(ask, hub):
    said = ask("hf:org/siglip")
    assert said["files"] == sorted(
        name for name in TRANSFORMERS if name.endswith((".safetensors", ".json", ".txt", ".model"))
    )


def test_a_fetched_model_is_cached_and_found_without_network(ask, hub):
    first = ask("hf:org/clip@v1")
    assert first["folder"].endswith(COMMIT)
    before = list(hub.fetched)
    assert ask("hf:org/clip@v1")["folder"] == first["folder"]
    assert hub.fetched == before
    offline = ask("hf:org/clip@v1", "offline")
    assert (offline["folder"], offline["notes"]) == (first["folder"], [])
    by_variable = ask("hf:org/clip@v1", HF_HUB_OFFLINE="1")
    assert by_variable["folder"] == first["folder"]
    with nowhere() as address:
        said = ask("hf:org/clip@v1", endpoint=address)
    assert said["folder"] == first["folder"]
    assert "cannot be fetched from" in said["notes"][0]
    assert said["notes"][0].endswith("Using the copy in the cache.")


def test_what_is_neither_cached_nor_reachable_is_refused_with_what_to_do(ask):
    said = ask("hf:org/clip", "offline")
    assert said["kind"] == "CheckpointError"
    assert "hf:org/clip is not in the cache, and --offline was asked for" in said["error"]
    said = ask("hf:org/clip", TRANSFORMERS_OFFLINE="1")
    assert (
        "hf:org/clip is not in the cache, and the variable TRANSFORMERS_OFFLINE is set, so the hub "
        "was not asked. Unset it." in said["error"]
    )
    with nowhere() as address:
        said = ask("hf:org/clip", endpoint=address)
    assert said["kind"] == "CheckpointError"
    assert f"cannot be fetched from {address}" in said["error"]
    assert "Connect to the network once, or copy the model's folder here" in said["error"]


def test_wrong_names_are_refused_with_what_is_so(ask, hub):
    hub.repositories["org/closed"] = OPEN_CLIP
    hub.repositories["org/words"] = {"README.md": b"words"}
    hub.gated.add("org/closed")
    answers = {
        "hf:org/nothing": ("RequestError", "the hub has no hf:org/nothing, or it is private"),
        "hf:org/clip@v9": ("RequestError", "org/clip has no revision 'v9'"),
        "hf:org/closed": ("RequestError", "may be read only by who accepted its terms"),
        "hf:org/words": (
            "CheckpointError",
            "hf:org/words: among its files (README.md) is no model",
        ),
        "hf:org/a//b": ("RequestError", "hf:org/a//b is no name of a repository"),
    }
    for spec, (kind, text) in answers.items():
        said = ask(spec)
        assert said.get("kind") == kind, said
        assert text in said["error"]


def test_a_spec_is_a_repository_a_short_name_or_a_path():
    assert repository_of("hf:org/name") == Repository("org/name", None)
    assert repository_of("hf:org/name@v1.0") == Repository("org/name", "v1.0")
    assert repository_of("clip-b32") == Repository(ALIASES["clip-b32"], None)
    for path in ("runs/emoji", "/tmp/hf", "org/name", "C:/models"):
        assert repository_of(path) is None


def test_our_own_layout_goes_before_the_others():
    files = ["contract.json", "config.json", "model.safetensors", "tokenizer.json", *OPEN_CLIP]
    assert wanted_files(files) == [
        *("config.json", "contract.json", "model.safetensors", "tokenizer.json"),
    ]


def test_a_stray_config_of_open_clip_is_not_fetched():
    files = ["config.json", "model.safetensors", "open_clip_config.json", "tokenizer.json"]
    assert wanted_files(files) == ["config.json", "model.safetensors", "tokenizer.json"]
    del files[0]
    assert wanted_files(files) == files


@pytest.mark.parametrize("spec", ["hf:a/b/c", "hf:../../../etc", "hf:org/a//b", "hf:" + "x" * 500])
def test_a_name_that_is_none_is_refused_offline_too(spec):
    with pytest.raises(RequestError, match=r"is no name of a repository. Write hf:org/name"):
        fetch(repository_of(spec), offline=True)


def test_a_config_without_weights_is_no_model():
    with pytest.raises(CheckpointError, match=r"among its files \(config.json\) is no model"):
        wanted_files(["config.json"])
