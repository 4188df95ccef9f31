"""What changed between two pictures, in words, as a score and as a map: any kind of model.

    a ChangeReader                      its own text, probability and map (`change.py`)
    a model trained on pairs            the given text of a change that fits best
    a model of single pictures          no training on changes at all: where places differ
                                        (`differences.py`), and the labels that tell the two apart

`change_words.py` says the result in words, and `change_picture.py` draws it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from diptych.contract import is_change_model
from diptych.data.change_texts import SENTENCES
from diptych.data.prompts import check_labels, class_vectors
from diptych.errors import RequestError
from diptych.predict.change import Change, ChangeReader, load_change
from diptych.predict.model import Model, Picture, load
from diptych.pretrained.opening import find

NOTHING = (*SENTENCES["none"], "no change")
"""Texts that say that nothing has changed; their mean stands for all."""

LEAST_SHIFT = 0.01
"""A label that becomes more or less probable by less than this is not named."""


def compare(
    model: Model | ChangeReader | str | Path,
    before: Picture | Sequence[Picture],
    after: Picture,
    *,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    beams: int = 1,
) -> Change:
    """What changed between pictures.

    Args:
        model: What `load` or `load_change` gives, or the path of one.
        before: The picture before, or several, oldest first. A model of single pictures reads the
            last of them.
        after: The picture that is asked about.
        labels: For a model trained on pairs, texts of changes; for one of single pictures, words
            for what may be seen. None leaves the text out. A ChangeReader writes its own.
        templates: Texts with {} where a label goes; None takes the label as it is for a model
            trained on pairs, and `diptych.data.prompts.TEMPLATES` for one of single pictures.
        beams: Texts that a ChangeReader follows at a time; 1 takes the most probable word each
            time.

    Returns:
        A text, a score, a map. A model of single pictures gives a distance (0 for equal
        pictures), in `labels` by how much each became more probable, most first, and as text
        "more: X; less: Y" of the two that moved most. A model trained on pairs gives the
        probability of each label, best first; with pair "located" the score is the probability
        that anything changed. Otherwise it is that any label is truer than that nothing changed;
        without labels that nothing is not true (sigmoid models), or half of 1 - cosine with the
        texts that say so: a distance. Its text follows the score: the best label where that is
        one half or more, else "nothing has changed".

    Raises:
        RequestError: A file does not exist, there is no picture before, labels are wrong, or the
            model has no map (an image tower of timm).
        DataError: A picture cannot be read.
    """
    if isinstance(model, str | Path):
        model = load_any(model)
    earlier: list[Picture]
    if before is None or isinstance(before, Path | str | bytes | Image.Image | np.ndarray):
        earlier = [before]
    else:
        earlier = list(before)
    if not earlier or any(picture is None for picture in (*earlier, after)):
        missing = "after" if after is None else "before"
        raise RequestError(f"there is no picture {missing}. Give one, or a list of them.")
    sequence = [*earlier, after]
    if isinstance(model, ChangeReader):
        if labels is not None:
            raise RequestError(
                "this model writes its own texts, and labels are given too. Leave labels out."
            )
        return model.read([sequence], beams=beams)[0]
    if beams > 1:
        raise RequestError(
            f"beams is {beams}, and this model does not write texts, so there is nothing to "
            "follow. Leave beams out."
        )
    if model.pair == "none":
        return _without_training(model, sequence[-2:], labels, templates)
    return _as_trained(model, sequence, labels, templates)


def compare_row(
    model: Model | ChangeReader,
    pictures: Sequence[Picture],
    *,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    beams: int = 1,
) -> list[Change]:
    """What each picture of a row but the first changed: `compare` with all that come before it.

    Raises:
        RequestError: As `compare`, or there are fewer than two pictures.
        DataError: A picture cannot be read.
    """
    if len(pictures) < 2:
        raise RequestError(
            f"{len(pictures)} picture is given, and a change takes two. Give before and after."
        )
    if isinstance(model, ChangeReader) and labels is None:
        stream = model.stream()  # each picture is seen once
        return [stream.next(picture, beams=beams) for picture in pictures][1:]
    return [
        compare(
            model,
            pictures[:place],
            pictures[place],
            labels=labels,
            templates=templates,
            beams=beams,
        )
        for place in range(1, len(pictures))
    ]


def load_any(
    path: str | Path, *, device: str = "auto", offline: bool = False
) -> Model | ChangeReader:
    """A model of either kind, whichever it is; see `load`.

    Raises:
        RequestError: There is nothing there, or a name is unknown.
        CheckpointError: It is no model, damaged, or was changed since it was saved.
    """
    found, _ = find(path, offline=offline)
    if is_change_model(found):
        return load_change(found, device=device)
    return load(path, device=device, offline=offline)


def _without_training(
    model: Model,
    pair: Sequence[Picture],
    labels: Sequence[str] | None,
    templates: Sequence[str] | None,
) -> Change:
    """Two pictures as a model of single pictures sees them."""
    text = None if labels is None else _several(model, labels, templates)
    pixels = model.prepare_all(pair)
    heatmap = model.differences(pixels[None])[0]
    said, moved = "", list[tuple[str, float]]()
    if labels is not None and text is not None:
        logits = model.scale * (model.encode_prepared(pixels) @ text.T).astype(np.float64)
        before, after = _softmax(logits)
        shift = after - before
        order = np.argsort(-shift, kind="stable")
        moved = [(labels[place].strip(), float(shift[place])) for place in order]
        said = _more_and_less(moved)
    return Change(
        text=said,
        score=float(heatmap.max()),
        score_is="distance",
        heatmap=heatmap,
        labels=moved,
    )


def _several(
    model: Model, labels: Sequence[str], templates: Sequence[str] | None
) -> Float[np.ndarray, "labels embed"]:
    """Vectors of the labels, which are compared with each other.

    Raises:
        RequestError: There is only one.
    """
    if len(check_labels(labels)) == 1:
        raise RequestError(
            f"this model compares labels with each other, and {labels[0]!r} is the only one. "
            "Give two or more."
        )
    return class_vectors(model.encode_text, labels, templates)


def _more_and_less(moved: Sequence[tuple[str, float]]) -> str:
    """The labels that rose and fell most, where they moved at all."""
    (up, rise), (down, fall) = moved[0], moved[-1]
    parts = [f"more: {up}"] if rise >= LEAST_SHIFT else []
    parts += [f"less: {down}"] if -fall >= LEAST_SHIFT else []
    return "; ".join(parts)


def _as_trained(
    model: Model,
    sequence: Sequence[Picture],
    labels: Sequence[str] | None,
    templates: Sequence[str] | None,
) -> Change:
    """A sequence as a model trained on pairs sees it."""
    texts = [] if labels is None else list(check_labels(labels))
    vectors = [class_vectors(model.encode_text, texts, templates or ("{}",))] if texts else []
    pixels = model.prepare_all(sequence)[None]
    vector = model.encode_prepared_sequences(pixels)
    text = np.concatenate([*vectors, nothing_vector(model)])
    share = model.probabilities(vector, text)[0].astype(np.float64)
    found = sorted(zip(texts, share.tolist(), strict=False), key=lambda one: -one[1])
    if model.pair == "located":
        score = float(model.changed_prepared(pixels)[0])
    elif texts:
        logits = model.scale * (vector @ text.T).astype(np.float64)
        score = 1 - float(_softmax(logits)[0, -1])
    else:
        cosine = float((vector @ text.T)[0, 0])
        score = (1 - cosine) / 2 if model.bias is None else 1 - float(share[0])
    said = ""
    if texts:
        said = found[0][0] if score >= 0.5 else "nothing has changed"
    measured = bool(texts) or model.bias is not None or model.pair == "located"
    return Change(
        text=said,
        score=min(max(score, 0.0), 1.0),
        score_is="probability" if measured else "distance",
        heatmap=model.differences(pixels)[0],
        labels=found,
    )


def nothing_vector(model: Model) -> Float[np.ndarray, "1 embed"]:
    """The unit vector of "nothing has changed", said in several ways."""
    mean = model.encode_text(NOTHING).mean(axis=0, keepdims=True)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def _softmax(logits: Float[np.ndarray, "rows labels"]) -> Float[np.ndarray, "rows labels"]:
    """Shares of 1 in each row."""
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)
