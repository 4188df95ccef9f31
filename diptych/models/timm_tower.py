"""Any image model of timm as an image tower: convolutional networks, EVA, ViTamin, MobileCLIP.

    diptych train clip-small --set model.image=timm:resnet18@64 …

timm is an extra (pip install 'diptych[timm]') and imported when such a tower is built. Tensors keep
timm's names under `image.trunk.`. What follows timm's pool is here as in the other towers: nothing,
or one hidden layer; the projection into the shared space is in `dual_encoder.py`.

Batch norms, where the model has some, follow the rules of `resnet_tower.py`.
"""

import importlib
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.config import Config
from diptych.errors import ConfigError, RequestError, nearest


class TimmTowerConfig(Config):
    """Which model of timm, and what follows it. The text "timm:NAME" or "timm:NAME@SIZE" stands for
    one with everything else at its default."""

    kind: Literal["timm"] = "timm"
    """Tells the image towers apart in a config file."""

    name: str
    """timm's name of the model, such as "resnet18", without the tag of its weights."""

    image_size: int = Field(default=224, ge=1)
    """Side of the square input, in pixels. Models with a table of positions are built for it."""

    pool: str = ""
    """timm's name of the pool, such as "avg", "token" or "map"; empty for the model's own."""

    classifier: int = Field(default=0, ge=0)
    """Outputs of the model's own classifier, used as projection (open_clip's EVA and MobileCLIP);
    0 leaves it out."""

    hidden: int = Field(default=0, ge=0)
    """Numbers of a hidden layer with GELU after the pool (open_clip's ConvNeXt "d"); 0 for none."""

    frozen: bool = False
    """Hold the weights and the running statistics fixed, as in LiT (arXiv:2111.07991)."""

    @property
    def vector_width(self) -> int:
        """Numbers of the vector."""
        return self.hidden or self.classifier or _facts(self)[0]

    @property
    def batch_norm(self) -> bool:
        """Whether training reads statistics of the batch."""
        return _facts(self)[1]

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, values: Any) -> Any:
        """Take "timm:NAME" and "timm:NAME@SIZE" for a config."""
        if not isinstance(values, str):
            return values
        name, at, size = values.removeprefix("timm:").partition("@")
        if not at:
            return {"name": name}
        if not size.isdecimal():
            raise ConfigError(
                f"the image tower {values!r} has size {size!r}, which is no number of pixels. "
                f'Write it as "timm:{name}@64".'
            )
        return {"name": name, "image_size": int(size)}

    @model_validator(mode="after")
    def check(self) -> "TimmTowerConfig":
        """Refuse what no model has."""
        if self.classifier and self.hidden:
            raise ConfigError(
                f"classifier {self.classifier} and hidden {self.hidden} both follow the pool. "
                "Use classifier=0 or hidden=0."
            )
        return self


def timm_library(module: str = "timm") -> ModuleType:
    """timm, or a module of it.

    Raises:
        RequestError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(
            f"an image tower of timm needs timm, which is not here ({error}). "
            "Install it: pip install 'diptych[timm]'."
        ) from None


def make_trunk(config: TimmTowerConfig) -> nn.Module:
    """The model of timm with random weights, its classifier taken off unless it is wanted.

    Raises:
        RequestError: timm is not installed.
        ConfigError: It has no model of this name, or none with this pool.
    """
    timm = timm_library()
    if not timm.is_model(config.name):
        raise ConfigError(
            f"timm {timm.__version__} has no model {config.name!r}. "
            f"{nearest(config.name, timm.list_models())}"
        )
    pool = {"global_pool": config.pool} if config.pool else {}
    try:
        if config.classifier:
            trunk: Any = timm.create_model(config.name, num_classes=config.classifier, **pool)
        else:
            trunk = timm.create_model(config.name)
            trunk.reset_classifier(0, **pool)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"timm's {config.name} does not take pool {config.pool!r}: {error}. "
            'Use pool="" for its own.'
        ) from error
    if hasattr(trunk, "set_input_size") and trunk_size(trunk) != config.image_size:
        trunk.set_input_size(config.image_size)
    made: nn.Module = trunk
    return made


def trunk_size(trunk: nn.Module) -> int:
    """Side in pixels for which timm builds this model."""
    settings: Any = trunk.pretrained_cfg
    return int(settings["input_size"][-1])


@lru_cache(maxsize=16)
def _facts(config: TimmTowerConfig) -> tuple[int, bool]:
    """How many numbers the model gives, and whether it has batch norms; looked up without weights.

    Not for `image_size`: neither depends on it.
    """
    with torch.device("meta"):
        trunk: Any = make_trunk(config)
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trunk.modules())
    return int(trunk.head_hidden_size), norms


class TimmTower(nn.Module):
    """A model of timm, and a hidden layer if wanted."""

    def __init__(self, config: TimmTowerConfig) -> None:
        super().__init__()
        self.config = config
        # timm keeps computed tables outside of the state dict, which a model made on "meta" to be
        # filled would lack.
        if torch.get_default_device().type == "meta":
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                self.trunk = make_trunk(config)
        else:
            self.trunk = make_trunk(config)
        self.hidden = nn.Linear(_facts(config)[0], config.hidden) if config.hidden else None
        if config.frozen:
            self.requires_grad_(False)
            self.train()

    def train(self, mode: bool = True) -> "TimmTower":
        """As every module, but a frozen tower stays in evaluation: its statistics are fixed too."""
        return super().train(mode and not self.config.frozen)

    def join_statistics(self) -> None:
        """Make its batch norms use the statistics of all processes, with timm's own conversion:
        torch's would lose the activations that timm keeps in them."""
        self.trunk = timm_library("timm.layers").convert_sync_batchnorm(self.trunk)

    def forward(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch width"]:
        """One vector per picture, not yet projected or normalised."""
        vector: Tensor = self.trunk(image)
        return vector if self.hidden is None else F.gelu(self.hidden(vector))
