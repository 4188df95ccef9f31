"""Small things to train and to judge, for the tests that need one."""

import numpy as np
import torch
from PIL import Image

from diptych.checkpoint import Bundle
from diptych.data.source import Sample
from diptych.data.tokenizer import Tokenizer
from diptych.models.dual_encoder import DualEncoder
from diptych.predict.model import Model
from diptych.recipes import find_recipe

WORDS = ("red", "blue", "green", "small", "large", "round", "square", "bright")

SHRINK = (
    *("model.embed=32", "model.image.width=32", "model.image.layers=1", "model.image.mlp_width=64"),
    *("model.text.width=32", "model.text.layers=1", "model.text.mlp_width=64"),
    *("model.text.vocabulary=400", "model.text.context=16", "data.workers=0"),
)
"""Settings that make the tiny recipes tinier."""


def picture_of(number, side=40):
    """A picture that no other number has: noise on a coloured ground."""
    random = np.random.default_rng(number)
    ground = random.integers(0, 256, 3)
    noise = random.integers(-40, 40, (side, side + 8, 3))
    return Image.fromarray(np.clip(ground + noise, 0, 255).astype(np.uint8))


def caption_of(number):
    """A caption that no other number has."""
    return f"{WORDS[number % 8]} {WORDS[number // 8 % 8]} thing number {number}"


def woken(model):
    """The model with every batch norm's gain above zero: those that start at zero hide a branch."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)
    return model


def picture_folder(folder, count, *, bad=()):
    """A folder of pictures with captions.csv; the numbers in `bad` are no pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["image,caption"]
    for number in range(count):
        path = folder / f"{number:03}.png"
        if number in bad:
            path.write_bytes(b"this is no picture")
        else:
            picture_of(number).save(path)
        rows.append(f"{path.name},{caption_of(number)}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def small_run(*settings, family="clip"):
    """Six steps of eight pairs on generated scenes, every step logged, in fp32."""
    return find_recipe(f"{family}-tiny").override(
        [
            *SHRINK,
            *("batch=8", "steps=6", "log_every=1", "validate_every=3", "precision=fp32"),
            *("data.source=scenes:shapes:val", "data.val=scenes:shapes:test", "data.val_pairs=24"),
            *settings,
        ]
    )


def random_model(tmp_path, *settings, family="clip"):
    """A model with the weights of its start, but for a scale that tells its scores apart."""
    config = small_run(*settings, family=family)
    tokenizer = Tokenizer.learn(
        map(caption_of, range(60)), vocabulary=400, context=config.model.text.context
    )
    text = {
        "vocabulary": tokenizer.vocabulary,
        "end_token": tokenizer.end_token,
        "pad_token": tokenizer.pad_token,
    }
    shape = config.model.model_copy(update={"text": config.model.text.model_copy(update=text)})
    torch.manual_seed(0)
    bundle = Bundle(DualEncoder(shape), tokenizer, config.data.transform, f"random {family}")
    return Model(bundle, tmp_path)


DIMENSIONS = 64


def number_in(text):
    return int(text.rpartition(" ")[2])


class Perfect:
    """Knows the number of each picture by its mean colour, and of each caption by its end."""

    fingerprint = "perfect"

    def __init__(self, pictures=()):
        self.marks = [self.mark(np.asarray(picture)) for picture in pictures]

    def mark(self, pixels):
        return tuple(pixels[:4, :4].ravel())

    def prepare(self, picture):
        return np.asarray(picture.crop((0, 0, 32, 32)))

    def encode_prepared(self, pixels):
        rows = [self.marks.index(self.mark(picture)) for picture in pixels]
        return np.eye(DIMENSIONS, dtype=np.float32)[rows]

    def encode_text(self, texts):
        return np.eye(DIMENSIONS, dtype=np.float32)[[number_in(text) for text in texts]]


class Constant(Perfect):
    """Gives everything the same vector."""

    fingerprint = "constant"

    def encode_prepared(self, pixels):
        return np.eye(DIMENSIONS, dtype=np.float32)[np.zeros(len(pixels), int)]

    def encode_text(self, texts):
        return np.eye(DIMENSIONS, dtype=np.float32)[np.zeros(len(texts), int)]


class Listed:
    """A source of given pictures, without end if so said."""

    name, notes, fingerprint = "listed", (), "listed fingerprint"

    def __init__(self, samples, *, endless=False):
        self.samples, self.size = samples, None if endless else len(samples)

    def captions(self, index):
        return self.sample(index).captions

    def sample(self, index):
        picture, captions = self.samples[index % len(self.samples)]
        return Sample(f"#{index}", picture, captions)


PICTURES = [picture_of(number) for number in range(24)]


def listed(count=24, **options):
    return Listed([(PICTURES[n], (f"this is {n}", f"also {n}")) for n in range(count)], **options)
