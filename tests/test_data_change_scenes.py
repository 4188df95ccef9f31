"""Generated pairs: true labels, masks where the pictures differ, the same in every process."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageFilter

from diptych.data.change_scenes import (
    FRAME,
    KINDS,
    SETS,
    ZOOM,
    Shot,
    content,
    make_change_scene,
)
from diptych.data.change_scenes_draw import draw_pair
from diptych.data.change_texts import SENTENCES, change_texts, noun
from diptych.data.opening import open_source
from diptych.data.scenes import split_of
from diptych.errors import RequestError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module", params=SETS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def kind(name):
    return SETS[name]


@pytest.fixture(scope="module")
def scenes(name):
    return [make_change_scene(index, "train", name) for index in range(60)]


def read_changes(graph, told):
    """What has changed, by someone who sees the two scenes and no numbers of the objects."""
    before, after = (
        {tuple(node[part] for part in told): node for node in graph[key]}
        for key in ("before", "after")
    )
    assert len(before) == len(graph["before"])  # each is the only one of its name
    assert len(after) == len(graph["after"])

    def place(node):
        return node["x"], node["y"]

    changes = set()
    new = {place(after[look]): look for look in after if look not in before}
    for look, node in before.items():
        if look in after:
            if place(node) != place(after[look]):
                changes.add(("move", look, look))
        elif place(node) in new:
            changes.add(("replace", look, new.pop(place(node))))
        else:
            changes.add(("delete", look, None))
    return changes | {("add", None, look) for look in new.values()}


def listed_changes(graph, told):
    """What the graph says has changed, in the names of the objects."""
    looks = {
        key: {node["id"]: tuple(node[part] for part in told) for node in graph[key]}
        for key in ("before", "after")
    }
    return [
        (
            change["kind"],
            looks["before"].get(change["before"]),
            looks["after"].get(change["after"]),
        )
        for change in graph["changes"]
    ]


def patterns():
    """A regular expression for each sentence that texts are made of, with its kind."""
    for kind, templates in SENTENCES.items():
        for template in templates:
            pattern = re.sub(r"\{[aA]_(\w+)\}", r"[aA]n? {\1}", template.replace(".", r"\."))
            yield kind, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[a-z -]+)", pattern))


PATTERNS = list(patterns())


def said_changes(text):
    """What a text says has changed: kind, name before and name after of each sentence."""
    found = []
    for sentence in re.findall(r"\S[^.]+\.", text):
        matches = [(kind, pattern.fullmatch(sentence)) for kind, pattern in PATTERNS]
        matches = [(kind, match.groupdict()) for kind, match in matches if match]
        assert len(matches) == 1, sentence
        ((kind, names),) = matches
        found.append((kind, names.get("before"), names.get("after")))
    return found


def in_words(change, scene, kind):
    """A change as a text names it."""
    before = None if change.before is None else noun(scene.before[change.before], kind)
    after = None if change.after is None else noun(scene.after[change.after], kind)
    return change.kind, before, None if change.kind == "move" else after


def test_labels_are_what_a_reader_of_the_two_scenes_finds(scenes, kind):
    for scene in scenes:
        graph = json.loads(json.dumps(scene.graph()))
        listed = listed_changes(graph, kind.told)
        assert len(set(listed)) == len(listed)
        assert set(listed) == read_changes(graph, kind.told)


def test_every_text_says_each_change_and_nothing_else(scenes, kind, name):
    for scene in scenes:
        expected = [in_words(change, scene, kind) for change in scene.changes]
        expected = expected or [("none", None, None)]
        texts = change_texts(scene, name)
        assert len(texts) == 5
        assert said_changes(texts[0]) == expected
        for text in texts[1:]:
            assert Counter(said_changes(text)) == Counter(expected)


def test_the_five_texts_hold_all_five_sentences_of_every_change(scenes, name):
    for scene in scenes:
        texts = change_texts(scene, name)
        sentences = {sentence for text in texts for sentence in re.findall(r"\S[^.]+\.", text)}
        assert len(sentences) == 5 * max(1, len(scene.changes))


def test_the_same_change_has_the_same_first_text():
    first = {}
    for index in range(300):
        scene = make_change_scene(index, "train", "changes-few")
        shown = [in_words(change, scene, SETS["changes-few"]) for change in scene.changes]
        text = change_texts(scene, "changes-few")[0]
        assert first.setdefault(str(shown), text) == text
    assert len(set(first.values())) == len(first) < 300


def test_a_quarter_is_unchanged_and_the_kinds_come_equally_often():
    scenes = [make_change_scene(index, "train", "changes-few") for index in range(600)]
    unchanged = sum(not scene.changes for scene in scenes) / len(scenes)
    kinds = Counter(change.kind for scene in scenes for change in scene.changes)
    assert unchanged == pytest.approx(0.25, abs=0.07)
    for one in KINDS:
        assert kinds[one] / sum(kinds.values()) == pytest.approx(0.25, abs=0.07)


def test_all_numbers_of_objects_and_of_changes_come_up(kind, name):
    scenes = [make_change_scene(index, "train", name) for index in range(220)]
    fewest, most = kind.objects
    assert {len(scene.before) for scene in scenes} == set(range(fewest, most + 1))
    assert {len(scene.changes) for scene in scenes} == set(range(kind.changes + 1))


def test_objects_neither_touch_nor_leave_the_picture_however_it_is_taken(scenes, kind):
    assert 1 - 1 / (1 + ZOOM) <= FRAME
    for scene in scenes:
        things = {
            (thing.x, thing.y): thing for thing in (*scene.before.values(), *scene.after.values())
        }
        boxes = [(x, y, kind.radii[thing.size]) for (x, y), thing in things.items()]
        for place, (x, y, radius) in enumerate(boxes):
            assert min(x, y) - radius + 1e-9 >= FRAME
            assert max(x, y) + radius <= 1 - FRAME + 1e-9
            for other_x, other_y, other in boxes[:place]:
                assert max(abs(x - other_x), abs(y - other_y)) >= radius + other - 1e-9


def test_what_moves_moves_by_its_own_size_and_stays_as_it_is(scenes, kind):
    moves = 0
    for scene in scenes:
        for change in scene.changes:
            if change.kind == "move":
                one, other = scene.before[change.before], scene.after[change.after]
                assert replace(one, x=0.0, y=0.0) == replace(other, x=0.0, y=0.0)
                distance = max(abs(one.x - other.x), abs(one.y - other.y))
                assert distance >= 2 * kind.radii[one.size]
                moves += 1
    assert moves > 4


def difference(one, other):
    """Largest difference of a colour, per pixel."""
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max(-1)


def grown(mask, by):
    """The mask with what is up to `by` pixels around it."""
    return np.asarray(mask.filter(ImageFilter.MaxFilter(2 * by + 1))) > 0


def test_masks_lie_where_the_drawn_pictures_differ(scenes, kind):
    for scene in scenes[:30]:
        drawn = draw_pair(replace(scene, shot=Shot()), kind)
        differs = difference(drawn.before, drawn.after)
        mask = np.asarray(drawn.mask) > 0
        assert mask.any() == bool(scene.changes) == differs.any()
        around = grown(drawn.mask, round(0.05 * kind.side))  # a shadow falls beside the object
        assert not differs[~around].any()
        if scene.changes:
            assert (differs[mask] > 20).mean() > 0.5


def test_masks_follow_the_camera(scenes, kind):
    """Against the picture that the same camera takes, in the same light, of what was before."""
    for scene in scenes[:30]:
        drawn = draw_pair(scene, kind)
        unchanged = draw_pair(replace(scene, after=scene.before, changes=()), kind)
        differs = difference(drawn.after, unchanged.after)
        around = grown(drawn.mask, round(0.05 * kind.side) + 1)
        assert not (differs[~around] > 1).any()
        mask = np.asarray(drawn.mask) > 0
        if scene.changes:
            assert (differs[mask] > 20).mean() > 0.5


def test_masks_are_black_and_white_and_of_the_size_of_the_pictures(scenes, kind):
    for side in (None, 37):
        drawn = draw_pair(scenes[0], kind, side)
        assert drawn.before.size == drawn.after.size == drawn.mask.size == 2 * (side or kind.side,)
        assert (drawn.before.mode, drawn.after.mode, drawn.mask.mode) == ("RGB", "RGB", "L")
        assert set(np.unique(drawn.mask)) <= {0, 255}


def test_camera_light_and_noise_are_no_change(name, kind):
    """Pairs of which nothing has changed differ all the same, and say so nowhere."""
    source = open_source(f"scenes:{name}:val")
    unchanged = [sample for sample in map(source.sample, range(20)) if not sample.changed]
    assert len(unchanged) > 2
    for sample in unchanged:
        assert (difference(sample.before[0], sample.picture) > 0).mean() > 0.5
        assert sample.mask.getextrema() == (0, 0)
        assert sample.captions == SENTENCES["none"]
        assert sample.metadata["kind"] == "none"
        assert sample.metadata["changes"] == 0


def test_a_sample_tells_its_changes(name):
    source = open_source(f"scenes:{name}:test")
    for index in range(12):
        sample, graph = source.sample(index), source.graph(index)
        kinds = [change["kind"] for change in graph["changes"]]
        assert sample.changed == bool(kinds)
        assert sample.metadata["kind"] == (", ".join(kinds) or "none")
        assert sample.metadata["changes"] == len(kinds)
        assert sample.metadata["objects"] == len(graph["before"])
        assert sample.captions == source.captions(index)


def test_splits_share_no_scene_before_the_change(name):
    contents = {}
    for split in SPLITS:
        scenes = [make_change_scene(index, split, name) for index in range(20)]
        contents[split] = {
            content(scene.background, list(scene.before.values())) for scene in scenes
        }
        assert len(contents[split]) == 20  # none comes twice
        assert {split_of(content) for content in contents[split]} == {split}
    assert not contents["train"] & contents["val"]
    assert not contents["train"] & contents["test"]
    assert not contents["val"] & contents["test"]


DIGEST = """
import hashlib, sys
from diptych.data.opening import open_source
mark = hashlib.sha256()
for name in ("changes:train", "changes:val", "changes-few:train", "changes-few:test"):
    for index in reversed(range(2)):
        sample = open_source("scenes:" + name).sample(index)
        for picture in (*sample.before, sample.picture, sample.mask):
            mark.update(picture.tobytes())
        mark.update(repr((sample.captions, sample.metadata)).encode())
print(mark.hexdigest())
"""


def test_a_pair_is_the_same_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_the_sets_stay_as_they_are():
    """Results that are written down belong to these pairs: another content needs another name."""
    graphs = [
        make_change_scene(index, split, name).graph()
        for name in SETS
        for split in SPLITS
        for index in (0, 1, 999)
    ]
    digest = hashlib.sha256(json.dumps(graphs, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "07f074df149753c3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "train", "change"), "there are no scenes 'change'. Did you mean 'changes'?"),
        ((1000, "val", "changes"), "scenes:changes:val has no scene 1,000. Use 0 to 999."),
        ((-1, "train", "changes-few"), "scenes:changes-few:train has no scene -1. Use 0 on."),
    ],
)
def test_a_scene_that_is_not_there_is_refused(arguments, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        make_change_scene(*arguments)
