"""Beginning with a trained model instead of random weights: `diptych train RECIPE --from MODEL`.

The model brings what it was trained with: shape, activation, tokenizer, preparation of pictures,
objective. The recipe brings the rest: rates, batch, length, augmentation, and what is held fixed.
A model of single pictures learns to read pictures in a row where the recipe says so (`pair`): it
gets what it lacks, and at first sees in the last picture what it saw before.
The run's folder keeps the model as it was in `before/`, so that the original is never needed again.

`session.py` calls this in setting up; what comes after training is in `wise_ft.py`.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from diptych.checkpoint import Bundle, load_bundle, save_again
from diptych.config import Config
from diptych.errors import ConfigError, RequestError
from diptych.files import whole_folder
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig, make_pair
from diptych.models.image_tower import ImageTower, ImageTowerConfig
from diptych.nn.lora import LoraConfig, adapted_layers, add_adapters
from diptych.nn.shapes import shapes_only
from diptych.nn.state import StateConfig
from diptych.pretrained.opening import open_model
from diptych.train.depth import TOWERS, layers_of, lowest
from diptych.train.run import FinetuneConfig, Run, dotted

BEFORE = "before"
"""Folder, inside the run's, of the model that the run began with."""

READING = ("model.pair=", "model.image.state=", "model.image.state.")
"""Settings begin like this that say how pictures in a row are read."""

OWN = {"frozen", "keep_patches", "changed_weight"}
"""Settings that say how a model or a tower learns: they are the run's, not the model's."""


def open_start(spec: str, folder: Path, resume: bool, *, offline: bool = False) -> Bundle:
    """The model to begin with; of a run that goes on, the copy in its folder.

    Args:
        spec: As --from names it.
        folder: Of the run.
        resume: Whether the run goes on.
        offline: Never ask the hub; use what is cached.

    Raises:
        RequestError: There is nothing at `spec`.
        CheckpointError: It is no model, or damaged.
    """
    settings, kept = folder / "run.json", folder / BEFORE
    if resume and settings.is_file() and kept.is_dir():
        old = Run.read(settings).finetune
        if old is not None and old.model == spec:  # else `resumed` says what differs
            return replace(load_bundle(kept), stated=old.fingerprint or "")
    return open_model(spec, offline=offline)


def keep_start(start: Bundle, folder: Path) -> None:
    """Write the model that a run begins with into the run's folder, if it is not there."""
    if not (folder / BEFORE).is_dir():
        with whole_folder(folder / BEFORE) as temporary:
            save_again(temporary, start)


def reading_settings(settings: Sequence[str], start: Bundle) -> tuple[list[str], list[str]]:
    """Settings of a run in two: how a model of single pictures is to read those before, which the
    recipe must say before `inherit` makes something of the model, and the rest."""
    first = [one for one in settings if one.startswith(READING)]
    if start.model.config.pair != "none":  # it reads them already, and no setting changes how
        first = []
    return first, [one for one in settings if one not in first]


def inherit(run: Run, spec: str, start: Bundle) -> Run:
    """The run with the model and the preparation of what it begins with in the place of its own.

    Args:
        run: Of any recipe of a dual encoder; its towers say what is frozen, its `pair` and its
            `state` how a model of single pictures is to read those before.
        spec: Where `start` is from, as --from names it.
        start: The model to begin with.

    Raises:
        RequestError: The recipe trains no dual encoder, or the model cannot become what it trains.
    """
    if not isinstance(run.model, DualEncoderConfig):
        raise RequestError(
            f"{run.recipe} trains a change model from the beginning, and --from {spec} is given. "
            "Leave --from out, or use a recipe such as change-finetune."
        )
    model = start.model.config
    towers: dict[str, object] = {}
    for name in TOWERS:
        ours, theirs = getattr(run.model, name), getattr(model, name)
        own = {
            field: getattr(ours, field, type(theirs).model_fields[field].default)
            for field in OWN & set(type(theirs).model_fields)
        }
        towers[name] = theirs.model_copy(update=own)
    finetune = (run.finetune or FinetuneConfig()).model_copy(
        update={"model": spec, "fingerprint": start.fingerprint}
    )
    towers["changed_weight"] = run.model.changed_weight
    model = _pair_config(model.model_copy(update=towers), run.model, spec)
    values = run.model_dump() | {
        "model": model.model_dump(),
        "finetune": finetune.model_dump(),
    }
    values["data"]["transform"] = start.transform.model_dump()
    return type(run)(**values)


