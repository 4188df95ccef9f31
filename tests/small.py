"""Small things to train and to judge, for the tests that need one."""

import numpy as np
import torch
from PIL import Image

from diptych.checkpoint import Bundle
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
