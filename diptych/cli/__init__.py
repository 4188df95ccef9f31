"""The command line: verbs only. Each command reads its options and calls one function.

One file per group of commands; what they share is in `common.py`. Nothing here imports torch
before a command runs, so that `--help` is quick.
"""

import json
import os
import sys

import typer

from diptych.cli.about import doctor, recipes
from diptych.cli.classify import classify
from diptych.cli.common import wants_json
from diptych.cli.compare import compare
from diptych.cli.convert import convert
from diptych.cli.demo import demo
from diptych.cli.evaluate import evaluate
from diptych.cli.index import index
from diptych.cli.search import search
from diptych.cli.train import train
from diptych.cli.use import embed
from diptych.errors import DiptychError

app = typer.Typer(
    name="diptych",
    help="Models that look at two panels at once: an image and its words, or before and after.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (
    *(demo, train, evaluate, embed, index, search, classify, compare),
    *(convert, recipes, doctor),
):
    app.command()(command)

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""The parser's error for a request it cannot read; typer does not export its name."""


def main() -> None:
    """Run a command and end with its exit code: 0, 2 for a wrong request, 1 for what failed.

    Threads that wait give the core away instead of spinning: three times the training speed when
    something else runs on the same cores (docs/decisions.md). It must be said before torch loads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; gives its exit code. Errors become one line on standard error."""
    try:
        code = app(arguments or ["--help"], standalone_mode=False, prog_name="diptych")
        return code if isinstance(code, int) else 0
    except DiptychError as error:
        return _fail(str(error), error.exit_code, arguments)
    except UsageError as error:
        return _fail(_usage(error), 2, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", 1, arguments)
    except Exception as error:
        if os.environ.get("DIPTYCH_DEBUG"):
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _fail(
            f"unexpected {what}. Set DIPTYCH_DEBUG=1 to see where, and report it.", 1, arguments
        )


def _usage(error: Exception) -> str:
    """What the parser could not read, and what to do about it."""
    said: str = error.format_message()  # type: ignore[attr-defined]
    context = error.ctx  # type: ignore[attr-defined]
    remedy = f"See {context.command_path if context else 'diptych'} --help."
    if "unexpected extra argument" in said:
        remedy = f'Put the words in quotes, such as "a red square". {remedy}'
    return f"{said.rstrip('.?')}. {remedy}"


def _fail(message: str, code: int, arguments: list[str]) -> int:
    """Say what went wrong, on one line; with --json also as an object on standard output."""
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    if wants_json(arguments):
        print(json.dumps({"error": line, "exit_code": code}))
    return code
