"""What a run is: one frozen tree of settings, written to the run's folder as run.json.

A recipe is a function that returns a `Run` (`diptych/recipes/`); the command line changes fields
of it; `loop.py` carries it out.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from diptych.config import Config
from diptych.data.augment import AugmentConfig
from diptych.data.pipeline import CaptionDraw
from diptych.data.source import SourceOptions
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import ConfigError
from diptych.models.kinds import AnyModelConfig
from diptych.nn.lora import LoraConfig

TrackerName = Literal["tensorboard", "trackio", "wandb"]
"""What can follow a run."""


class DataConfig(Config):
    """Where pairs come from and how they are prepared."""

    source: str | tuple[str, ...] = "scenes:shapes"
    """What to train on, or several, with weights or without; see `diptych/data/opening.py`."""

    options: SourceOptions = SourceOptions()
    """Columns and condition for `source`."""

    val: str | None = None
    """What to judge on while training; None judges nothing."""

    val_options: SourceOptions = SourceOptions()
    """Columns and condition for `val`."""

    val_pairs: int = Field(default=2048, ge=2)
    """Most pairs to judge on each time."""

    transform: ImageTransformConfig
    """Size and normalisation of pictures; its image_size is the model's."""

    augment: AugmentConfig = AugmentConfig()
    """What is changed in the training pictures, at random."""

    caption: CaptionDraw = "one"
    """What is drawn of a sample's captions each time it comes by: any `one` of them, or the first
    with some of the others `joined` to it (a name with keywords)."""

    workers: int = Field(default=1, ge=0)
    """Processes that prepare batches; they change no result."""

    prefetch: int = Field(default=4, ge=1)
    """Batches that each worker prepares ahead."""