def _pair_config(
    theirs: DualEncoderConfig, ours: DualEncoderConfig, spec: str
) -> DualEncoderConfig:
    """The config of a trained model, which reads sequences of pictures if it does already or the
    recipe does.

    Raises:
        RequestError: The model cannot become one of sequences.
    """
    if theirs.pair != "none" or ours.pair == "none":
        return theirs
    state = ours.image.state if isinstance(ours.image, ImageTowerConfig) else StateConfig()
    needed = ours.pair == "located" or state.variant != "none"
    if needed and not isinstance(theirs.image, ImageTowerConfig):
        raise RequestError(
            f"{spec} sees with a {theirs.image.kind} tower, and only a vision transformer can "
            "read the pictures before or say where they changed. Use --set model.pair=difference "
            "--set model.image.state=none, or another model."
        )
    with shapes_only():
        alike = _as_read(DualEncoder(theirs), frozen=theirs.image.frozen)
        return make_pair(alike, state, ours.pair).config


def paired(start: Bundle, run: Run) -> Bundle:
    """The model as the run begins with it: one of single pictures that is to read sequences gets
    what it lacks.

    Raises:
        ConfigError: What it gets would never learn.
    """
    ours, model, finetune = run.model, start.model, run.finetune
    assert finetune is not None
    assert isinstance(ours, DualEncoderConfig)
    if model.config.pair != "none" or ours.pair == "none":
        return start
    if finetune.lora.rank:
        raise ConfigError(
            f"finetune.lora.rank is {finetune.lora.rank}, and {finetune.model} reads single "
            "pictures: what it gets to compare them begins anew, and adapters would leave it so. "
            "Use --set finetune.lora.rank=0, or begin with a model that was trained on pictures "
            "in a row."
        )
    torch.manual_seed(run.seed)
    state = ours.image.state if isinstance(ours.image, ImageTowerConfig) else StateConfig()
    pair = make_pair(_as_read(model, frozen=ours.image.frozen), state, ours.pair)
    return replace(start, model=pair, stated=start.fingerprint)  # as --from names it


def _as_read(model: DualEncoder, *, frozen: bool) -> DualEncoder:
    """A model of single pictures as it is read in pairs: all patches of each picture, where it was
    trained on some (FLIP), and held fixed as the run says, not as it was when trained (LiT)."""
    if not isinstance(model.image, ImageTower):
        return model
    read = copy.deepcopy(model)
    assert isinstance(read.image, ImageTower)
    own = {"keep_patches": 1.0, "frozen": frozen}
    read.image.config = model.image.config.model_copy(update=own)
    read.config = model.config.model_copy(update={"image": read.image.config})
    return read


def require_inherited(run: Run, start: Bundle) -> None:
    """Refuse to change what the model brings.

    Raises:
        RequestError: The model is another one than the run was made for.
        ConfigError: Names the first setting that differs.
    """
    finetune = run.finetune
    assert finetune is not None
    if finetune.fingerprint not in (None, start.fingerprint):
        raise RequestError(
            f"{finetune.model} is the model {start.fingerprint}, and the run begins with "
            f"{finetune.fingerprint}. Restore that model, or begin another run in another --out."
        )
    parts: tuple[tuple[str, Config, Config], ...] = (
        ("model", run.model, start.model.config),
        ("data.transform", run.data.transform, start.transform),
    )
    for part, ours, theirs in parts:
        wanted = _learnt_with(theirs)
        for name, value in _learnt_with(ours).items():
            if value != wanted.get(name):
                raise ConfigError(
                    f"{part}.{name} is {value!r}, and {finetune.model} was trained with "
                    f"{wanted.get(name)!r}. Leave it out: --from brings it."
                )


def _learnt_with(config: Config) -> Mapping[str, object]:
    """Dotted settings that a model brings."""
    flat = dotted(config.model_dump())
    return {name: value for name, value in flat.items() if name.rpartition(".")[2] not in OWN}


