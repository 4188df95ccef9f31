"""The training loop: step, log, judge, save.

How a run is set up is in `session.py`, what a step computes in `step.py`, what is written in
`state.py` and `log.py`. Everything random in step s follows from (seed, s), so a resumed run
needs no saved generator.
"""

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.checkpoint import Bundle
from diptych.comm import Comm
from diptych.data.tokenizer import Tokenizer
from diptych.errors import DataError, TrainingError
from diptych.models.dual_encoder import DualEncoder
from diptych.models.kinds import AnyModel
from diptych.train.log import Live, cut_text, live_text
from diptych.train.optimizer import learning_rate
from diptych.train.run import Run
from diptych.train.session import Session, set_up
from diptych.train.start import to_training
from diptych.train.state import last_checkpoint, save_checkpoint
from diptych.train.step import AnyBatch

MOST_BAD = 0.2
"""A run stops when failed reads are more than this share of the pairs seen."""

TWICE_S = 1.0
"""Signals within so many seconds count as one: `timeout` sends SIGTERM to a process and then to its
group."""

BadSamples = tuple[tuple[str, str], ...]
"""(key, reason) of each."""

Evaluator = Callable[[AnyModel, Tokenizer], Mapping[str, float]]
"""Judges the model as it is; its numbers go into the log beside the validation loss."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    checkpoint: Path
    """The last one."""

    steps: int
    pairs: int
    elapsed_s: float
    validation_loss: float | None
    """Of the last look; None without validation data."""

    bad: int
    """Samples that could not be read."""

    cut: int
    """Captions seen that were longer than the context and lost their end, counted each time."""

    new_steps: int
    """Steps of this call; 0 if the run was done already."""

    finished: bool
    """False if a signal stopped the run; it can be resumed."""


def train(
    run: Run,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    comm: Comm | None = None,
    evaluators: Mapping[str, Evaluator] | None = None,
    live: Live | None = None,
    start: Bundle | None = None,
) -> TrainResult:
    """Carry out a run, or go on with one that was stopped.

    Args:
        run: What to do.
        folder: The run's folder: run.json, log.jsonl, checkpoints/; tokenizer.json, or before/ of
            a run that begins with a trained model.
        resume: Go on from the last checkpoint in `folder`; starts anew if there is none.
        device: "cpu", "cuda" or "mps" (Apple).
        comm: The processes that share the run; None is this one alone.
        evaluators: Called at each validation, by name.
        live: Where progress is shown.
        start: The trained model that the run begins with, if it is open already; None opens the one
            that the run names, if it names one.

    Raises:
        RequestError: The folder already holds a run, or another one.
        ConfigError: Batch norm would meet a single pair.
        DataError: The source cannot be used, or too many samples cannot be read.
        TrainingError: The loss is no number.
    """
    folder = Path(folder)
    session = set_up(run, folder, resume, device, comm or Comm(), live or Live(), start)
    run, validation_loss, before = session.run, None, session.progress.step
    if session.done >= 1:
        session.live.say(f"already done: {before:,} steps. Give a greater length to go on.")
    to_training(session.model, run)
    with _followed(session), _stop_at_signals(session):
        for batch, waited_s in _timed(_batches(session)):
            rate, norm = _step(session, batch, waited_s)
            complete, improved = session.done >= 1, False
            if complete or session.progress.step % run.log_every == 0:
                _log(session, rate, norm.item())
            if complete or session.progress.step % run.validate_every == 0:
                validation_loss, improved = _validate(session, evaluators or {})
            stopped = session.comm.agree(session.stopped_by is not None)
            last = complete or stopped
            if last or improved or session.comm.agree(_time_to_save(session)):
                _save(session)
            if last:
                break
    return _result(session, before, validation_loss)


def _result(session: Session, before: int, validation_loss: float | None) -> TrainResult:
    """How the run ended, which began this time after `before` steps."""
    progress = session.progress
    if progress.cut and progress.step > before:
        session.live.say(f"{cut_text(progress.cut, progress.pairs, session.tokenizer.context)}.")
    checkpoint = last_checkpoint(session.folder)
    if checkpoint is None:
        raise TrainingError(
            f"{session.folder} has no checkpoint though the run ended. "
            "Check that nobody removed it."
        )
    return TrainResult(
        checkpoint=checkpoint,
        steps=progress.step,
        pairs=progress.pairs,
        elapsed_s=progress.elapsed_s,
        validation_loss=validation_loss,
        bad=len(progress.bad),
        cut=progress.cut,
        new_steps=progress.step - before,
        finished=session.done >= 1,
    )


def _batches(session: Session) -> Iterator[AnyBatch]:
    """Training batches from where the run stands; none if it is already done."""
    if session.done >= 1:
        return iter(())
    data = session.run.data
    return session.train.batches(
        session.progress.step, session.total_steps, workers=data.workers, prefetch=data.prefetch
    )


def _timed(batches: Iterator[AnyBatch]) -> Iterator[tuple[AnyBatch, float]]:
    """Each batch, with the seconds spent waiting for it."""
    while True:
        before = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - before


def _step(session: Session, batch: AnyBatch, waited_s: float) -> tuple[float, Tensor]:
    """One step; its rate, and the length of its gradient."""
    run, progress, model = session.run, session.progress, session.model
    rate = learning_rate(session.middle, run.optimizer)
    for group in session.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    torch.manual_seed(_step_seed(run.seed, progress.step, session.comm.rank))
    session.optimizer.zero_grad(set_to_none=True)
    loss = session.objective.backward(session.trained, batch)
    norm = nn.utils.clip_grad_norm_(model.parameters(), run.optimizer.clip_norm)
    session.optimizer.step()
    if isinstance(model, DualEncoder):
        model.limit_scale()
    if session.average is not None:
        session.average.follow(progress.step)
    progress.step += 1
    progress.pairs += run.batch
    progress.window_steps += 1
    session.window_loss += loss
    session.waited_s += waited_s
    _count_troubles(session, batch)
    return rate, norm


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Of everything random inside this step on this rank (which patches are dropped)."""
    mark = hashlib.sha256(f"step {seed} {step} {rank}".encode()).digest()
    return int.from_bytes(mark[:7], "little")


