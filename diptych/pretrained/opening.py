"""Opening a model that anyone saved: ours, open_clip's, transformers', OpenAI's or big_vision's.

Which reader it takes is told by the files: a folder says what it is by their names (`layouts.py`),
an OpenAI archive by its tensors. Bare weights say nothing of how to feed them, and are refused
unless the caller names the architecture, whose contract is in `architectures.py`.

Readers, and the hub's library, are imported where they are used: all of them together take a third
of what importing `diptych.predict.model` takes beside torch (0.1 s and 4 MB), and a folder of our
own needs none.
"""

from pathlib import Path
from typing import Any

from diptych.checkpoint import Bundle, find_model, load_bundle, make_bundle
from diptych.errors import RequestError, nearest
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.timm_tower import TimmTowerConfig
from diptych.pretrained.foreign import Foreign
from diptych.pretrained.layouts import DIPTYCH, OPEN_CLIP, TRANSFORMERS, Layout, marked_layout
from diptych.pretrained.positions import Method, resize_positions

RESIZE: dict[str, Method] = {"transformers": "transformers", "big_vision": "big_vision"}
"""How the positions of a model are resized, by the library it is from; others as open_clip's."""


def open_model(
    spec: str | Path,
    *,
    architecture: str | None = None,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    offline: bool = False,
) -> Bundle:
    """Read a model.

    Args:
        spec: A folder that Diptych, open_clip or transformers wrote, the folder of a run, a file of
            weights, `hf:org/name[@revision]`, or a short name of `hub.ALIASES`.
        architecture: What bare weights are, in open_clip's spelling, such as "ViT-B-32-quickgelu".
        tokenizer: The vocabulary of bare weights that bring none: a spiece.model, a tokenizer.json
            or a folder with one. CLIP's is known.
        image_size: Side of the pictures in pixels, if not the model's own: positions are resized as
            the original library does.
        offline: Never ask the hub; use what is cached.

    Raises:
        RequestError: There is nothing there, or `architecture`, `tokenizer` or `image_size` does
            not go with what is there.
        CheckpointError: It is no model, incomplete, damaged, or of a kind that is not known.
    """
    if image_size is not None and image_size < 1:
        raise RequestError(
            f"image_size is {image_size}, and pictures have sides of at least 1 pixel. "
            "Use a number such as 224."
        )
    path, notes = find(spec, offline=offline)
    named = {"architecture": architecture, "tokenizer": tokenizer}
    if path.is_file():
        foreign = _read_file(path, architecture, Path(tokenizer) if tokenizer else None, image_size)
    else:
        for name, value in named.items():
            if value is not None:
                raise RequestError(
                    f"{path} is a folder that says itself what it is, and {name} {str(value)!r} is "
                    f"given too. Leave {name} out."
                )
        layout = _layout(path)
        if layout is None:
            return _our_own(path, image_size)
        if layout == OPEN_CLIP:
            from diptych.pretrained.open_clip import read_open_clip as read
        else:
            from diptych.pretrained.transformers import read_transformers as read
        foreign = read(path, image_size=image_size)
    return make_bundle(
        foreign.config,
        foreign.tensors,
        foreign.tokenizer,
        foreign.transform,
        made_by=foreign.made_by,
        notes=(*notes, *foreign.notes),
        path=path,
    )


def find(spec: str | Path, *, offline: bool = False) -> tuple[Path, tuple[str, ...]]:
    """The folder or file that `spec` stands for, fetched if need be, and what to say about it.

    A run becomes its last checkpoint. What lies on this machine goes before a short name.

    Raises:
        RequestError: There is nothing, here or on the hub.
        CheckpointError: The hub cannot be reached, or a folder holds no model.
    """
    path = Path(spec)
    if not _is_there(path):
        from diptych.pretrained.hub import ALIASES, fetch, repository_of

        repository = repository_of(str(spec))
        if repository is not None:
            return fetch(repository, offline=offline)
        raise RequestError(
            f"there is no model in {spec}: nothing is there. Check the path, write hf:org/name, or "
            f"use a short name. {nearest(str(spec), ALIASES)}"
        )
    if path.is_file() or _layout(path) is not None:
        return path, ()
    return find_model(path), ()


def _is_there(path: Path) -> bool:
    """Whether there is a file or a folder.

    Raises:
        RequestError: It cannot be known: the name is too long for a path, a folder may not be read.
    """
    try:
        return path.exists()
    except OSError as error:
        raise RequestError(
            f"there is no model in {path!s:.100}: {error.strerror}. Check the path."
        ) from error


def _layout(folder: Path) -> Layout | None:
    """Of which other library a folder is; None: ours, or none.

    Raises:
        RequestError: The folder may not be read.
        CheckpointError: It may be of transformers, and its config.json cannot be read.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {error.strerror}. Check the path.") from error
    found = marked_layout(names)
    if found == TRANSFORMERS:
        from diptych.pretrained.transformers import is_transformers

        if not is_transformers(folder):
            return OPEN_CLIP if OPEN_CLIP.mark in names else None
    return None if found == DIPTYCH else found


def _our_own(folder: Path, image_size: int | None) -> Bundle:
    """A model that Diptych wrote, for pictures of another size if that is asked for.

    Raises:
        RequestError: Its tower has no positions that could be resized.
    """
    bundle = load_bundle(folder)
    if image_size in (None, bundle.transform.image_size):
        return bundle
    config, tensors = bundle.model.config, bundle.model.state_dict()
    if isinstance(config.image, TimmTowerConfig):
        remedy = "Leave image_size out"
        if bundle.made_by != "diptych":
            remedy += f", or open the model of {bundle.made_by} that it was converted from with it"
        raise RequestError(
            f"{folder} has an image tower of timm for {config.image.image_size} px, and Diptych "
            f"cannot resize such a tower to {image_size} px. {remedy}."
        )
    values: dict[str, Any] = {**config.image.model_dump(), "image_size": image_size}
    image: ImageTowerConfig | ResNetTowerConfig
    if isinstance(config.image, ImageTowerConfig):
        values["cut_edge"] = image_size % config.image.patch_size != 0
        image = ImageTowerConfig(**values)
        name, grid = "image.positions", image_size // image.patch_size
    else:
        image = ResNetTowerConfig(**values)
        name, grid = "image.pool.positions", image_size // image.stride
    if name in tensors:
        method = RESIZE.get(bundle.made_by, "open_clip")
        tensors[name] = resize_positions(tensors[name], grid, method=method)
    return make_bundle(
        config.model_copy(update={"image": image}),
        tensors,
        bundle.tokenizer,
        bundle.transform.model_copy(update={"image_size": image_size}),
        made_by=bundle.made_by,
        notes=bundle.notes,
        path=folder,
    )


def _read_file(
    path: Path, architecture: str | None, tokenizer: Path | None, image_size: int | None
) -> Foreign:
    """Weights in a single file.

    Raises:
        CheckpointError: They are bare, and no architecture is named.
    """
    from diptych.pretrained.architectures import read_named, refuse_bare
    from diptych.pretrained.big_vision import read_big_vision
    from diptych.pretrained.openai import is_openai, read_openai
    from diptych.pretrained.weights import read_weights

    if path.suffix == ".npz" and architecture is not None:
        return read_big_vision(path, architecture, tokenizer=tokenizer, image_size=image_size)
    if architecture is not None:
        return read_named(path, architecture, tokenizer=tokenizer, image_size=image_size)
    if path.suffix == ".npz":
        raise refuse_bare(path)
    tensors = read_weights(path)
    if is_openai(tensors):
        return read_openai(path, tensors=tensors, image_size=image_size)
    raise refuse_bare(path)
