"""Setting up a run, or taking up one that was stopped: everything before the first step.

`loop.py` then does the steps.
"""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diptych.checkpoint import Bundle
from diptych.comm import Comm
from diptych.contract import read_contract
from diptych.data.opening import open_source
from diptych.data.pair_pipeline import PairPipeline
from diptych.data.pipeline import OrderConfig, Pipeline
from diptych.data.several import Mixture, training_order
from diptych.data.source import Source
from diptych.data.tokenizer import Tokenizer
from diptych.errors import ConfigError, RequestError
from diptych.files import sweep, write_text
from diptych.losses.tiles import sum_dtype
from diptych.models.change import ChangeModel, ChangeModelConfig
from diptych.models.decoder import DecoderConfig
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.kinds import AnyModel, build_model, reads_sequences
from diptych.train.average import WeightAverage
from diptych.train.change_step import ChangeObjective
from diptych.train.depth import levels_below_top
from diptych.train.log import Live, RunLog, Watch
from diptych.train.optimizer import make_optimizer
from diptych.train.run import Run, resumed
from diptych.train.start import (
    BEFORE,
    begin,
    holds_statistics,
    keep_start,
    open_start,
    paired,
    require_inherited,
    start_notes,
)
from diptych.train.state import (
    Progress,
    last_checkpoint,
    load_optimizer,
    load_progress,
    load_weights,
    tidy,
)
from diptych.train.step import Objective, chance_loss, has_fast_bf16, pieces_of
from diptych.train.trackers import Trackers, make_trackers

LEARN_FROM = 200_000
"""Most samples whose captions the vocabulary is learned from."""

LEARN_FROM_ENDLESS = 20_000
"""The same for a source without end."""


@dataclass
class Session:
    """All that one process holds while it trains."""

    run: Run
    folder: Path
    comm: Comm
    model: AnyModel
    trained: nn.Module
    """The model, or the wrapper that averages its gradients over processes."""

    trackers: Trackers
    """Of the first rank; none elsewhere."""

    average: WeightAverage[AnyModel] | None
    """Of the model's weights, in a run with `ema`."""

    tokenizer: Tokenizer
    made_by: str
    """The library whose preparation and names the model had at first."""

    optimizer: torch.optim.Optimizer
    objective: Objective | ChangeObjective
    train: Pipeline | PairPipeline
    val: Pipeline | PairPipeline | None
    total_steps: int | None
    log: RunLog
    live: Live
    watch: Watch
    progress: Progress
    window_loss: Tensor
    """Sum of the losses since the last line of the log; stays on the device until it is read."""

    started: float = field(default_factory=time.monotonic)
    logged: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    """Seconds spent waiting for data since the last line of the log."""

    left_out: set[str] = field(default_factory=set)
    """Samples that could not be read in validation, and were said."""

    stopped_by: str | None = None
    """Name of the signal that asked the run to stop."""

    @property
    def kept(self) -> AnyModel:
        """The model that is judged and saved: the average where there is one."""
        return self.model if self.average is None else self.average.model

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far, earlier sessions included."""
        return self.progress.elapsed_s + time.monotonic() - self.started

    @property
    def done(self) -> float:
        """Share of the run that is done, in [0, 1]; the same on every rank. A run has one step at
        least: before it nothing is done."""
        if self.progress.step == 0:
            return 0.0
        if self.total_steps is not None:
            return min(1.0, self.progress.step / self.total_steps)
        return self._by_clock

    @property
    def middle(self) -> float:
        """Share of the run at the middle of the next step; what is done, if time is the measure."""
        if self.total_steps is not None:
            return min(1.0, (self.progress.step + 0.5) / self.total_steps)
        return self._by_clock

    @property
    def _by_clock(self) -> float:
        """Share of the run's minutes that is over, in [0, 1], as the first rank sees it."""
        share: float = self.comm.agree(min(1.0, self.elapsed_s / 60 / (self.run.minutes or 1)))
        return share