def _count_troubles(session: Session, batch: AnyBatch) -> None:
    """Take up captions cut and samples that could not be read; stop when they are too many."""
    progress = session.progress
    for cut, bad in _troubles(session, batch):
        progress.cut += cut
        progress.bad_pairs += len(bad)
        for key, reason in bad:
            if key not in progress.bad:
                session.live.say(f"left out {key}: {reason}")
                progress.bad[key] = reason
    if progress.pairs >= 100 and progress.bad_pairs > MOST_BAD * progress.pairs:
        raise DataError(
            f"{progress.bad_pairs:,} of {progress.pairs:,} pairs seen could not be read "
            f"(more than {MOST_BAD:.0%}); the first: {next(iter(progress.bad.values()))} "
            "Mend or leave out these pictures."
        )


def _troubles(session: Session, batch: AnyBatch) -> list[tuple[int, BadSamples]]:
    """Captions cut and samples that could not be read, of every rank. Reasons are sent round only
    when there are any: most steps have none."""
    if session.comm.size > 1:
        mine = torch.tensor([batch.cut, len(batch.bad)], device=session.objective.device)
        counts = session.comm.gather_numbers(mine).view(-1, 2).tolist()
        if not any(bad for _, bad in counts):
            return [(cut, ()) for cut, _ in counts]
    return session.comm.collect((batch.cut, batch.bad))


def _log(session: Session, rate: float, norm: float) -> None:
    """Write a line of the log and show it."""
    progress, now = session.progress, time.monotonic()
    seconds = max(1e-9, now - session.logged)
    row = {
        "kind": "step",
        "step": progress.step,
        "loss": _window_mean(session),
        "lr": rate,
        **_scale(session.model),
        "gradient_norm": norm,
        "pairs": progress.pairs,
        "cut": progress.cut,
        "bad": len(progress.bad),
        "time_s": round(session.elapsed_s, 3),
        "pairs_per_s": round(progress.window_steps * session.run.batch / seconds, 1),
        "wait_share": round(min(1.0, session.waited_s / seconds), 4),
    }
    done = session.done
    if session.comm.first:
        _record(session, row)
        left_s = session.elapsed_s * (1 - done) / max(done, 1e-9)
        session.live.show(live_text(row, done, left_s), last=done >= 1)
        for warning in session.watch.look(row, done):
            session.live.say(f"warning: {warning}")
    session.window_loss.zero_()
    progress.window_steps, session.waited_s, session.logged = 0, 0.0, now


def _scale(model: AnyModel) -> dict[str, float]:
    """The temperature, for the log of a model that has one."""
    return {"scale": model.log_scale.exp().item()} if isinstance(model, DualEncoder) else {}


def _record(session: Session, row: dict[str, Any]) -> None:
    """Put a line into the log and show it to the trackers."""
    session.log.add(row)
    session.trackers.log(row)


def _window_mean(session: Session) -> float:
    """Mean loss since the last line of the log.

    Raises:
        TrainingError: It is no number.
    """
    mean = session.window_loss.item() / max(1, session.progress.window_steps)
    if not math.isfinite(mean):
        raise _diverged(session, f"the loss became {mean}")
    return mean


