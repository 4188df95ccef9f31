"""Generated scenes as sources: `scenes:shapes[:train|val|test]`, and pairs of scenes with what
has changed between them, `scenes:changes[:SPLIT]` and the easier `scenes:changes-few[:SPLIT]`.

The scenes themselves are in `scenes.py` and `change_scenes.py`, their drawing in `scenes_draw.py`
and `change_scenes_draw.py`. train has no end; val and test are finite and share no content with it.
"""

from functools import lru_cache
from typing import Any

from diptych.data.change_scenes import SETS, ChangeScene, make_change_scene
from diptych.data.change_scenes_draw import draw_pair
from diptych.data.change_texts import change_texts
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


class ChangeSource:
    """Pairs of scenes of one set and split."""

    def __init__(self, split: Split, name: str = "changes") -> None:
        self.split: Split = split
        self.name = f"scenes:{name}:{split}"
        self.size: int | None = COUNTS[split]
        self._set = name
        self.fingerprint = fingerprint(
            name, str(SEED), split, *(text for i in range(20) for text in self.captions(i))
        )
        count = f"{self.size:,}" if self.size else "endless"
        self.notes: tuple[str, ...] = (f"{self.name}: {count} generated pairs of scenes",)

    def captions(self, index: int) -> tuple[str, ...]:
        """Texts of what has changed, without drawing it; the first one is canonical."""
        return change_texts(_pair(self.split, index, self._set), self._set)

    def sample(self, index: int) -> Sample:
        """A pair, drawn; its metadata tell the kinds and number of changes, and of objects."""
        scene = _pair(self.split, index, self._set)
        drawn = draw_pair(scene, SETS[self._set])
        return Sample(
            key=f"{self.name}#{index}",
            picture=drawn.after,
            captions=self.captions(index),
            metadata={
                "kind": ", ".join(change.kind for change in scene.changes) or "none",
                "changes": len(scene.changes),
                "objects": len(scene.before),
            },
            before=(drawn.before,),
            changed=bool(scene.changes),
            mask=drawn.mask,
        )

    def graph(self, index: int) -> dict[str, Any]:
        """Both scenes and their changes as lists and dictionaries, ready for JSON."""
        return _pair(self.split, index, self._set).graph()


@lru_cache(maxsize=4096)
def _pair(split: Split, index: int, name: str) -> ChangeScene:
    """One pair; asked for again when its batch is drawn."""
    return make_change_scene(index, split, name)
