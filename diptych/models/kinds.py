"""The kinds of models that are trained, saved and loaded, and what their configs have in common.

A config.json or a run says by `kind` which one it describes; one without `kind` is of a dual
encoder, which was the only kind when it was written.
"""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from diptych.models.change import ChangeModel, ChangeModelConfig
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig

AnyModel = DualEncoder | ChangeModel


def model_kind(values: Any) -> str:
    """Which model a config or its values describe: "dual_encoder" or "change"."""
    if isinstance(values, dict):
        return str(values.get("kind", "dual_encoder"))
    return str(getattr(values, "kind", "dual_encoder"))


AnyModelConfig = Annotated[
    Annotated[DualEncoderConfig, Tag("dual_encoder")] | Annotated[ChangeModelConfig, Tag("change")],
    Discriminator(model_kind),
]


def build_model(config: DualEncoderConfig | ChangeModelConfig) -> AnyModel:
    """The model that a config describes, with weights of its start."""
    if isinstance(config, ChangeModelConfig):
        return ChangeModel(config)
    return DualEncoder(config)


def reads_sequences(config: DualEncoderConfig | ChangeModelConfig) -> bool:
    """Whether the model looks at several pictures in a row, not at single ones."""
    return isinstance(config, ChangeModelConfig) or config.pair != "none"
