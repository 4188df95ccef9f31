"""A trained change model as people use it: pictures in a row in, what the last one changed out.

    reader = diptych.load_change("runs/change")
    reader.read([["monday.png", "tuesday.png"]])[0].text
    stream = reader.stream()  # one picture at a time, at the cost of one picture
    stream.next("monday.png"), stream.next("tuesday.png")

`model.py` is the same for dual encoders; `compare.py` makes a `Change` with any model. The model
itself is in `models/change.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from diptych.checkpoint import Bundle, find_model, load_change_bundle
from diptych.data.pictures import to_rgb
from diptych.data.prepared import prepared
from diptych.data.transforms import ImageTransformConfig, evaluation_transform, normalise
from diptych.errors import CheckpointError, DataError, RequestError
from diptych.files import whole_file
from diptych.losses.change import answer_loss
from diptych.models.change import ChangeModel, Seen
from diptych.models.generation import beam, greedy, nucleus
from diptych.models.stateful_encoder import State
from diptych.predict.differences import seen_side
from diptych.predict.model import Picture, choose_device
from diptych.tensors import letters_of, load_tensors, save_tensors, text_of, weights_mark

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Change:
    """What a picture changed."""

    text: str
    """In words, as the model wrote or chose it; empty where it has none. A text that was written
    (`ChangeReader`) may contradict `score`, which is the surer of the two: a broken trace found
    with 0.99 and "no change" beside it. What is shown to people therefore begins with the score
    (`change_words.headline`). A text chosen among labels by a model of pairs follows the score."""

    score: float
    """How sure it is that something changed, in 0 to 1; from one half on it is said to have."""

    score_is: Literal["probability", "distance"]
    """What `score` means. "probability": that something changed, as a model trained for it gives.

    "distance": of a model of single pictures the hottest place of the map, which does not grow with
    how much of the picture changed: one new object counts as much as another picture. That is what
    the share of `heatmap` above one half tells. A trial with a model of Flickr8k: 0.03 to 0.07 for
    pictures saved again or brightened, above 0.6 for another object or another picture. Of a model
    of pairs without labels, half of 1 - cosine with the texts that say that nothing has changed."""

    heatmap: Float[np.ndarray, "rows columns"]
    """Where, in 0 to 1: one number for each patch of the last picture, as the model saw it."""

    labels: list[tuple[str, float]] = field(default_factory=list)
    """Texts that were offered, each with its probability, best first; by a model of single pictures
    (`compare.py`) each with how much more probable it became."""


class ChangeReader:
    """A change model with its preprocessing and tokenizer."""

    def __init__(self, bundle: Bundle[ChangeModel], path: Path, device: str = "cpu") -> None:
        self.path = path
        self.fingerprint = bundle.fingerprint
        """Changes with the weights and with any part of the preprocessing."""
        self.parameters: int = sum(weight.numel() for weight in bundle.model.parameters())
        """Numbers in the model."""
        self.notes: tuple[str, ...] = bundle.notes
        """What was assumed where the model's files did not say it."""
        self._bundle = bundle
        self._device = torch.device(device)
        self._net: ChangeModel = bundle.model.to(self._device).eval()

    @property
    def transform(self) -> ImageTransformConfig:
        """How pictures are prepared: size, resampling, normalisation."""
        return self._bundle.transform

    @property
    def seen_side(self) -> int:
        """Side of what heat maps lie over, in pixels from the upper left corner of a prepared
        picture; less than `transform.image_size` where the tower leaves out an edge."""
        return seen_side(self._net.config.image)

    def read(
        self,
        sequences: Iterable[Sequence[Picture]],
        *,
        beams: int = 1,
        top_p: float | None = None,
        seed: int = 0,
        chunk: int = 32,
    ) -> list[Change]:
        """What the last picture of each sequence changed: text, probability and heat map.

        Args:
            sequences: Pictures in a row, oldest first. One picture alone is compared with itself.
            beams: How many texts are continued side by side; 1 takes the likeliest token each time.
            top_p: Draw each token among the likeliest that make up this share, instead.
            seed: Of the draws.
            chunk: Sequences read at a time; changes no result but draws.

        Raises:
            RequestError: A sequence is empty or a picture itself, a file does not exist, or a value
                is out of range.
            DataError: A picture cannot be read.
        """
        write = self._writer(beams, top_p, seed)
        return self._each(sequences, lambda tokens: self._changes(tokens, write), chunk)

    def describe(
        self,
        sequences: Iterable[Sequence[Picture]],
        *,
        beams: int = 1,
        top_p: float | None = None,
        seed: int = 0,
        chunk: int = 32,
    ) -> list[str]:
        """The texts of `read`, alone."""
        write = self._writer(beams, top_p, seed)
        return self._each(sequences, lambda tokens: self._texts(tokens, write), chunk)

    def changed(
        self, sequences: Iterable[Sequence[Picture]], *, chunk: int = 32
    ) -> Float[np.ndarray, " sequences"]:
        """The probabilities of `read`, alone: that the last picture of each sequence changed
        anything."""

        def scores(tokens: Tensor) -> list[float]:
            return self._net.judge(tokens)[0].sigmoid().tolist()

        return np.array(self._each(sequences, scores, chunk), np.float32)

    def heatmap(
        self, sequences: Iterable[Sequence[Picture]], *, chunk: int = 32
    ) -> Float[np.ndarray, "sequences rows columns"]:
        """The heat maps of `read`, alone: for each patch of the last picture the probability that
        it changed."""

        def maps(tokens: Tensor) -> list[np.ndarray]:
            return list(self._net.judge(tokens)[1].sigmoid().cpu().numpy())

        side = self._net.config.image.side
        found = self._each(sequences, maps, chunk)
        return np.array(found, np.float32).reshape(-1, side, side)

    @torch.inference_mode()
    def foretold(
        self, sequences: Iterable[Sequence[Picture]], texts: Sequence[str], *, chunk: int = 32
    ) -> tuple[Float[np.ndarray, " texts"], Int64[np.ndarray, " texts"]]:
        """How badly the model would have foretold these texts, one for each sequence.

        Returns:
            For each text the sum over its tokens in nats, and how many tokens it has: the end
            counts, the start does not. exp(sum of sums / sum of counts) is the perplexity.

        Raises:
            RequestError: As `read`, or there are more or fewer texts than sequences.
        """
        rows = list(sequences)
        if len(rows) != len(texts):
            raise RequestError(
                f"there are {len(rows)} sequences and {len(texts)} texts. Give one text for each."
            )
        ids = torch.from_numpy(self._bundle.tokenizer.encode(texts)[0])
        sums, counts = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.int64)
        for places, tokens in self._tokens(rows, chunk):
            text = ids[places].to(self._device)
            logits = self._net.text(self._net.prefix(tokens), text)
            for place, one, row in zip(places, logits, text, strict=True):
                total, count = answer_loss(one[None], row[None], self._net.config.text.pad_token)
                sums[place], counts[place] = total.item(), int(count)
        return sums, counts

    def stream(self) -> "ChangeStream":
        """A row of pictures that come one by one; it costs one picture to see the next."""
        return ChangeStream(self)

    def prepare(self, picture: Picture) -> UInt8[np.ndarray, "size size 3"]:
        """What the model will see of a picture.

        Raises:
            DataError: The picture cannot be read.
        """
        return evaluation_transform(to_rgb(picture), self.transform)

    @torch.inference_mode()
    def _each(
        self,
        sequences: Iterable[Sequence[Picture]],
        work: Callable[[Tensor], Sequence[Result]],
        chunk: int,
    ) -> list[Result]:
        """What `work` makes of the tokens of each sequence."""
        found: dict[int, Result] = {}
        for places, tokens in self._tokens(list(sequences), chunk):
            found.update(zip(places, work(tokens), strict=True))
        return [found[place] for place in range(len(found))]

    def _tokens(
        self, sequences: Sequence[Sequence[Picture]], chunk: int
    ) -> Iterator[tuple[list[int], Float[Tensor, "rows kept tokens width"]]]:
        """The tokens of all sequences, those of one length together, and which ones they are."""
        for number, sequence in enumerate(sequences):
            _check_sequence(number, sequence)
        for length in sorted({len(sequence) for sequence in sequences}):
            places = [place for place, row in enumerate(sequences) if len(row) == length]
            pictures = chain.from_iterable(sequences[place] for place in places)
            waiting = iter(places)
            for part in prepared(pictures, self.prepare, chunk * length):
                pixels = self._normalised([_ready(found) for _, found in part])
                tokens = self._net.encode(pixels.unflatten(0, (-1, length)))
                yield [next(waiting) for _ in tokens], tokens

    def _normalised(
        self, pixels: Sequence[UInt8[np.ndarray, "size size 3"]]
    ) -> Float[Tensor, "images 3 size size"]:
        """What the model takes, on its device."""
        image = torch.from_numpy(np.stack(pixels)).to(self._device)
        return normalise(image, self.transform.mean, self.transform.std)

    def _writer(self, beams: int, top_p: float | None, seed: int) -> Callable[[Tensor], Tensor]:
        """From prefixes to token ids.

        Raises:
            RequestError: A value is out of range, or the two ways of choosing are mixed.
        """
        decoder = self._net.text
        if beams < 1:
            raise RequestError(f"beams is {beams}, and no text is continued. Use 1 or more.")
        if top_p is None:
            if beams == 1:
                return lambda prefix: greedy(decoder, prefix)
            return lambda prefix: beam(decoder, prefix, beams=beams)
        if beams > 1:
            raise RequestError(
                f"beams {beams} looks for the likeliest text, and top_p {top_p} draws one. "
                "Give one of the two."
            )
        if not 0 < top_p <= 1:
            raise RequestError(f"top_p is {top_p}, which is no share in (0, 1]. Use 0.9.")
        generator = torch.Generator(self._device).manual_seed(seed)
        return lambda prefix: nucleus(decoder, prefix, top_p=top_p, generator=generator)

    def _texts(
        self,
        tokens: Float[Tensor, "rows kept tokens width"],
        write: Callable[[Tensor], Tensor],
    ) -> list[str]:
        """What is written of each row."""
        ids = write(self._net.prefix(tokens))
        return [self._bundle.tokenizer.decode(row) for row in ids.tolist()]

    def _changes(
        self,
        tokens: Float[Tensor, "rows kept tokens width"],
        write: Callable[[Tensor], Tensor],
    ) -> list[Change]:
        """All that is said of each row."""
        changed, place = self._net.judge(tokens)
        scores, maps = changed.sigmoid().tolist(), place.sigmoid().cpu().numpy()
        rows = zip(self._texts(tokens, write), scores, maps, strict=True)
        return [Change(text, score, "probability", heat) for text, score, heat in rows]


