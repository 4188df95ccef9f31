"""What generated texts say of the changes between two scenes.

A text has one sentence per change, or one that says that nothing has changed. There are five
sentences for each kind; a pair has five texts, and together they hold all five of each change.
The first text is canonical: the first sentence of each kind, changes in their fixed order, so that
pairs with the same change have the same first text.

`change_scenes.py` makes the pairs.
"""

from diptych.data.change_scenes import SETS, ChangeScene, ChangeSet, SceneChange, told
from diptych.data.scenes import MATERIALS, SIZE_WORDS, Dice, Thing

SENTENCES: dict[str, tuple[str, str, str, str, str]] = {
    "add": (
        "The {after} has been added.",
        "{A_after} has appeared.",
        "There is a new {after}.",
        "The {after} was not there before.",
        "Someone has put {a_after} there.",
    ),
    "delete": (
        "The {before} has been removed.",
        "The {before} has disappeared.",
        "The {before} is gone.",
        "There is no {before} any more.",
        "Someone has taken the {before} away.",
    ),
    "move": (
        "The {before} has been moved.",
        "The {before} has changed its place.",
        "The {before} is now somewhere else.",
        "The {before} is in another place.",
        "Someone has shifted the {before}.",
    ),
    "replace": (
        "The {before} has been replaced by {a_after}.",
        "{A_after} has taken the place of the {before}.",
        "There is {a_after} where the {before} was.",
        "The {before} has become {a_after}.",
        "Someone has exchanged the {before} for {a_after}.",
    ),
    "none": (
        "Nothing has changed.",
        "There is no change.",
        "Both pictures show the same scene.",
        "Everything is as it was.",
        "The scene is the same as before.",
    ),
}
"""Five for each kind of change; the first of each is canonical."""

TEXTS = 5
"""Texts of a pair: as many as there are sentences of a kind."""


def change_texts(scene: ChangeScene, name: str = "changes") -> tuple[str, ...]:
    """Five true texts of a pair of the set `name`, the canonical one first."""
    sentences = [sentences_of(change, scene, name) for change in scene.changes]
    if not sentences:
        return SENTENCES["none"]
    dice = Dice("change texts", *(change[0] for change in sentences))
    texts = [" ".join(change[0] for change in sentences)]
    orders = [[0, *dice.shuffled(range(1, TEXTS))] for _ in sentences]
    for text in range(1, TEXTS):
        chosen = [change[order[text]] for change, order in zip(sentences, orders, strict=True)]
        texts.append(" ".join(dice.shuffled(chosen)))
    return tuple(texts)


def sentences_of(change: SceneChange, scene: ChangeScene, name: str) -> tuple[str, ...]:
    """All five sentences that tell of a change, the canonical one first."""
    kind = SETS[name]
    before = "" if change.before is None else noun(scene.before[change.before], kind)
    after = "" if change.after is None else noun(scene.after[change.after], kind)
    words = {"before": before, "after": after}
    if after:
        article = "an" if after[0] in "aeiou" else "a"
        words |= {"a_after": f"{article} {after}", "A_after": f"{article.capitalize()} {after}"}
    return tuple(sentence.format(**words) for sentence in SENTENCES[change.kind])


def noun(thing: Thing, kind: ChangeSet) -> str:
    """The name of an object without its article, such as "large striped red star"."""
    words = {"size": SIZE_WORDS[thing.size][0], "material": MATERIALS[thing.material][0]}
    told_as_is = zip(kind.told, told(thing, kind), strict=True)
    return " ".join(words.get(attribute, value) for attribute, value in told_as_is)
