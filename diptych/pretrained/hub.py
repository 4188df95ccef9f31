"""Models from the Hugging Face hub: `hf:org/name[@revision]`, and short names for well-known ones.

Only the files of one layout are fetched (a repository often holds the same weights four times), all
of one commit, into the cache that every tool on the machine shares. Without network, or with
`offline`, what is cached is used. Nothing fetched is ever executed.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub  # its large parts are imported when they are first used
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from diptych.errors import CheckpointError, RequestError
from diptych.pretrained.layouts import DIPTYCH, LAYOUTS, OPEN_CLIP, TRANSFORMERS, find_layout

ALIASES = {
    "default": "google/siglip2-base-patch16-224",
    "clip-b32": "openai/clip-vit-base-patch32",
    "clip-b16": "openai/clip-vit-base-patch16",
    "clip-l14": "openai/clip-vit-large-patch14",
    "clip-l14-336": "openai/clip-vit-large-patch14-336",
    "laion-b32": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "laion-h14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "metaclip-b32": "facebook/metaclip-b32-400m",
    "siglip-b16": "google/siglip-base-patch16-224",
    "siglip-so400m": "google/siglip-so400m-patch14-384",
    "siglip2-b16": "google/siglip2-base-patch16-224",
    "siglip2-so400m": "google/siglip2-so400m-patch14-384",
}
"""Short names, the newest commit of each. `default` knows many languages and is of the base size;
`clip-b32` has the fewest patches, and so the quickest image tower; the -so400m ones want a GPU."""

REPOSITORY = re.compile(r"hf:(?P<name>[^@:]+?)(@(?P<revision>[^@]+))?")
"""How a repository is written."""

SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
"""One of several files of weights."""

SMALL = (".json", ".txt", ".model")
"""Ends of the names of configs, vocabularies and merges."""

SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables by which the hub's library is told never to ask, the one that counts first."""


@dataclass(frozen=True)
class Repository:
    """A model on the hub."""

    name: str
    """org/name."""

    revision: str | None
    """Branch, tag or commit; None is the main branch."""


def repository_of(spec: str) -> Repository | None:
    """The repository that `hf:org/name[@revision]` or a short name stands for; None for a path."""
    if spec in ALIASES:
        return Repository(ALIASES[spec], None)
    found = REPOSITORY.fullmatch(spec)
    return Repository(found["name"], found["revision"]) if found else None


def fetch(repository: Repository, *, offline: bool = False) -> tuple[Path, tuple[str, ...]]:
    """A folder with the repository's files, and what to say about it.

    Args:
        repository: Which.
        offline: Use the cache alone.

    Raises:
        RequestError: There is no such repository or revision, or it may not be read.
        CheckpointError: It holds no model that is known, or is not cached and the hub cannot be
            reached.
    """
    spec = _spec(repository)
    try:
        if offline or constants.HF_HUB_OFFLINE:
            why = f"{spec} is not in the cache, and {_why_offline(offline)}"
            return _cached(repository, why), ()
        return _download(repository), ()
    except GatedRepoError as error:
        raise RequestError(
            f"{spec} may be read only by who accepted its terms. Accept them on "
            f"https://huggingface.co/{repository.name} and run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"the hub has no {spec}, or it is private. Check the name, or run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise RequestError(
            f"{repository.name} has no revision {repository.revision!r}. "
            f"Use a branch, tag or commit of https://huggingface.co/{repository.name}."
        ) from error
    except HFValidationError as error:
        raise RequestError(
            f"{spec} is no name of a repository. Write hf:org/name or hf:org/name@revision."
        ) from error
    except CheckpointError:
        raise
    except _unreachable() as error:
        why = f"{spec} cannot be fetched from {constants.ENDPOINT}: {_first_line(error)}."
        folder = _cached(repository, why)
        return folder, (f"{why} Using the copy in the cache.",)


def wanted_files(files: Iterable[str]) -> list[str]:
    """The files of one layout: its weights once, and all configs and vocabularies beside them, but
    for the marks of other layouts. config.json is no mark alone: all read it.

    Raises:
        CheckpointError: There is no layout among them that is known.
    """
    names = {name for name in files if "/" not in name}
    found = find_layout(names)
    if found:
        layout, weights = found
        others = {one.mark for one in (DIPTYCH, OPEN_CLIP) if one != layout}
        chosen = {name for name in names if name.endswith(SMALL)} - others
        chosen -= set(TRANSFORMERS.weights)
        chosen.add(weights)
        if weights.endswith(".index.json"):
            end = weights.removesuffix(".index.json").rpartition(".")[2]
            chosen |= {name for name in names if SHARD.fullmatch(name) and name.endswith(end)}
        return sorted(chosen)
    raise CheckpointError(
        f"among its files ({', '.join(sorted(names)) or 'none'}) is no model that Diptych knows: "
        "neither contract.json, open_clip_config.json nor config.json with weights. "
        "Use a repository of open_clip, transformers (CLIP or SigLIP) or Diptych."
    )


def _download(repository: Repository) -> Path:
    """Fetch what is not in the cache yet; every file of the same commit."""
    info = huggingface_hub.HfApi().model_info(
        repository.name, revision=repository.revision, timeout=10
    )
    try:
        names = wanted_files(sibling.rfilename for sibling in info.siblings or ())
    except CheckpointError as error:
        raise CheckpointError(f"{_spec(repository)}: {error}") from None
    folder = huggingface_hub.snapshot_download(
        repository.name, revision=repository.revision, allow_patterns=names, tqdm_class=None
    )
    return Path(folder)


def _cached(repository: Repository, why: str) -> Path:
    """The folder of the repository in the cache.

    Raises:
        CheckpointError: It is not there; begins with `why`.
    """
    for layout in LAYOUTS:
        found = huggingface_hub.try_to_load_from_cache(
            repository.name, layout.mark, revision=repository.revision
        )
        if isinstance(found, str):
            return Path(found).parent
    raise CheckpointError(
        f"{why} Connect to the network once, or copy the model's folder here and give its path."
    )


def _why_offline(asked: bool) -> str:
    """Who said that the hub is not to be asked."""
    if asked:
        return "--offline was asked for."
    name = next((name for name in SWITCHES if os.environ.get(name)), SWITCHES[0])
    return f"the variable {name} is set, so the hub was not asked. Unset it."


def _unreachable() -> tuple[type[Exception], ...]:
    """What the hub's library raises without a connection: with its HTTP client's own errors, and it
    changed that client."""
    clients = [
        base
        for base in HfHubHTTPError.__mro__
        if base.__name__ == "HTTPError" and issubclass(base, Exception)
    ]
    return (HfHubHTTPError, OfflineModeIsEnabled, OSError, *clients)


def _first_line(error: Exception) -> str:
    """What an error says first, without the full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _spec(repository: Repository) -> str:
    """As the user writes it."""
    revision = f"@{repository.revision}" if repository.revision else ""
    return f"hf:{repository.name}{revision}"