def set_up(
    run: Run,
    folder: Path,
    resume: bool,
    device: str,
    comm: Comm,
    live: Live,
    start: Bundle | None = None,
) -> Session:
    """Open the source, learn or read the vocabulary, build the model, load the last checkpoint.

    Raises:
        RequestError: The folder already holds a run, or another one, or the source has changed,
            or a tracker is not installed.
        ConfigError: Batch norm would meet a single pair.
        DataError: The source cannot be used.
        CheckpointError: The checkpoint to go on from is damaged.
    """
    start = _start(run, folder, resume, start)
    source = open_source(run.data.source, run.data.options)
    val = _validation_source(run, comm)
    total_steps = _total_steps(run, source)
    where = torch.device(device, comm.local_rank) if device == "cuda" else torch.device(device)
    run = run.model_copy(update={"precision": comm.agree(_precision(run, where))})
    trackers = Trackers(make_trackers(run.trackers, folder) if comm.first else [], live.say)
    order = _order(run, comm)
    norm_notes = _batch_norm_notes(run, comm, where)
    if comm.first:
        _claim(run, folder, resume, start)
        for note in (*source.notes, *(val.notes if val else ()), *norm_notes):
            live.say(note)
    comm.wait()
    tokenizer = start.tokenizer if start else _tokenizer(run, folder, source, comm)
    train = _pipeline(run, source, tokenizer, order, training=True)
    model = (begin(run, start) if start else _model(run, tokenizer)).to(where)
    if start and isinstance(model, DualEncoder):
        for note in start_notes(run, start, model, total_steps):
            live.say(note)
    if comm.size > 1 and where.type == "cuda" and isinstance(model, DualEncoder):
        model.join_statistics()  # elsewhere see models/resnet_tower.py
    optimizer = _optimizer(run, model)
    average = None if run.ema is None else WeightAverage(model, run.ema)
    log = RunLog(folder / "log.jsonl")
    progress = Progress(trained_on=source.fingerprint)
    checkpoint = last_checkpoint(folder) if resume else None
    if resume and checkpoint is None:
        live.say(f"nothing to resume in {folder}: starting anew")
    if checkpoint is not None:
        progress = _take_up(checkpoint, source, model, average, optimizer)
        live.say(f"going on after step {progress.step:,} ({checkpoint.name})")
        if comm.first:
            tidy(folder, progress, run.save.keep_last)
    if comm.first:
        log.cut(progress.step)
    return Session(
        run=run,
        folder=folder,
        comm=comm,
        model=model,
        trained=DistributedDataParallel(model) if comm.size > 1 else model,
        trackers=trackers,
        average=average,
        tokenizer=tokenizer,
        made_by=start.made_by if start else "diptych",
        optimizer=optimizer,
        objective=_objective(run, comm, where),
        train=train,
        val=_validation_pipeline(run, val, tokenizer, order) if val else None,
        total_steps=total_steps,
        log=log,
        live=live,
        watch=_watch(run, tokenizer),
        progress=progress,
        window_loss=torch.tensor(progress.window_loss, dtype=sum_dtype(where), device=where),
    )


def _start(run: Run, folder: Path, resume: bool, start: Bundle | None) -> Bundle | None:
    """The trained model that the run begins with, opened if it is not; None if it begins with
    random weights.

    Raises:
        RequestError: The run should begin with a model and does not say with which, or the model
            has changed.
    """
    if run.finetune is None:
        return None
    if run.finetune.model is None:
        raise RequestError(
            f"{run.recipe} changes a trained model and none is given. "
            "Give one: --from MODEL, such as the folder of a run."
        )
    start = paired(start or open_start(run.finetune.model, folder, resume), run)
    require_inherited(run, start)
    return start


def _optimizer(run: Run, model: AnyModel) -> torch.optim.AdamW:
    """The optimizer of the weights that learn, with rates by layer where the run has them."""
    if run.finetune is None or run.finetune.layer_decay == 1 or isinstance(model, ChangeModel):
        return make_optimizer(model, run.optimizer)
    return make_optimizer(model, run.optimizer, levels_below_top(model), run.finetune.layer_decay)


def _watch(run: Run, tokenizer: Tokenizer) -> Watch:
    """What looks for signs of trouble in the log. Where the loss also judges whether anything
    changed, it says no more whether pairs are told apart."""
    chance, model = None, run.model
    if isinstance(model, DualEncoderConfig) and not (
        model.pair == "located" and model.changed_weight
    ):
        chance = chance_loss(model.objective, run.batch)
    return Watch(chance, tokenizer.context, inherited=run.finetune is not None)


