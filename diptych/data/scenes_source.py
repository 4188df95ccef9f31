"""Generated scenes as a source: `scenes:shapes[:train|val|test]`.

The scenes themselves are in `scenes.py`, their drawing in `scenes_draw.py`. train has no end;
val and test are finite and share no content with train.
"""

from functools import lru_cache

from diptych.data.scenes import COUNTS, NAME, SEED, Split, captions, make_scene
from diptych.data.scenes_draw import draw_scene
from diptych.data.source import Sample
from diptych.files import fingerprint

SIDE = 96
"""Side of the drawn pictures, in pixels."""


class SceneSource:
    """Scenes of one split."""

    def __init__(self, split: Split) -> None:
        self.split: Split = split
        self.name = f"scenes:{NAME}:{split}"
        self.size: int | None = COUNTS[split]
        self.fingerprint = fingerprint(
            NAME, str(SEED), split, *(_captions(split, i)[-1] for i in range(20))
        )
        count = f"{self.size:,}" if self.size else "endless"
        self.notes: tuple[str, ...] = (f"{self.name}: {count} generated scenes",)

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of a scene, without drawing it."""
        return _captions(self.split, index)

    def sample(self, index: int) -> Sample:
        """A scene, drawn."""
        scene = make_scene(index, self.split)
        return Sample(f"{self.name}#{index}", draw_scene(scene, SIDE), captions(scene))


@lru_cache(maxsize=4096)
def _captions(split: Split, index: int) -> tuple[str, ...]:
    """Captions of one scene; asked for again when its batch is drawn."""
    return captions(make_scene(index, split))
