"""Small models of every kind that compares pictures, with random weights."""

import torch
from small import random_model
from small_change import change_run, woken_state

from diptych.checkpoint import Bundle, save_bundle
from diptych.data.tokenizer import Tokenizer
from diptych.models.change import ChangeModel
from diptych.predict.change import ChangeReader

STATE = "model.image.state=cross_ffn"
PROJECTED = ("model.image.pool=mean", "model.image_projection=true")
PAIRS = {
    "located": ('model.pair="located"', STATE, *PROJECTED),
    "located, no state": ('model.pair="located"', *PROJECTED),
    "difference": ('model.pair="difference"',),
    "difference, state": ('model.pair="difference"', STATE),
    "concatenation": ('model.pair="concatenation"', *PROJECTED),
}


def pair_model(tmp_path, pair="located", family="clip", settings=()):
    model = random_model(tmp_path, *PAIRS[pair], *settings, family=family)
    woken_state(model._net)
    return model


def reader_of(tmp_path):
    """A model that writes, with the weights of its start."""
    config = change_run(recipe="change-caption-tiny")
    tokenizer = Tokenizer.learn(["a red ball.", "nothing has changed."], vocabulary=300, context=24)
    names = ("vocabulary", "end_token", "pad_token")
    text = config.model.text.model_copy(
        update={name: getattr(tokenizer, name) for name in names}
        | {"start_token": int(tokenizer.encode([""])[0][0, 0])}
    )
    torch.manual_seed(0)
    model = ChangeModel(config.model.model_copy(update={"text": text}))
    return ChangeReader(Bundle(model, tokenizer, config.data.transform, "reader"), tmp_path)


def saved(model, folder):
    """The folder of a model that is written there."""
    folder.mkdir()
    bundle = model._bundle
    save_bundle(folder, bundle.model, bundle.tokenizer, bundle.transform)
    return folder
