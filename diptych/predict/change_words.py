"""A `Change` in words for people, for the command line and for the picture of a change.

The probability of a change is far surer than the text of the model that writes, so it comes first
and the text follows it: a change that is improbable is not told as one that happened.
`change_picture.py` draws the same words below the pictures.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from diptych.data.pictures import to_rgb
from diptych.data.transforms import ImageTransformConfig
from diptych.predict.change import Change
from diptych.predict.compare import NOTHING
from diptych.predict.model import Picture

SAME = (
    *NOTHING,
    *("Nothing changed", "Nothing was changed", "Nothing was modified", "Nothing is different"),
    *("No changes", "There are no changes", "No change has occurred", "No changes were made"),
    *("No difference", "There is no difference", "There are no differences"),
    *("The scene is the same", "The two scenes are the same", "The two scenes seem identical"),
    *("The pictures are the same", "Almost nothing has changed"),
)
"""Ways to say in English that nothing has changed: ours, and those of common data sets (LEVIR-CC,
CLEVR-Change, Spot-the-Diff). A text in other words counts as one that tells a change."""

NOT_A_WORD = re.compile(r"[\W_]+")

LEAST_CUT = 0.01
"""A smaller share of the longer side that is cut off, or by which shapes differ, is not noted."""


def headline(change: Change) -> str:
    """What changed, and how sure that is, in one line.

    Of a probability: "changed (97 %): TEXT" from one half on, and below it "no change (12 %)", with
    the text only if it tells a change. The number is the probability of a change in both. Of a
    distance: the distance, how much of the picture differs, and the text.
    """
    if change.score_is == "distance":
        return "; ".join(part for part in (_distance(change), change.text) if part)
    text, likely = change.text, f"({100 * change.score:.0f} %)"
    if change.score < 0.5:
        return f"no change {likely}" + (f"; if any: {text}" if tells_change(text) else "")
    if tells_change(text):
        return f"changed {likely}: {text}"
    return f"changed {likely}" + (", it cannot say what" if text else "")


def _distance(change: Change) -> str:
    """A distance in words."""
    if change.score < 0.0005:
        return "no difference found (distance 0.000)"
    share = float((change.heatmap > 0.5).mean())
    return f"distance {change.score:.3f}, {100 * share:.0f} % of the picture above 0.5"


def scored(change: Change) -> str:
    """What the number in the headline is, and how to read the map."""
    if change.score_is == "probability":
        said = f"probability of a change {100 * change.score:.1f} %"
        if change.score < 0.5:
            return f"{said}; the map is faded"
    else:
        said = "a distance is in 0 to 1"
    return f"{said}; in the map red is 1, and a line is around the hottest place"


def tells_change(text: str) -> bool:
    """Whether a text tells a change, and not that nothing has changed (`SAME`)."""
    return bool(text) and _plain(text) not in {_plain(same) for same in SAME}


def _plain(text: str) -> str:
    """The words alone, in lower case."""
    return NOT_A_WORD.sub(" ", text).strip().lower()


def notes_on_shapes(
    pictures: Sequence[Picture], names: Sequence[str], transform: ImageTransformConfig
) -> list[str]:
    """What the reader has to know of the shapes of pictures: what the model does not see of them,
    and that places of one do not lie over those of the next.

    Args:
        pictures: In a row, oldest first.
        names: What each is called.
        transform: Of the model.

    Raises:
        DataError: A picture cannot be read.
    """
    sizes = [to_rgb(picture).size for picture in pictures]
    notes = _cut_off(sizes, names) if transform.resize == "shortest" else []
    for place, ((width, height), (wide, high)) in enumerate(pairwise(sizes)):
        across, down = width * high, wide * height
        if min(across, down) < (1 - LEAST_CUT) * max(across, down):
            notes.append(
                f"{names[place]} has {width} x {height} px and {names[place + 1]} {wide} x {high}: "
                "the shapes differ, so places are compared that do not belong together. Give "
                "pictures of one shape."
            )
    return notes


def _cut_off(sizes: Sequence[tuple[int, int]], names: Sequence[str]) -> list[str]:
    """A note for each shape of which the ends are cut off, with the pictures that have it."""
    cut: dict[tuple[int, int], list[str]] = {}
    for size, name in zip(sizes, names, strict=True):
        if min(size) < (1 - LEAST_CUT) * max(size):
            cut.setdefault((min(size), max(size)), []).append(name)
    return [
        f"{', '.join(dict.fromkeys(found))}: only the middle {short} of {long} px are compared. "
        "Give square pictures, or cut them into squares."
        for (short, long), found in cut.items()
    ]
