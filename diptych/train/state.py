"""Where a run stands, and its checkpoints: written whole, pruned, found again.

A checkpoint is a model folder (`diptych/checkpoint.py`) with trainer.json and
trainer.safetensors beside it: the optimizer's running means ("weight@state") and, where the model
folder holds averaged weights, the weights in training. Of a model with adapters the model folder
holds the merged weights and `adapter/` the adapters, which are all that learned.
`checkpoints/last` and `checkpoints/best` point at two of them.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.checkpoint import fill, save_bundle
from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError
from diptych.files import point, whole_folder
from diptych.models.kinds import AnyModel
from diptych.nn.lora import adapted_layers, merged
from diptych.tensors import load_tensors, save_tensors
from diptych.train.lora_files import (
    ADAPTER,
    adapter_tensors,
    fill_adapters,
    load_adapter,
    save_adapter,
)
from diptych.train.run import Run


@dataclass
class Progress:
    """Where a run stands, after `step` steps. The next batch is number `step`."""

    step: int = 0
    pairs: int = 0
    elapsed_s: float = 0.0
    """Seconds of training so far, over all sessions."""

    window_loss: float = 0.0
    """Sum of the losses since the last line of the log."""

    window_steps: int = 0
    best_loss: float | None = None
    """Lowest validation loss so far."""

    best_step: int | None = None
    cut: int = 0
    """Captions that were longer than the context so far."""

    bad_pairs: int = 0
    """Reads so far that failed; a pair whose replacements fail too counts each of them."""

    bad: dict[str, str] = field(default_factory=dict)
    """Samples that could not be read, with the reason."""

    trained_on: str | None = None
    """Fingerprint of the training source."""


def save_checkpoint(
    run_folder: Path,
    progress: Progress,
    kept: AnyModel,
    model: AnyModel,
    optimizer: torch.optim.Optimizer,
    tokenizer: Tokenizer,
    run: Run,
    made_by: str,
) -> Path:
    """Write a checkpoint whole, let `last` and `best` point where they should, drop old ones.

    Args:
        run_folder: Folder of the run.
        progress: Where it stands.
        kept: The model to use afterwards: the averaged one, or `model` itself.
        model: The model in training.
        optimizer: Of `model`.
        tokenizer: Of the run.
        run: What it is; says how many checkpoints stay.
        made_by: The library whose preparation and names the model had at first.

    Raises:
        StorageError: The disk refused; older checkpoints are untouched.
    """
    folder = run_folder / "checkpoints" / f"step-{progress.step:08}"
    with whole_folder(folder) as temporary:
        plain, transform = kept, run.data.transform
        if run.finetune and run.finetune.lora.rank:
            save_adapter(temporary / ADAPTER, kept, run.finetune.model)
            plain = merged(kept)
        save_bundle(
            *(temporary, plain, tokenizer, transform),
            trained_on=progress.trained_on,
            made_by=made_by,
        )
        state = _optimizer_tensors(model, optimizer)
        if kept is not model:
            state |= adapter_tensors(model) or model.state_dict()
        save_tensors(temporary / "trainer.safetensors", state)
        (temporary / "trainer.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
    tidy(run_folder, progress, run.save.keep_last)
    return folder


def tidy(run_folder: Path, progress: Progress, keep_last: int) -> None:
    """Let `last` and `best` point where `progress` says; drop checkpoints that need not stay.

    A process killed after it wrote a checkpoint leaves this undone, so resuming does it again.
    """
    folder = run_folder / "checkpoints"
    point(folder / "last", f"step-{progress.step:08}")
    if progress.best_step is not None:
        point(folder / "best", f"step-{progress.best_step:08}")
    best = (folder / "best").resolve()
    for old in sorted(folder.glob("step-*"))[:-keep_last]:
        if old.resolve() != best:
            shutil.rmtree(old)


def load_progress(checkpoint: Path) -> Progress:
    """Where the run stood.

    Raises:
        CheckpointError: trainer.json is missing or damaged.
    """
    path = checkpoint / "trainer.json"
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Remove {checkpoint} to resume from the one before."
        ) from error


def load_weights(checkpoint: Path, model: AnyModel, average: AnyModel | None) -> None:
    """Put the weights back: of the model in training, and of the average where there is one.

    A model with adapters has the weights of its start, and gets its adapters back.

    Raises:
        CheckpointError: A file is damaged or belongs to another model.
    """
    if adapted_layers(model):
        load_adapter(average or model, checkpoint / ADAPTER)
        if average is not None:
            path = checkpoint / "trainer.safetensors"
            tensors = load_tensors(path)
            fill_adapters(model, {n: value for n, value in tensors.items() if "@" not in n}, path)
        return
    path = checkpoint / "model.safetensors"
    fill(average or model, load_tensors(path), path)
    if average is not None:
        path = checkpoint / "trainer.safetensors"
        tensors = load_tensors(path)
        fill(model, {name: value for name, value in tensors.items() if "@" not in name}, path)


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the optimizer's running means back, weight by weight, by name.

    Raises:
        CheckpointError: trainer.safetensors is damaged or belongs to another model.
    """
    read = load_tensors(checkpoint / "trainer.safetensors")
    tensors = {key: value for key, value in read.items() if "@" in key}
    names = {id(weight): name for name, weight in model.named_parameters()}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            name = names[id(weight)]
            state = {
                key.rpartition("@")[2]: value
                for key, value in tensors.items()
                if key.rpartition("@")[0] == name
            }
            if not state and tensors:
                raise CheckpointError(
                    f"{checkpoint / 'trainer.safetensors'} says nothing of {name}. "
                    "Resume with the settings the run was started with."
                )
            for key, value in state.items():
                if value.shape not in (weight.shape, ()):
                    raise CheckpointError(
                        f"{checkpoint / 'trainer.safetensors'} has {name}@{key} of shape "
                        f"{list(value.shape)}, and the weight has {list(weight.shape)}. "
                        f"Remove {checkpoint} to resume from the one before."
                    )
            optimizer.state[weight] = {key: value.to(weight.device) for key, value in state.items()}


def last_checkpoint(run_folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    found = sorted((run_folder / "checkpoints").glob("step-*"))
    return found[-1] if found else None


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Running means by "name of the weight@name of the state"."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        f"{names[id(weight)]}@{key}": _as_tensor(value)
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }


def _as_tensor(value: Any) -> Tensor:
    """Some optimizers hold the step as a number."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value))