class ChangeStream:
    """Pictures that come one by one: what each changed, and what is kept of those before."""

    def __init__(self, reader: ChangeReader) -> None:
        self._reader = reader
        self._seen: Seen | None = None

    @torch.inference_mode()
    def next(self, picture: Picture, *, beams: int = 1) -> Change:
        """What a picture changed; the same as `ChangeReader.read` says of all pictures up to it.

        The first picture has nothing to be compared with: no text, score 0, and a map of zeros.

        Raises:
            RequestError: The file does not exist, or `beams` is below 1.
            DataError: The picture cannot be read; the stream stands where it stood.
        """
        reader = self._reader
        write = reader._writer(beams, None, 0)
        ((_, found),) = next(iter(prepared([picture], reader.prepare, 1)))
        image = reader._normalised([_ready(found)])
        first = self._seen is None
        self._seen = reader._net.see(image, self._seen)
        if first:
            side = reader._net.config.image.side
            return Change("", 0.0, "probability", np.zeros((side, side), np.float32))
        return reader._changes(self._seen.tokens, write)[0]

    def save(self, path: str | Path) -> None:
        """Write what is kept to a safetensors file, to go on from later.

        Raises:
            RequestError: There was no picture yet.
            StorageError: The disk refused.
        """
        if self._seen is None:
            raise RequestError(
                "the stream has seen no picture, so there is nothing to keep. Call next first."
            )
        kept = {"tokens": self._seen.tokens}
        if self._seen.state is not None:
            kept |= self._seen.state.tensors()
        model, mark = letters_of(self._reader.fingerprint), letters_of(weights_mark(kept))
        kept |= {"model": model, "mark": mark}
        with whole_file(Path(path)) as aside:
            save_tensors(aside, kept)

    def load(self, path: str | Path) -> None:
        """Go on from where `save` was called.

        Raises:
            CheckpointError: The file is missing or damaged, or is of another model.
        """
        path, reader = Path(path), self._reader
        kept = load_tensors(path)
        model, mark = (text_of(kept.pop(name, None)) for name in ("model", "mark"))
        if model != reader.fingerprint:
            raise CheckpointError(
                f"{path} is no stream of the model {reader.fingerprint}: it says {model!r}. "
                "Load it with the model that saved it, or begin a new stream."
            )
        if mark != weights_mark(kept):
            raise CheckpointError(
                f"{path} was changed after it was saved. Copy the file again, or begin a new "
                "stream."
            )
        kept = {name: tensor.to(reader._device) for name, tensor in kept.items()}
        tokens = kept.pop("tokens")
        self._seen = Seen(tokens, State.of_tensors(kept) if kept else None)


