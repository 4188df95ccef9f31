"""A trained model as people use it: pictures and texts in, arrays out.

An item's vector is the same alone and in any batch (float32: to 1e-5). Preprocessing comes from
the model's contract; there is nothing to choose. `embed.py` does whole sources to disk,
`compare.py` tells what changed between pictures.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.checkpoint import Bundle
from diptych.data.calibration import Calibration, read_calibration
from diptych.data.pictures import to_rgb
from diptych.data.prepared import parts, prepared
from diptych.data.prompts import class_vectors
from diptych.data.tokenizer import trim
from diptych.data.transforms import ImageTransformConfig, evaluation_transform, normalise
from diptych.errors import DataError, RequestError
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.timm_tower import TimmTowerConfig
from diptych.predict.differences import change_map, seen_side
from diptych.pretrained.opening import find, open_model

Picture = Path | str | bytes | Image.Image | np.ndarray
"""A file, encoded bytes, a PIL picture, or uint8 pixels (height, width[, 3 or 4])."""


class Model:
    """A dual encoder with its preprocessing and tokenizer."""

    def __init__(self, bundle: Bundle, path: Path, device: str = "cpu") -> None:
        self.path = path
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

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the weights and with any part of the preprocessing."""
        return self._bundle.fingerprint

    def encode_image(
        self, images: Iterable[Picture], *, chunk: int = 64
    ) -> Float[np.ndarray, "images embed"]:
        """Unit vectors of pictures.

        Args:
            images: Files, encoded bytes, PIL pictures or uint8 arrays.
            chunk: Pictures encoded at a time; changes no result.

        Raises:
            RequestError: `images` is one picture instead of a list, a file does not exist, `chunk`
                is below 1, or the model reads sequences of pictures.
            DataError: A picture cannot be read.
        """
        _check_list(images, "pictures", "encode_image")
        vectors = [self._image_vectors(part) for part in self._decoded(images, chunk)]
        return np.concatenate([np.zeros((0, self.embed), np.float32), *vectors])

    def encode_sequences(
        self, sequences: Iterable[Sequence[Picture]], *, chunk: int = 32
    ) -> Float[np.ndarray, "sequences embed"]:
        """Unit vectors of what the last picture of each sequence changed.

        A model of single pictures (`pair` is "none") was not trained for it: of such a one this is
        vector(last picture) - vector(the one before), made a unit vector, or zeros where both are
        the same.

        Args:
            sequences: Two or more pictures each, oldest first.
            chunk: Sequences encoded at a time; changes no result.

        Raises:
            RequestError: A sequence has fewer than two pictures or is a picture itself, a file
                does not exist, or `chunk` is below 1.
            DataError: A picture cannot be read.
        """
        rows = [list(sequence) for sequence in _checked_sequences(sequences)]
        vectors = np.zeros((len(rows), self.embed), np.float32)
        for length in sorted({len(row) for row in rows}):
            places = [place for place, row in enumerate(rows) if len(row) == length]
            pictures = [picture for place in places for picture in rows[place]]
            parts_of_them = [
                self.encode_prepared_sequences(_in_sequences(part, length))
                for part in self._decoded(pictures, chunk * length)
            ]
            vectors[places] = np.concatenate(parts_of_them)
        return vectors

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

    def prepare_all(self, pictures: Sequence[Picture]) -> UInt8[np.ndarray, "images size size 3"]:
        """`prepare` of several pictures, at least one.

        Raises:
            RequestError: A file does not exist.
            DataError: A picture cannot be read.
        """
        return np.stack(next(self._decoded(pictures, len(pictures))))

    @property
    def pair(self) -> str:
        """What becomes the vector of a sequence, "none" for a model of single pictures; see
        `DualEncoderConfig.pair`."""
        return self._bundle.model.config.pair

    @torch.inference_mode()
    def encode_prepared(
        self, pixels: UInt8[np.ndarray, "images size size 3"]
    ) -> Float[np.ndarray, "images embed"]:
        """Unit vectors of pictures that went through `prepare`.

        Raises:
            RequestError: The model reads sequences of pictures.
        """
        if self.pair != "none":
            raise RequestError(
                f"this model reads pictures and those before them (pair {self.pair!r}), so a "
                "single picture has no vector and cannot be embedded, indexed or classified. Use "
                "`diptych compare` or `diptych evaluate --task change`, or in Python "
                "encode_sequences."
            )
        return self._net.encode_image(self._normalised(pixels)).cpu().numpy()

    @torch.inference_mode()
    def encode_prepared_sequences(
        self, pixels: UInt8[np.ndarray, "sequences images size size 3"]
    ) -> Float[np.ndarray, "sequences embed"]:
        """`encode_sequences` of pictures that went through `prepare`; as many in each sequence."""
        if self.pair == "none":
            last_two = self.encode_prepared(pixels[:, -2:].reshape(-1, *pixels.shape[2:]))
            difference = torch.from_numpy(last_two[1::2] - last_two[::2])
            return F.normalize(difference, dim=1).numpy()
        return self._net.encode_image(self._sequences(pixels)).cpu().numpy()

    @property
    def has_places(self) -> bool:
        """Whether it has `differences`; models with an image tower of timm have none."""
        return not isinstance(self._bundle.model.config.image, TimmTowerConfig)

    @property
    def seen_side(self) -> int:
        """Side of what `differences` lie over, in pixels from the upper left corner of a prepared
        picture; less than `transform.image_size` where the tower leaves out an edge."""
        return seen_side(self._bundle.model.config.image)

    @torch.inference_mode()
    def changed_prepared(
        self, pixels: UInt8[np.ndarray, "sequences images size size 3"]
    ) -> Float[np.ndarray, " sequences"]:
        """How probable it is that the last picture of each sequence changed anything, as a model
        with pair "located" learned it. Pictures went through `prepare`; as many in each sequence.
        """
        return self._net.locate(self._sequences(pixels)).changed.sigmoid().cpu().numpy()

    @torch.inference_mode()
    def differences(
        self, pixels: UInt8[np.ndarray, "sequences images size size 3"]
    ) -> Float[np.ndarray, "sequences rows columns"]:
        """Where the last picture of each sequence differs from those before, in 0 to 1: as a model
        with pair "located" learned it, else see `differences.py`. Pictures went through `prepare`;
        as many in each sequence.

        Raises:
            RequestError: The image tower has no vectors of places, such as one of timm.
        """
        image = self._sequences(pixels)
        if self.pair == "located":
            place = self._net.locate(image).place.sigmoid()
            tower = self._bundle.model.config.image
            assert isinstance(tower, ImageTowerConfig)  # the only one with vectors of places
            side = tower.side
            return place.unflatten(1, (side, side)).cpu().numpy()
        return change_map(self._net.image, image).cpu().numpy()

    def _sequences(
        self, pixels: UInt8[np.ndarray, "sequences images size size 3"]
    ) -> Float[Tensor, "sequences images 3 size size"]:
        """What the tower takes of sequences, on its device."""
        image = self._normalised(pixels.reshape(-1, *pixels.shape[2:]))
        return image.unflatten(0, pixels.shape[:2])

    def _normalised(
        self, pixels: UInt8[np.ndarray, "images size size 3"]
    ) -> Float[Tensor, "images 3 size size"]:
        """What the tower takes, on its device."""
        transform = self._bundle.transform
        return normalise(torch.from_numpy(pixels).to(self._device), transform.mean, transform.std)

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


def _checked_sequences(sequences: Iterable[Sequence[Picture]]) -> Iterator[Sequence[Picture]]:
    """The sequences, each a list of two pictures or more."""
    for number, sequence in enumerate(sequences):
        _check_list(sequence, "pictures in each sequence", "encode_sequences")
        if len(sequence) < 2:
            raise RequestError(
                f"sequence {number} has {len(sequence)} picture, and a change takes two. "
                "Give [before, after]."
            )
        yield sequence


def _in_sequences(
    pictures: Sequence[UInt8[np.ndarray, "size size 3"]], length: int
) -> UInt8[np.ndarray, "sequences images size size 3"]:
    """Pictures that follow each other, `length` to a sequence."""
    pixels = np.stack(pictures)
    return pixels.reshape(-1, length, *pixels.shape[1:])


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