def _claim(run: Run, folder: Path, resume: bool, start: Bundle | None) -> None:
    """Make the folder this run's, or check that it is; keep the model it begins with in it.

    A run that ended before it logged or saved anything (a batch larger than the source, say) holds
    nothing: it may be started again, with other settings too.
    """
    settings = folder / "run.json"
    traces = [name for name in ("log.jsonl", "checkpoints") if (folder / name).exists()]
    if settings.exists() and not traces:
        (folder / "tokenizer.json").unlink(missing_ok=True)
        shutil.rmtree(folder / BEFORE, ignore_errors=True)
    elif settings.exists():
        if not resume:
            raise RequestError(
                f"{folder} already holds a run. Add --resume to go on with it, "
                "or give another --out."
            )
        resumed(Run.read(settings), run)
        sweep(folder / "checkpoints", "step-*", "last", "best")
        if last_checkpoint(folder) is None:  # begins anew, perhaps on other captions
            (folder / "tokenizer.json").unlink(missing_ok=True)
    elif traces or (folder / "tokenizer.json").exists():
        raise RequestError(
            f"{folder} holds {(*traces, 'tokenizer.json')[0]} but no run.json, so it is no run. "
            "Give another --out."
        )
    sweep(folder, "run.json", "tokenizer.json", "log.jsonl", "tracker-id", BEFORE)
    write_text(settings, run.model_dump_json(indent=2) + "\n")
    if start:
        keep_start(start, folder)


def _objective(run: Run, comm: Comm, where: torch.device) -> Objective | ChangeObjective:
    """What turns a batch into a loss."""
    transform, bf16 = run.data.transform, run.precision == "bf16"
    if isinstance(run.model, ChangeModelConfig):
        return ChangeObjective(run.model, transform, comm, where, bf16=bf16, chunk=run.chunk)
    return Objective(
        transform,
        comm,
        where,
        bf16=bf16,
        tile=run.tile,
        chunk=run.chunk,
        changed_weight=run.model.changed_weight,
    )


def _batch_norm_notes(run: Run, comm: Comm, where: torch.device) -> list[str]:
    """What to say of a batch norm that learns by pieces; nothing where there is none.

    Raises:
        ConfigError: A piece would be a single pair, which has no statistics.
    """
    image, share = run.model.image, run.batch // comm.size
    if image.frozen or not image.batch_norm or holds_statistics(run):
        return []
    pieces = pieces_of(share, run.chunk)
    joined = comm.size > 1 and where.type == "cuda"
    if share // len(pieces) == 1 and not joined:
        remedy = "--chunk 3" if share > 1 else f"--batch {2 * comm.size}"
        raise ConfigError(
            f"batch norm needs two pairs at a time, and the {share} of a process make a piece "
            f"of one (batch {run.batch}, chunk {run.chunk}). Use {remedy} or more."
        )
    if len(pieces) == 1:
        return []
    return [
        f"chunk {run.chunk}: batch norm uses the statistics of each piece, so loss and gradients "
        "are not quite those of the whole batch"
    ]


def _order(run: Run, comm: Comm) -> OrderConfig:
    """Which pairs this rank takes, and when."""
    return OrderConfig(
        batch=run.batch,
        seed=run.seed,
        rank=comm.rank,
        ranks=comm.size,
        caption=run.data.caption,
    )