class OptimizerConfig(Config):
    """AdamW with warm-up and a cosine to zero."""

    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the running mean and of the running square. CLIP: 0.9, 0.98; SigLIP: 0.9, 0.95."""

    epsilon: float = Field(default=1e-6, gt=0)
    """Added to the root of the running square (CLIP's value)."""

    weight_decay: float = Field(default=0.2, ge=0)
    """Of matrices; gains, biases, positions, class token and temperature have none."""

    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the run in which the rate rises from zero."""

    clip_norm: float = Field(default=1.0, gt=0)
    """Longest gradient that is applied; a longer one is shortened to it."""


class SaveConfig(Config):
    """When checkpoints are written and which stay."""

    every_steps: int | None = Field(default=None, ge=1)
    """Write one each so many steps."""

    every_minutes: float | None = Field(default=10.0, gt=0)
    """Write one when so much time has passed since the last."""

    keep_last: int = Field(default=2, ge=1)
    """How many of the newest stay; the one with the best validation loss stays too."""


class FinetuneConfig(Config):
    """How a run that begins with a trained model changes it, and what it may forget.

    The model is judged before and after; what is kept in the end lies between the two
    (`wise_ft.py`), so that it still does what it could do before.
    """

    model: str | None = None
    """The model to begin with, as --from names it: a folder, a file, hf:org/name, a short name."""

    fingerprint: str | None = None
    """Of that model."""

    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The rate of each layer is that of the one above it times this; 1 gives all the same. BEiT
    (arXiv:2106.08254) uses 0.65 to 0.75, fine-tuned CLIP 0.6 to 0.65 (arXiv:2212.06138)."""

    frozen_blocks: int = Field(default=0, ge=0)
    """Hold the embeddings and so many blocks of each tower fixed, from the bottom up; a tower with
    fewer learns at its top alone. 0 holds nothing. Whole towers: model.image.frozen=true."""

    keep_statistics: bool = True
    """Batch norms go on using the running statistics of the start. Those of a few new pictures are
    another domain's, and the old one is forgotten with them."""

    lora: LoraConfig = LoraConfig()
    """Adapters instead of the weights themselves, with lora.rank above 0."""

    alpha: float | None = Field(default=None, ge=0, le=1)
    """Share of the way from the weights before to those after at which the model of the run lies;
    None chooses it by `most_lost`, or takes 0.5 where nothing is held out."""

    most_lost: float = Field(default=0.01, ge=0, le=1)
    """Most that recall@10 may fall on `held_out` in either direction, as a share: 0.01 is one
    point. It bounds what is chosen on; what is reported on other pictures may differ by chance."""

    held_out: str | None = None
    """SOURCE of what the model can do already and is not to forget."""

    held_out_options: SourceOptions = SourceOptions()
    """Columns and condition for `held_out`."""

    choose_on: float = Field(default=0.5, gt=0, le=1)
    """Share of `held_out` that alpha is chosen on; what is reported is measured on the rest. 1
    chooses and reports on all of it."""


class Run(Config):
    """Everything that decides what a run computes."""

    recipe: str
    """Name of the recipe it came from."""

    model: AnyModelConfig
    """What is trained: a dual encoder, or with kind "change" a change model. `text.vocabulary` is
    the most that may be learned from the captions."""

    data: DataConfig
    """What it is trained on."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """How weights change."""

    finetune: FinetuneConfig | None = None
    """How a trained model is changed (--from); None trains from nothing."""

    save: SaveConfig = SaveConfig()
    """What is kept on the way."""

    batch: int = Field(default=128, ge=2)
    """Pairs per step, over all processes."""

    steps: int | None = Field(default=None, ge=1)
    """Length of the run in steps; exactly one of steps, epochs and minutes is given."""

    epochs: float | None = Field(default=None, gt=0)
    """Length of the run in passes over the source."""

    minutes: float | None = Field(default=None, gt=0)
    """Length of the run in minutes of training; such a run cannot be repeated exactly."""

    seed: int = Field(default=0, ge=0)
    """Of the weights at the start, the order, the crops and the patches dropped."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 runs the towers under autocast; auto takes it where the hardware has it, and run.json
    keeps which it was. Embeddings and losses are float32 always."""

    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of the averaged weights, such as 0.999; None averages nothing. The average is
    what is judged, saved and used afterwards (`average.py`)."""

    chunk: int | None = Field(default=None, ge=1)
    """Most pairs that the towers take at a time, per process; None takes all at once. Memory grows
    with it and not with `batch`; loss and gradients stay those of the whole batch (`step.py`), but
    for batch norm (a residual network that is not frozen), whose statistics are then those of each
    piece. A step takes about a third longer."""

    tile: int | None = Field(default=None, ge=1)
    """Side of the loss tiles held at once; None chooses."""

    log_every: int = Field(default=10, ge=1)
    """Steps per line of the log; the last step has one always."""

    trackers: tuple[TrackerName, ...] = ()
    """What else follows the run, beside log.jsonl (`trackers.py`)."""

    validate_every: int = Field(default=200, ge=1)
    """Steps between two looks at `data.val`; there is always one at the end."""

    @model_validator(mode="after")
    def check(self) -> "Run":
        """Refuse what contradicts itself."""
        lengths = [name for name in ("steps", "epochs", "minutes") if getattr(self, name)]
        if len(lengths) != 1:
            given = " and ".join(lengths) or "none"
            raise ConfigError(
                f"a run has one length and {given} is given. "
                "Give exactly one of --steps, --epochs and --minutes."
            )
        side, picture = self.model.image.image_size, self.data.transform.image_size
        if side != picture:
            raise ConfigError(
                f"model.image.image_size is {side} and data.transform.image_size {picture}. "
                f"Set both to {side}: --set model.image.image_size={side} "
                f"--set data.transform.image_size={side}."
            )
        return self

    def override(self, settings: Sequence[str]) -> "Run":
        """A copy with dotted settings replaced, as of every config; pictures are prepared at the
        size of a new image tower unless their size is set too."""
        names = {setting.partition("=")[0].strip() for setting in settings}
        if "model.image" in names and not names & {"data.transform", "data.transform.image_size"}:
            ours = [one.strip().removeprefix("model.") for one in settings]
            ours = [one for one, whole in zip(ours, settings, strict=True) if one != whole.strip()]
            try:
                side = self.model.override(ours).image.image_size
            except ConfigError:
                return super().override(settings)  # which names the setting as it was written
            settings = [*settings, f"data.transform.image_size={side}"]
        return super().override(settings)

    def with_length(self, steps: int | None, epochs: float | None, minutes: float | None) -> "Run":
        """The same run with another length; all None leaves the length as it is."""
        if steps is None and epochs is None and minutes is None:
            return self
        values = self.model_dump()
        return Run(**(values | {"steps": steps, "epochs": epochs, "minutes": minutes}))


MAY_CHANGE = {"steps", "epochs", "minutes", "save", "log_every", "trackers"}
"""Fields that may differ when a run is resumed."""

MAY_CHANGE_INSIDE = {
    *("data.workers", "data.prefetch"),
    *("finetune.alpha", "finetune.most_lost", "finetune.choose_on", "finetune.held_out"),
    *(f"finetune.held_out_options.{name}" for name in SourceOptions.model_fields),
}
"""The same, inside other fields."""

ROUND_OTHERWISE = {"chunk", "tile"}
"""Fields that change memory and the last bits of every number."""


def resumed(old: Run, new: Run) -> None:
    """Refuse to resume a run under settings that would make it another run.

    Raises:
        ConfigError: Names the first setting that differs.
    """
    before, after = _fixed(old), _fixed(new)
    for name in before | after:
        if before.get(name) != after.get(name):
            why = ""
            if name in ROUND_OTHERWISE:
                why = f" A resumed run repeats every bit, and another {name} rounds otherwise."
            raise ConfigError(
                f"the run in this folder has {name}={before.get(name)!r}, not "
                f"{after.get(name)!r}.{why} "
                "Give the same settings, or another --out."
            )


def _fixed(run: Run) -> dict[str, object]:
    """Dotted settings that decide the run's numbers."""
    flat = dotted(run.model_dump(exclude=MAY_CHANGE))
    return {name: value for name, value in flat.items() if name not in MAY_CHANGE_INSIDE}


def dotted(values: Mapping[str, object], place: str = "") -> dict[str, object]:
    """Nested settings under dotted names."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{place}{name}.")
        else:
            flat[f"{place}{name}"] = value
    return flat
