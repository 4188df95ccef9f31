"""A trained model as people use it: pictures and texts in, arrays out.

An item's vector is the same alone and in any batch (float32: to 1e-5). Preprocessing comes from
the model's contract; there is nothing to choose. `embed.py` does whole sources to disk.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from diptych.checkpoint import Bundle
from diptych.data.calibration import Calibration, read_calibration
from diptych.data.pictures import to_rgb
from diptych.data.prepared import parts, prepared
from diptych.data.prompts import class_vectors
from diptych.data.tokenizer import trim
from diptych.data.transforms import ImageTransformConfig, evaluation_transform, normalise
from diptych.errors import DataError, RequestError
from diptych.pretrained.opening import find, open_model

Picture = Path | str | bytes | Image.Image | np.ndarray
"""A file, encoded bytes, a PIL picture, or uint8 pixels (height, width[, 3 or 4])."""


class Model:
    """A dual encoder with its preprocessing and tokenizer."""

    def __init__(self, bundle: Bundle, path: Path, device: str = "cpu") -> None:
        self.path = path
        self.fingerprint = bundle.fingerprint
        """Changes with the weights and with any part of the preprocessing."""
        self.embed: int = bundle.model.config.embed
        """Dimensions of the vectors."""
        self.objective: str = bundle.model.config.objective
        """What a score means: "softmax" over the texts, or "sigmoid" for each pair."""
        self.parameters: int = sum(weight.numel() for weight in bundle.model.parameters())
        """Numbers in the model."""
        self.notes: tuple[str, ...] = bundle.notes
        """What was assumed where the model's files did not say it."""
        self._bundle = bundle
        self._device = torch.device(device)
        self._net = bundle.model.to(self._device).eval()
        self._trims = bundle.model.config.text.pool != "last"

    def encode_image(
        self, images: Iterable[Picture], *, chunk: int = 64
    ) -> Float[np.ndarray, "images embed"]:
        """Unit vectors of pictures.

        Args:
            images: Files, encoded bytes, PIL pictures or uint8 arrays.
            chunk: Pictures encoded at a time; changes no result.

        Raises:
            RequestError: `images` is one picture instead of a list, a file does not exist, or
                `chunk` is below 1.
            DataError: A picture cannot be read.
        """
        _check_list(images, "pictures", "encode_image")
        vectors = [self._image_vectors(part) for part in self._decoded(images, chunk)]
        return np.concatenate([np.zeros((0, self.embed), np.float32), *vectors])

    def encode_text(
        self, texts: Iterable[str], *, chunk: int = 256
    ) -> Float[np.ndarray, "texts embed"]:
        """Unit vectors of texts; what is longer than the context loses its end.

        Raises:
            RequestError: `texts` is one string instead of a list or holds something else than
                strings, or `chunk` is below 1.
        """
        _check_list(texts, "texts", "encode_text")
        vectors = [self._text_vectors(_only_texts(part)) for part in parts(texts, chunk)]
        return np.concatenate([np.zeros((0, self.embed), np.float32), *vectors])

    def score(
        self, images: Iterable[Picture], texts: Iterable[str]
    ) -> Float[np.ndarray, "images texts"]:
        """Probabilities, as the model was trained: softmax over `texts`, or a sigmoid per pair."""
        return self.probabilities(self.encode_image(images), self.encode_text(texts))

    def classify(
        self,
        images: Iterable[Picture],
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Which label each picture goes with best, without any training on the labels.

        Args:
            images: Files, encoded bytes, PIL pictures or uint8 arrays.
            labels: Different from each other, at least one.
            templates: Texts with {} where the label goes; the mean over them stands for the label.
                None takes `diptych.data.prompts.TEMPLATES`.

        Returns:
            For each picture every label with its probability, best first: softmax over the labels,
            or for sigmoid models each label on its own. A softmax over one label is always 1.

        Raises:
            RequestError: `images` is one picture instead of a list, there is no label, one is
                blank or given twice, or a template has no place for the label.
            DataError: A picture cannot be read.
        """
        text = class_vectors(self.encode_text, labels, templates)
        return best_first(self.probabilities(self.encode_image(images), text), labels)

    def is_true(
        self,
        images: Iterable[Picture],
        texts: Iterable[str],
        calibration: str | Path | Calibration,
    ) -> Float[np.ndarray, "images texts"]:
        """How probable it is that a text is true of a picture, each pair on its own.

        Args:
            images: Files, encoded bytes, PIL pictures or uint8 arrays.
            texts: Each is asked of every picture.
            calibration: The result file of `diptych evaluate --task calibration`, or the
                `calibration` of its result. It says at which share of true pairs it was fitted.

        Returns:
            Calibrated probabilities in 0 to 1; rows are pictures, columns texts.

        Raises:
            RequestError: The calibration cannot be read or belongs to another model, or `images`
                or `texts` is one item instead of a list.
            DataError: A picture cannot be read.
        """
        if not isinstance(calibration, Calibration):
            calibration = read_calibration(Path(calibration))
        if calibration.model_fingerprint != self.fingerprint:
            raise RequestError(
                f"the calibration belongs to the model {calibration.model_fingerprint}, and this "
                f"is {self.fingerprint}. Write one for this model: diptych evaluate "
                f"{self.path} --task calibration --data SOURCE --out FILE."
            )
        cosine = self.encode_image(images) @ self.encode_text(texts).T
        return calibration.probability(cosine)

    def tokenize(self, texts: Sequence[str]) -> tuple[Int64[np.ndarray, "texts context"], int]:
        """Token ids of texts, padded to the model's context, and how many texts were too long for
        it and lost their end."""
        return self._bundle.tokenizer.encode(texts)

    @property
    def transform(self) -> ImageTransformConfig:
        """How pictures are prepared: size, resampling, normalisation."""
        return self._bundle.transform

    @property
    def scale(self) -> float:
        """Multiplier of the cosine (the inverse temperature)."""
        return self._net.log_scale.exp().item()

    @property
    def bias(self) -> float | None:
        """Added to the scaled cosine; None for softmax models."""
        return None if self._net.bias is None else self._net.bias.item()

    def probabilities(
        self, image: Float[np.ndarray, "images embed"], text: Float[np.ndarray, "texts embed"]
    ) -> Float[np.ndarray, "images texts"]:
        """`score` for vectors that are there already."""
        logits = torch.from_numpy(self.scale * (image @ text.T))
        if self.bias is None:
            return logits.softmax(dim=1).numpy()
        return (logits + self.bias).sigmoid().numpy()

    def prepare(self, picture: Picture) -> UInt8[np.ndarray, "size size 3"]:
        """What the model will see of a picture.

        Raises:
            DataError: The picture cannot be read.
        """
        return evaluation_transform(to_rgb(picture), self._bundle.transform)

    @torch.inference_mode()
    def encode_prepared(
        self, pixels: UInt8[np.ndarray, "images size size 3"]
    ) -> Float[np.ndarray, "images embed"]:
        """Unit vectors of pictures that went through `prepare`."""
        transform = self._bundle.transform
        image = normalise(torch.from_numpy(pixels).to(self._device), transform.mean, transform.std)
        return self._net.encode_image(image).cpu().numpy()

    def _image_vectors(self, part: Sequence[np.ndarray]) -> Float[np.ndarray, "images embed"]:
        """Unit vectors of one chunk of prepared pictures."""
        return self.encode_prepared(np.stack(part))

    @torch.inference_mode()
    def _text_vectors(self, texts: Sequence[str]) -> Float[np.ndarray, "texts embed"]:
        """Unit vectors of one chunk of texts; padding that all of them share is cut off."""
        tokenizer = self._bundle.tokenizer
        ids, _ = tokenizer.encode(texts)
        if self._trims:
            ids = trim(ids, tokenizer.pad_token, tokenizer.end_token)
        vectors: Tensor = self._net.encode_text(torch.from_numpy(ids).to(self._device))
        return vectors.cpu().numpy()

    def _decoded(self, images: Iterable[Picture], chunk: int) -> Iterator[list[np.ndarray]]:
        """Prepared pictures in chunks; the next ones are decoded while the model works."""
        for part in prepared(images, self.prepare, chunk):
            pixels = []
            for _, ready in part:
                if isinstance(ready, DataError):
                    if isinstance(ready.__context__, FileNotFoundError):
                        raise RequestError(str(ready)) from None
                    raise ready
                pixels.append(ready)
            yield pixels


def load(
    path: str | Path,
    *,
    device: str = "auto",
    architecture: str | None = None,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    offline: bool = False,
) -> Model:
    """Load a model.

    Args:
        path: A run or one of its checkpoints, a folder of open_clip or transformers, a file of
            weights, `hf:org/name[@revision]`, or a short name such as "clip-b32"
            (`diptych/pretrained/hub.py`).
        device: "cpu", "cuda", "mps" (Apple), or "auto" for a GPU if there is one.
        architecture: What bare weights are, in open_clip's spelling, such as "ViT-B-32-quickgelu".
        tokenizer: Vocabulary of bare weights that bring none: a spiece.model, or a folder.
        image_size: Side of the pictures in pixels, if not the model's own: its positions are
            resized as the library that made it does.
        offline: Never ask the hub; use what is cached.

    Raises:
        RequestError: There is nothing there, or a name is unknown.
        CheckpointError: It is no model, damaged, or was changed since it was saved; or bare weights
            come without an architecture.
    """
    found, notes = find(path, offline=offline)
    bundle = open_model(
        found, architecture=architecture, tokenizer=tokenizer, image_size=image_size
    )
    bundle = replace(bundle, notes=(*notes, *bundle.notes)) if notes else bundle
    return Model(bundle, found, choose_device(device))


def choose_device(name: str) -> str:
    """The device to use: the one named, or the best one there is.

    Raises:
        RequestError: It is none of auto, cpu, cuda and mps, or is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if name not in there:
        raise RequestError(f"there is no device {name!r}. Use auto, cpu, cuda or mps.")
    if not there[name]:
        raise RequestError(
            f"torch sees no {name.upper()} device on this machine. Use --device cpu."
        )
    return name


def best_first(
    probability: Float[np.ndarray, "images labels"], labels: Sequence[str]
) -> list[list[tuple[str, float]]]:
    """For each picture every label with its probability; of equal ones the earlier label first."""
    orders = np.argsort(-probability, axis=1, kind="stable")
    return [
        [(labels[place].strip(), float(row[place])) for place in order]
        for row, order in zip(probability, orders, strict=True)
    ]


def _check_list(items: object, what: str, where: str) -> None:
    """Refuse one item where a list belongs: a string would be read letter by letter, and an
    array row by row."""
    one_array = isinstance(items, np.ndarray) and items.dtype == np.uint8 and items.ndim < 4
    if one_array or isinstance(items, str | bytes | Path | Image.Image):
        raise RequestError(
            f"{where} takes a list of {what} and was given one {type(items).__name__}. "
            "Put it in a list."
        )


def _only_texts(items: Sequence[object]) -> list[str]:
    """The items, all of them strings."""
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        wrong = next(item for item in items if not isinstance(item, str))
        raise RequestError(
            f"encode_text takes strings and was given {wrong!r:.40} ({type(wrong).__name__}). "
            "Write it as text, such as str(value), or leave it out."
        )
    return texts