def _take_up(
    checkpoint: Path,
    source: Source,
    model: AnyModel,
    average: WeightAverage[AnyModel] | None,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put weights and running means back as they were; where the run stood.

    Raises:
        RequestError: The source has changed.
        CheckpointError: The checkpoint is damaged, or of another version of Diptych.
    """
    read_contract(checkpoint)
    progress = load_progress(checkpoint)
    _same_source(progress, source, checkpoint)
    load_weights(checkpoint, model, average.model if average else None)
    load_optimizer(checkpoint, model, optimizer)
    return progress


def _same_source(progress: Progress, source: Source, checkpoint: Path) -> None:
    """Refuse to go on with a run on data that is not what it was.

    Raises:
        RequestError: Names both fingerprints.
    """
    if progress.trained_on not in (None, source.fingerprint):
        raise RequestError(
            f"{source.name} has changed since {checkpoint} was written: its fingerprint is "
            f"{source.fingerprint}, not {progress.trained_on}. "
            "Restore the data, or train on it in another --out."
        )


def _precision(run: Run, device: torch.device) -> str:
    """The run's precision; what `auto` stands for on this device."""
    if run.precision != "auto":
        return run.precision
    return "bf16" if has_fast_bf16(device) else "fp32"


def _tokenizer(run: Run, folder: Path, source: Source, comm: Comm) -> Tokenizer:
    """The run's tokenizer: read, or learned from the captions of the source and written."""
    path = folder / "tokenizer.json"
    if comm.first and not path.exists():
        texts = (text for index in _to_learn_from(source, run) for text in source.captions(index))
        shape = run.model.text
        learned = Tokenizer.learn(texts, vocabulary=shape.vocabulary, context=shape.context)
        write_text(path, learned.to_json())
    comm.wait()
    return Tokenizer.from_json(path.read_text(encoding="utf-8"))


def _to_learn_from(source: Source, run: Run) -> Iterable[int]:
    """The samples whose captions the vocabulary is learned from.

    All where they are few; else those that training begins with, each source in its share.
    """
    samples = source.samples if isinstance(source, Mixture) else source.size
    if source.size is not None and source.size <= LEARN_FROM:
        return range(source.size)
    order = training_order(source, run.seed)
    limit = LEARN_FROM_ENDLESS if samples is None else min(samples, LEARN_FROM)
    return (order.at(number) for number in range(limit))


def _model(run: Run, tokenizer: Tokenizer) -> AnyModel:
    """The model with its weights at the start, for the vocabulary that was learned."""
    said = {
        "vocabulary": tokenizer.vocabulary,
        "end_token": tokenizer.end_token,
        "pad_token": tokenizer.pad_token,
    }
    if isinstance(run.model, ChangeModelConfig):
        said["start_token"] = int(tokenizer.encode([""])[0][0, 0])
    text = run.model.text.model_copy(update=said)
    torch.manual_seed(run.seed)
    return build_model(run.model.model_copy(update={"text": text}))


def _pipeline(
    run: Run, source: Source, tokenizer: Tokenizer, order: OrderConfig, *, training: bool
) -> Pipeline | PairPipeline:
    """Batches of a source, for training or for judging."""
    pipeline = PairPipeline if reads_sequences(run.model) else Pipeline
    text = run.model.text
    return pipeline(
        source,
        tokenizer,
        run.data.transform,
        order,
        augment=run.data.augment if training else None,
        trims_text=isinstance(text, DecoderConfig) or text.pool != "last",
    )


def _validation_source(run: Run, comm: Comm) -> Source | None:
    """What to judge on while training, if anything.

    Raises:
        RequestError: It has too few samples to tell pairs apart.
    """
    if not run.data.val:
        return None
    source, least = open_source(run.data.val, run.data.val_options), max(2, comm.size)
    if source.size is not None and source.size < least:
        raise RequestError(
            f"{source.name} has {source.size} samples to judge on, fewer than {least}. "
            "Give a larger --val, or none."
        )
    return source


def _validation_pipeline(
    run: Run, source: Source, tokenizer: Tokenizer, order: OrderConfig
) -> Pipeline | PairPipeline:
    """The same batch size where the source has enough, so that losses can be compared."""
    size = source.size or run.data.val_pairs
    batch = min(order.batch, size - size % order.ranks)
    smaller = order.model_copy(update={"batch": batch})
    return _pipeline(run, source, tokenizer, smaller, training=False)


def _total_steps(run: Run, source: Source) -> int | None:
    """Length in steps; None for a run measured in minutes."""
    if run.epochs is None:
        return run.steps
    if source.size is None:
        raise RequestError(
            f"{source.name} has no end, so {run.epochs:g} epochs of it have no length. "
            "Use --steps or --minutes."
        )
    return max(1, round(run.epochs * source.size / run.batch))