def _require_numbers(session: Session) -> None:
    """Neither judge nor keep weights that are no numbers.

    Raises:
        TrainingError: The loss or a weight is no number.
    """
    _window_mean(session)
    for name, weight in session.model.named_parameters():
        if not weight.isfinite().all():
            raise _diverged(session, f"the weights {name} became infinite or no numbers")


def _diverged(session: Session, what: str) -> TrainingError:
    """What happened, and what to do."""
    lower = min(session.run.optimizer.lr / 3, 1e-3)
    return TrainingError(
        f"{what} before step {session.progress.step:,}. Start again in another --out "
        f"with a lower rate (--set optimizer.lr={lower:.1e}) or with "
        "--set precision=fp32; the last checkpoint is untouched."
    )


def _validate(session: Session, evaluators: Mapping[str, Evaluator]) -> tuple[float | None, bool]:
    """Judge and log; the validation loss, and whether it is the lowest so far."""
    _require_numbers(session)
    numbers: dict[str, float] = {}
    bad: list[tuple[str, str]] = []
    if session.val is not None:
        size = session.val.source.size or session.run.data.val_pairs
        count = max(1, min(size, session.run.data.val_pairs) // session.val.order.batch)
        batches = _noting(session.val.batches(0, count, workers=0), bad)
        numbers["loss"] = session.comm.agree(session.objective.judge(session.kept, batches))
    left_out = _left_out_of_validation(session, bad)
    session.kept.eval()
    if session.comm.first:
        for evaluator in evaluators.values():
            numbers.update(evaluator(session.kept, session.tokenizer))
    to_training(session.model, session.run)
    session.comm.wait()
    progress = session.progress
    if numbers and session.comm.first:
        row = {"kind": "validation", "step": progress.step, **numbers, "bad": left_out}
        _record(session, row | {"time_s": round(session.elapsed_s, 3)})
        said = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        session.live.say(f"step {progress.step:,} · validation {said}")
    loss = numbers.get("loss")
    improved = loss is not None and (progress.best_loss is None or loss < progress.best_loss)
    if improved:
        progress.best_loss, progress.best_step = loss, progress.step
    return loss, improved


def _noting(batches: Iterator[AnyBatch], bad: list[tuple[str, str]]) -> Iterator[AnyBatch]:
    """The same batches; what could not be read goes into `bad`."""
    for batch in batches:
        bad.extend(batch.bad)
        yield batch


def _left_out_of_validation(session: Session, bad: list[tuple[str, str]]) -> int:
    """How many samples of all ranks could not be read in one validation; each is said once."""
    found = {key: reason for part in session.comm.collect(bad) for key, reason in part}
    for key, reason in found.items():
        if key not in session.left_out:
            session.left_out.add(key)
            session.live.say(f"left out of validation {key}: {reason}")
    return len(found)


def _time_to_save(session: Session) -> bool:
    """True when a checkpoint is due by steps or by the clock."""
    save = session.run.save
    by_steps = save.every_steps and session.progress.step % save.every_steps == 0
    minutes = (time.monotonic() - session.saved) / 60
    return bool(by_steps or (save.every_minutes and minutes >= save.every_minutes))


def _save(session: Session) -> None:
    """Write a checkpoint; the clock of the run goes on from here if it is resumed."""
    _require_numbers(session)
    progress, now = session.progress, time.monotonic()
    progress.elapsed_s, session.started, session.saved = session.elapsed_s, now, now
    progress.window_loss = session.window_loss.item()
    if session.comm.first:
        save_checkpoint(
            session.folder,
            progress,
            session.kept,
            session.model,
            session.optimizer,
            session.tokenizer,
            session.run,
            session.made_by,
        )
    session.comm.wait()


@contextmanager
def _followed(session: Session) -> Iterator[None]:
    """Let the trackers follow the steps, if there are any to do."""
    if session.done >= 1:
        yield
        return
    session.trackers.start(session.run.model_dump(mode="json"), session.progress.step)
    try:
        yield
    finally:
        session.trackers.finish()


@contextmanager
def _stop_at_signals(session: Session) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the run after the step at hand, with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked = 0.0

    def stop(number: int, _: object) -> None:
        nonlocal asked
        if session.stopped_by is None:
            session.stopped_by, asked = signal.Signals(number).name, time.monotonic()
            session.live.say(f"{session.stopped_by}: saving after this step; go on with --resume")
        elif time.monotonic() - asked > TWICE_S:  # asked again: act at once
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