def load_change(path: str | Path, *, device: str = "auto") -> ChangeReader:
    """Load a change model.

    Args:
        path: A run, or one of its checkpoints.
        device: "cpu", "cuda", "mps" (Apple), or "auto" for a GPU if there is one.

    Raises:
        RequestError: There is nothing there, or the model is of another kind.
        CheckpointError: It is no model, damaged, or was changed since it was saved.
    """
    folder = find_model(Path(path))
    return ChangeReader(load_change_bundle(folder), folder, choose_device(device))


def _check_sequence(number: int, sequence: object) -> None:
    """Refuse what is no row of pictures."""
    pixels = isinstance(sequence, np.ndarray) and sequence.ndim < 4
    if pixels or isinstance(sequence, str | bytes | Path | Image.Image):
        raise RequestError(
            f"sequence {number} is one picture ({type(sequence).__name__}) instead of a list of "
            "pictures. Give [[before, after]]."
        )
    if isinstance(sequence, Sized) and not len(sequence):
        raise RequestError(f"sequence {number} has no picture. Give [before, after].")


def _ready(found: np.ndarray | DataError) -> UInt8[np.ndarray, "size size 3"]:
    """A prepared picture, or the error it gave."""
    if isinstance(found, DataError):
        if isinstance(found.__context__, FileNotFoundError):
            raise RequestError(str(found)) from None
        raise found
    return found
