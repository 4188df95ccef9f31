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
from diptych.evaluate.retrieval import judge_retrieval
from diptych.models.dual_encoder import DualEncoder
from diptych.predict.model import Model
from diptych.train.loop import Evaluator
from diptych.train.run import Run


def recall_evaluator(run: Run) -> Evaluator:
    """Recall both ways on the run's validation pairs; the number of bad pictures if there are any.

    Raises:
        RequestError: The run has no validation source, or one with fewer than two pictures.
    """
    if run.data.val is None:
        raise RequestError("recall needs pairs to judge on and data.val is None. Give --val.")
    source = open_source(run.data.val, run.data.val_options)
    _require_two_pictures(source, run.data.val_pairs)

    def evaluate(model: DualEncoder, tokenizer: Tokenizer) -> Mapping[str, float]:
        device = str(next(model.parameters()).device)
        bundle = Bundle(model, tokenizer, run.data.transform, fingerprint="in training")
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


def _require_two_pictures(source: Source, limit: int) -> None:
    """Refuse before training what could only be refused in the middle of it."""
    readable, reason = 0, ""
    for index in range(min(source.size or limit, limit)):
        try:
            to_rgb(source.sample(index).picture)
            readable += 1
        except DataError as error:
            reason = reason or f" ({error})"
        if readable == 2:
            return
    raise RequestError(
        f"{source.name} has {readable} picture that can be read{reason}, and recall needs at least "
        "2 to tell apart. Give another --val, or leave --val out."
    )
