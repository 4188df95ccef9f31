"""What recipes let the trainer measure while it trains, beside the validation loss.

The trainer knows only callables; here the model is joined with its preprocessing and judged.
"""

from collections.abc import Mapping
from pathlib import Path

from diptych.checkpoint import Bundle
from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.source import Source
from diptych.data.tokenizer import Tokenizer
from diptych.errors import DataError, RequestError
from diptych.evaluate.change import judge_change
from diptych.evaluate.change_result import ChangeResult
from diptych.evaluate.judge import Settings
from diptych.evaluate.retrieval import judge_retrieval
from diptych.models.change import ChangeModel
from diptych.models.dual_encoder import DualEncoder
from diptych.models.kinds import AnyModel, reads_sequences
from diptych.predict.change import ChangeReader
from diptych.predict.model import Model
from diptych.train.loop import Evaluator
from diptych.train.run import Run

MOST_WRITTEN = 256
"""Most pairs that a model writes texts for each time: a text comes token by token."""


def evaluators_of(run: Run) -> dict[str, Evaluator]:
    """What is measured on the run's validation pairs, by name; nothing if it has none.

    Raises:
        RequestError: As of `recall_evaluator` and `change_evaluator`.
    """
    if run.data.val is None:
        return {}
    if reads_sequences(run.model):
        return {"change": change_evaluator(run)}
    return {"recall": recall_evaluator(run)}


def recall_evaluator(run: Run) -> Evaluator:
    """Recall both ways on the run's validation pairs; the number of bad pictures if there are any.

    Raises:
        RequestError: The run has no validation source, or one with fewer than two pictures.
    """
    if run.data.val is None:
        raise RequestError("recall needs pairs to judge on and data.val is None. Give --val.")
    source = open_source(run.data.val, run.data.val_options)
    _require_two_pictures(source, run.data.val_pairs)

    def evaluate(model: AnyModel, tokenizer: Tokenizer) -> Mapping[str, float]:
        assert isinstance(model, DualEncoder)
        device = str(next(model.parameters()).device)
        bundle = Bundle(model, tokenizer, run.data.transform, "in training")
        judged = judge_retrieval(
            Model(bundle, Path(), device), source, limit=run.data.val_pairs, resamples=2
        )
        to_image, to_text = judged.result.text_to_image, judged.result.image_to_text
        bad = {"bad_pictures": len(judged.bad)} if judged.bad else {}
        return {
            "text_to_image_recall@1": to_image.recall[1].value,
            "text_to_image_recall@10": to_image.recall[10].value,
            "image_to_text_recall@1": to_text.recall[1].value,
            "image_to_text_recall@10": to_text.recall[10].value,
            **bad,
        }

    return evaluate


def change_evaluator(run: Run) -> Evaluator:
    """What the model knows of the changes of the run's validation pairs.

    Recall both ways of a model with vectors; how often all of a text is right of one that writes;
    how well either tells pairs that changed, and points at the place. What the source does not say
    is left out.

    Raises:
        RequestError: The run has no validation source, one with fewer than two samples, or one of
            single pictures.
    """
    if run.data.val is None:
        raise RequestError("changes need pairs to judge on and data.val is None. Give --val.")
    source, limit = open_source(run.data.val, run.data.val_options), run.data.val_pairs
    _require_two_pictures(source, limit)
    if not source.sample(0).before:
        raise RequestError(
            f"{source.name} has no pictures before others, and {run.recipe} learns what changed. "
            "Give a --val of pairs, such as scenes:changes:val."
        )

    def evaluate(model: AnyModel, tokenizer: Tokenizer) -> Mapping[str, float]:
        device, transform = str(next(model.parameters()).device), run.data.transform
        if isinstance(model, ChangeModel):
            written = Bundle(model, tokenizer, transform, "in training")
            settings = Settings(limit=min(limit, MOST_WRITTEN), resamples=2)
            judged = judge_change(ChangeReader(written, Path(), device), source, settings)
        else:
            bundle = Bundle(model, tokenizer, transform, "in training")
            settings = Settings(limit=limit, resamples=2)
            judged = judge_change(Model(bundle, Path(), device), source, settings)
        assert isinstance(judged.result, ChangeResult)
        bad = {"bad_pairs": len(judged.bad)} if judged.bad else {}
        return _change_numbers(judged.result) | bad

    return evaluate


def _change_numbers(result: ChangeResult) -> dict[str, float]:
    """What goes into the log of a judgement of changes."""
    numbers: dict[str, float] = {}
    if result.retrieval is not None:
        ways = {"text_to_pair": result.retrieval.text_to_image}
        ways["pair_to_text"] = result.retrieval.image_to_text
        for name, way in ways.items():
            numbers |= {f"{name}_recall@{k}": way.recall[k].value for k in (1, 10)}
    if result.texts is not None:
        numbers["texts_all_right"] = result.texts.all_right.value
        numbers["perplexity"] = result.texts.perplexity.value
    if result.detection is not None:
        numbers["changed_auc"] = result.detection.auc.value
    if result.location is not None:
        numbers["place_auc"] = result.location.pixel_auc.value
    return numbers


def _require_two_pictures(source: Source, limit: int) -> None:
    """Refuse before training what could only be refused in the middle of it."""
    readable, reason = 0, ""
    for index in range(min(source.size or limit, limit)):
        try:
            sample = source.sample(index)
            for picture in (*sample.before, sample.picture):
                to_rgb(picture)
            readable += 1
        except DataError as error:
            reason = reason or f" ({error})"
        if readable == 2:
            return
    raise RequestError(
        f"{source.name} has {readable} picture that can be read{reason}, and recall needs at least "
        "2 to tell apart. Give another --val, or leave --val out."
    )