def begin(run: Run, start: Bundle) -> DualEncoder:
    """The model of a run at its start: what learns requires gradients, and adapters are in place.

    Raises:
        ConfigError: Nothing would learn.
    """
    finetune = run.finetune
    assert finetune is not None
    assert isinstance(run.model, DualEncoderConfig)
    model = copy.deepcopy(start.model).requires_grad_(True)
    model.config = run.model
    for tower, config in ((model.image, run.model.image), (model.text, run.model.text)):
        tower.config = config
        tower.requires_grad_(not config.frozen)
    if finetune.lora.rank:
        torch.manual_seed(run.seed)
        lora = finetune.lora
        names = adapter_places(model, lora, finetune.frozen_blocks)
        add_adapters(model, names, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
    else:
        held = lowest(model, finetune.frozen_blocks)
        for name, weight in model.named_parameters():
            if name in held:
                weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise _nothing_learns(run, finetune)
    return model


def _nothing_learns(run: Run, finetune: FinetuneConfig) -> ConfigError:
    """Which settings leave no place for adapters, and what to do."""
    frozen = [f"model.{tower}.frozen" for tower in TOWERS if getattr(run.model, tower).frozen]
    causes = [f"{name}=true" for name in frozen]
    remedies = [f"--set {name}=false" for name in frozen]
    if finetune.frozen_blocks:
        causes.append(f"finetune.frozen_blocks={finetune.frozen_blocks}")
        remedies.append("--set finetune.frozen_blocks=0")
    if finetune.lora.targets != LoraConfig().targets or not causes:
        causes.append(f"finetune.lora.targets={json.dumps(finetune.lora.targets)}")
    return ConfigError(
        f"nothing would learn: with {' and '.join(causes)} no layer is left that gets an adapter. "
        f"Use {' or '.join([*remedies, '--set finetune.lora.rank=0'])}."
    )


def adapter_places(model: DualEncoder, lora: LoraConfig, frozen_blocks: int) -> list[str]:
    """Names of the layers that get an adapter: the targets in the blocks that are not frozen, all
    that a stateful encoder adds to them, and the head that finds what changed."""
    places = []
    for tower in TOWERS:
        if getattr(model, tower).config.frozen:
            continue
        for block, *added in layers_of(model, tower)[frozen_blocks:]:
            inside = (name for name, _ in model.get_submodule(block).named_modules())
            wanted = [name for name in inside if name.rpartition(".")[2] in lora.targets]
            places += [f"{block}.{name}" for name in wanted]
            for part in added:
                modules = model.get_submodule(part).named_modules()
                places += [f"{part}.{name}" for name, one in modules if isinstance(one, nn.Linear)]
    return places if model.head is None else [*places, "head.up", "head.down"]


def holds_statistics(run: Run) -> bool:
    """Whether batch norms use the statistics of the start in training too."""
    finetune = run.finetune
    return finetune is not None and (finetune.keep_statistics or finetune.lora.rank > 0)


def to_training(model: nn.Module, run: Run) -> None:
    """Let the model train; batch norms that are held fixed stay as in evaluation."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            held = module.weight is not None and not module.weight.requires_grad
            if holds_statistics(run) or held:
                module.eval()


def start_notes(run: Run, start: Bundle, model: DualEncoder, steps: int | None) -> list[str]:
    """What a person should know of how the run begins.

    Args:
        run: With the model it begins with.
        start: That model.
        model: The same as it will train.
        steps: Length of the run; None for one measured in minutes.
    """
    finetune = run.finetune
    assert finetune is not None
    learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    whole = sum(weight.numel() for weight in start.model.parameters())
    notes = [
        *start.notes,
        f"beginning with {finetune.model} ({start.fingerprint}): its model, vocabulary and "
        f"preparation of pictures take the place of those of {run.recipe}",
        f"{learning:,} numbers learn, beside {whole:,} of the model"
        if finetune.lora.rank
        else f"{learning:,} of {whole:,} numbers learn",
        _pace(run, finetune, steps),
    ]
    if finetune.lora.rank:
        notes += _bare_towers(run, model)
    elif run.optimizer.weight_decay:
        notes.append(
            f"weight_decay {run.optimizer.weight_decay:g} pulls the weights of the start towards "
            "zero; --set optimizer.weight_decay=0 leaves them where they are"
        )
    return notes


def _pace(run: Run, finetune: FinetuneConfig, steps: int | None) -> str:
    """Batch, rate and length, as chosen by the recipe or asked for."""
    length = f"{run.minutes:g} minutes" if steps is None else f"{steps:,} steps"
    length = length if run.epochs is None else f"{run.epochs:g} epochs ({length})"
    rate = f"{run.optimizer.lr:.1e}".replace("e-0", "e-")
    said = [f"batch {run.batch}", f"rate {rate}", length, f"layer_decay {finetune.layer_decay:g}"]
    if finetune.lora.rank:
        said.append(f"adapters of rank {finetune.lora.rank}")
    return ", ".join(said)


def _bare_towers(run: Run, model: DualEncoder) -> list[str]:
    """Towers that should learn by adapters and have no layer for one, as all of timm."""
    places = adapted_layers(model)
    return [
        f"the {tower} tower has no layer that gets an adapter, so it stays as it is; "
        "--set finetune.lora.rank=0 lets it learn"
        for tower in TOWERS
        if not getattr(run.model, tower).frozen
        and not any(place.startswith(f"{tower}.") for place in places)
    ]
