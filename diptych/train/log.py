"""What a run says: log.jsonl (the record), a live line for people, warnings with advice.

log.jsonl has one JSON object per line, {"kind": "step", …} or {"kind": "validation", …}. A
resumed run first cuts the lines that came after its checkpoint, so the file reads as if the run
had never stopped. Fields that name a time (`TIMES`) differ between runs, nothing else does.
"""

import json
import sys
import time
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

from diptych.files import refused, write_text

TIMES = ("time_s", "pairs_per_s", "wait_share")
"""Fields of log.jsonl that depend on the clock."""


CUT_SHARE, CUT_PAIRS = 0.01, 100
"""Captions that lost their end are worth a warning above this share of this many pairs or more."""


class RunLog:
    """log.jsonl of one run."""

    def __init__(self, path: Path) -> None:
        """Of this file, which need not be there yet."""
        self.path = path

    def cut(self, step: int) -> None:
        """Keep the lines up to this step; a half-written last line goes too."""
        if self.path.exists():
            rows = [row for row in read_log(self.path) if row["step"] <= step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def add(self, row: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            StorageError: The disk refused.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise refused(self.path, error) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # cut short by a kill: everything after it is void
    return rows


class Live:
    """One line on standard error that tells how the run goes.

    On a terminal it is rewritten in place; elsewhere a line is printed every so often. A stream
    that takes nothing any more (a closed pipe, a full disk) ends the talk and not the run.
    """

    def __init__(self, stream: TextIO | TextIOBase | None = None, *, every_s: float = 15.0) -> None:
        """Nothing is shown yet.

        Args:
            stream: Where to; None is standard error.
            every_s: Seconds between two lines where there is no terminal.
        """
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every_s = every_s
        self._last = -1e9
        self._heard = True

    def show(self, text: str, *, last: bool = False) -> None:
        """Say how it goes."""
        now = time.monotonic()
        if self.terminal:
            self._write(f"\r\x1b[2K{text}" + ("\n" if last else ""))
        elif last or now - self._last >= self.every_s:
            self._last = now
            self._write(text + "\n")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._write(("\r\x1b[2K" if self.terminal else "") + text + "\n")

    def _write(self, text: str) -> None:
        """Write at once, until the stream fails for the first time."""
        if self._heard:
            try:
                self.stream.write(text)
                self.stream.flush()
            except (OSError, ValueError):  # a closed stream raises the latter
                self._heard = False


def live_text(row: dict[str, Any], progress: float, left_s: float) -> str:
    """The live line of a step row."""
    minutes, seconds = divmod(max(0, round(left_s)), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return (
        f"step {row['step']:,} ({progress:.0%}) · loss {row['loss']:.3f} · "
        f"{row['pairs_per_s']:,.0f} pairs/s · {left} left · "
        f"{row['wait_share']:.0%} waiting for data"
    )


class Watch:
    """Looks at the log rows as they come, and says what a person should know, once each."""

    def __init__(self, chance: float | None, context: int, *, inherited: bool = False) -> None:
        """What to compare with.

        Args:
            chance: Loss of a model that cannot tell pairs apart; None where there is no such loss.
            context: Tokens that the text tower reads.
            inherited: Whether the run begins with a trained model, whose context stays.
        """
        self.chance, self.context, self.inherited = chance, context, inherited
        self._at_chance = 0
        self._waiting = 0
        self._said: set[str] = set()

    def look(self, row: dict[str, Any], progress: float) -> list[str]:
        """New warnings, each with advice."""
        chance = self.chance
        near = chance is not None and abs(row["loss"] - chance) < 0.02 * chance
        self._at_chance = self._at_chance + 1 if near and progress > 0.1 else 0
        self._waiting = self._waiting + 1 if row["wait_share"] > 0.5 else 0
        warnings = []
        if self._at_chance >= 5 and "chance" not in self._said:
            self._said.add("chance")
            warnings.append(
                f"the loss sits at {row['loss']:.3f}, and a model that cannot tell pairs apart "
                f"has {chance:.3f}. Check that captions belong to their pictures; "
                "try a lower rate (--set optimizer.lr=3e-4) or a longer warm-up "
                "(--set optimizer.warmup=0.2)."
            )
        if self._waiting >= 5 and "waiting" not in self._said:
            self._said.add("waiting")
            warnings.append(
                f"{row['wait_share']:.0%} of the time goes into waiting for data. "
                "Try more workers (--set data.workers=4) or smaller pictures in the source."
            )
        many = row["pairs"] >= CUT_PAIRS and row["cut"] > CUT_SHARE * row["pairs"]
        if many and "cut" not in self._said:
            self._said.add("cut")
            remedy = (
                "Shorter captions, or a model that reads more (--from), would lose less."
                if self.inherited
                else "To keep more of them, start again in another --out with "
                f"--set model.text.context={2 * self.context}."
            )
            warnings.append(f"{cut_text(row['cut'], row['pairs'], self.context)}. {remedy}")
        return warnings


def cut_text(cut: int, pairs: int, context: int) -> str:
    """How many captions lost their end."""
    return (
        f"{cut:,} of {pairs:,} captions ({cut / pairs:.1%}) were longer than the {context} tokens "
        "the model reads and lost their end"
    )
