"""Changing a trained model with a few pairs of one's own, without losing what it can do.

    diptych train finetune --from MODEL --data photos/ --val more-photos/ --out runs/mine

Model, tokenizer and preparation of pictures are those of MODEL (`train/start.py`). `suited` is the
one place that says how rate, batch and length follow from the number of pairs and the model.
Any other recipe can be given too: then its rate, batch and length hold.
"""

import math

from diptych.data.augment import AugmentConfig
from diptych.recipes.clip import clip_small
from diptych.train.run import FinetuneConfig, OptimizerConfig, Run

NAMES = ("finetune", "change-finetune")
"""Recipes whose rate, batch and length follow from the number of pairs."""

RATE = 0.1
"""Highest rate times the width of the model, at `FULL_BATCH`. CLIP was trained at 0.4 / width (5e-4
at 768, 4e-4 at 1,024; arXiv:2103.00020, from memory of the paper's table): a quarter of it for the
top layers, and by layer_decay far less below. That is 1.3e-4 for ViT-B and 1e-4 for ViT-L at the
top. A choice of ours."""

LORA_FACTOR = 3
"""Adapters move slowly at first, since B begins at zero, and are given higher rates than weights:
about ten times for language models (Schulman et al., LoRA Without Regret, 2025; from memory). At
ten times a small residual network fell to chance (docs/decisions.md), so less here, untuned."""

FULL_BATCH, LEAST_BATCH = 256, 8
"""Pairs per step where there are enough of them; with fewer the rate falls with the root of the
batch (Malladi et al., arXiv:2205.10287, from memory)."""

FEWEST_STEPS_PER_EPOCH = 8
"""A batch is at most such a part of the pairs: larger ones hold most of the source at once and give
too few steps."""

EPOCHS, SMALL = 10.0, 10_000
"""Passes over a source of up to SMALL pairs; above it fewer, so that the same number of pairs is
seen, but one at least."""


def finetune() -> Run:
    """Fine-tuning: from a trained model on up to 10,000 pairs; keeps what it could do before."""
    return Run(
        recipe="finetune",
        model=clip_small().model,  # that of --from takes its place
        data=clip_small().data.model_copy(update={"augment": AugmentConfig()}),
        optimizer=OptimizerConfig(
            lr=1e-4,
            # Towards zero is away from the start. SigLIP trains best without decay of pretrained
            # image weights (arXiv:2303.15343, from memory).
            weight_decay=0.0,
            # The running square of the gradients is not known yet, and the first steps from a good
            # place can do the most harm.
            warmup=0.1,
        ),
        finetune=FinetuneConfig(layer_decay=0.75),
        batch=FULL_BATCH,
        epochs=EPOCHS,
    )


def suited(run: Run, pairs: int | None, batch: int | None = None) -> Run:
    """This recipe's run with a rate, a batch and a length that suit its model and so many pairs.

    Args:
        run: With the model it begins with; of another recipe it comes back as it is.
        pairs: Of the training source; None for one without end.
        batch: Pairs per step if that was asked for.
    """
    if run.recipe not in NAMES or run.finetune is None:
        return run
    if batch is None:
        most = FULL_BATCH if pairs is None else pairs // FEWEST_STEPS_PER_EPOCH
        batch = max(LEAST_BATCH, min(FULL_BATCH, 2 ** int(math.log2(max(1, most)))))
        batch = batch if pairs is None else max(2, min(batch, pairs))
    width = max(run.model.image.vector_width, run.model.text.width)
    rate = RATE / width * min(1.0, math.sqrt(batch / FULL_BATCH))
    rate *= LORA_FACTOR if run.finetune.lora.rank else 1
    epochs = max(1.0, EPOCHS * min(1.0, SMALL / (pairs or SMALL)))
    return run.model_copy(
        update={
            "batch": batch,
            "epochs": round(epochs, 2),
            "optimizer": run.optimizer.model_copy(update={"lr": float(f"{rate:.2g}")}),
        }
    )
