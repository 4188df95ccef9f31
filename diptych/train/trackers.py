"""Run trackers: TensorBoard, trackio and W&B behind the same three calls.

log.jsonl (`log.py`) stays the record; trackers get its numbers for people to look at. Only the
first process tracks. A tracker that fails is left out with one warning: it never stops training.
"""

import importlib
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

from diptych.errors import RequestError
from diptych.files import write_text
from diptych.train.run import TrackerName, dotted


@runtime_checkable  # beartype checks it in tests
class Tracker(Protocol):
    """Follows one run."""

    name: str
    """What people call it."""

    def start(self, settings: dict[str, Any], step: int) -> None:
        """A run begins after `step` steps; what is known of later steps is void."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """What was measured after `step` steps."""

    def finish(self) -> None:
        """The run ended, well or not."""


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir RUN/tensorboard`.

    Written at once, without the thread of torch's SummaryWriter: what was logged before a kill is
    on disk, and a full disk is an error here instead of a traceback from a thread.
    """

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Below the run's `folder`; nothing is written yet."""
        self._protos = _package("tensorboard.compat.proto.event_pb2")
        self._summaries = _package("tensorboard.compat.proto.summary_pb2")
        self._records = _package("tensorboard.summary.writer.record_writer")
        self._settings_text = _package("torch.utils.tensorboard.summary").text
        self._folder = folder / "tensorboard"

    def start(self, settings: dict[str, Any], step: int) -> None:
        """A new file; TensorBoard hides what earlier files say of later steps."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names
        self._path = self._folder / f"events.out.tfevents.{time.time_ns()}"
        self._add(0, file_version="brain.Event:2")
        session = self._protos.SessionLog
        self._add(step + 1, session_log=session(status=session.START))
        lines = [f"    {name} = {value!r}" for name, value in dotted(settings).items()]
        self._add(step, summary=self._settings_text("settings", "\n".join(lines)))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """A point of each curve."""
        point = self._summaries.Summary.Value
        points = [point(tag=name, simple_value=value) for name, value in numbers.items()]
        self._add(step, summary=self._summaries.Summary(value=points))

    def finish(self) -> None:
        """Everything is on disk already."""

    def _add(self, step: int, **content: Any) -> None:
        """Append one event."""
        event = self._protos.Event(wall_time=time.time(), step=step, **content)
        with self._path.open("ab") as file:
            self._records.RecordWriter(file).write(event.SerializeToString())


class Board:
    """W&B, and trackio, which has the same calls. Where they send to is theirs to configure.

    A resumed run goes on under its name; the service decides what becomes of points after the
    checkpoint (W&B keeps the ones it has).
    """

    def __init__(self, name: Literal["trackio", "wandb"], folder: Path) -> None:
        """Of the run in `folder`; nothing is sent yet."""
        self.name: str = name
        self._folder, self._package = folder, _package(name)

    def start(self, settings: dict[str, Any], step: int) -> None:
        """Begin a run in the project `diptych`, or go on with this folder's."""
        mark = _mark(self._folder)
        more = {"id": mark, "dir": str(self._folder)} if self.name == "wandb" else {}
        self._package.init(
            project="diptych",
            name=f"{self._folder.resolve().name}-{mark}",
            config=settings,
            resume="allow",
            **more,
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """A point of each curve."""
        self._package.log(dict(numbers), step=step)

    def finish(self) -> None:
        """Send what waits to be sent."""
        self._package.finish()


class Trackers:
    """All trackers of a run; what fails is left out, and said once."""

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]) -> None:
        """These, none of them started; `say` gets the warnings."""
        self._following, self._say = list(trackers), say

    def start(self, settings: dict[str, Any], step: int) -> None:
        """A run begins after `step` steps, with these settings (plain values, nested)."""
        self._each(lambda tracker: tracker.start(settings, step))

    def log(self, row: Mapping[str, Any]) -> None:
        """A line of log.jsonl: {"kind": "step", "loss": 2.0} becomes the curve train/loss."""
        kind = "train" if row["kind"] == "step" else row["kind"]
        numbers = {
            f"{kind}/{name}": value for name, value in row.items() if name not in ("kind", "step")
        }
        self._each(lambda tracker: tracker.log(numbers, row["step"]))

    def finish(self) -> None:
        """The run ended, well or not."""
        self._each(lambda tracker: tracker.finish())
        self._following = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """Do it with all that still follow. Standard output is for the answer of a command, so
        what they print goes to standard error."""
        for tracker in list(self._following):
            try:
                with redirect_stdout(sys.stderr):
                    call(tracker)
            except Exception as error:  # a foreign package may raise anything
                self._following.remove(tracker)
                said = " ".join(f"{type(error).__name__}: {error}".split())
                self._say(
                    f"warning: {tracker.name} follows this run no longer ({said}). "
                    "Training goes on; log.jsonl has every number."
                )


def make_trackers(names: Sequence[TrackerName], folder: Path) -> list[Tracker]:
    """The trackers of the run in `folder`, none of them started.

    Raises:
        RequestError: A package is not installed.
    """
    return [TensorBoard(folder) if name == "tensorboard" else Board(name, folder) for name in names]


def _package(name: str) -> ModuleType:
    """Import a tracker's package; a run without it does not wait for that."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = "tensorboard" if "tensorboard" in name else name
        raise RequestError(
            f"{package} cannot be imported ({error}). "
            f"Install it with `pip install {package}`, or leave out --track {package}."
        ) from None


def _mark(folder: Path) -> str:
    """Eight digits that name the run in this folder, the same when it is resumed."""
    path = folder / "tracker-id"
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")
