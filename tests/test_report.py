"""The report is one safe, well-formed, self-contained file, whatever the captions say."""

import io
import os
import re
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise
from math import inf, log, nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.errors import DataError, StorageError
from diptych.evaluate.retrieval import retrieval
from diptych.report.figures import MOST_POINTS, loss_curve, similarity_matrix, smoothed
from diptych.report.markup import THUMBNAIL_SIDE, escaped, percent, picture_tag
from diptych.report.page import HitCell, QueryRow, SimilarityBlock, in_words, write_report

HOSTILE = (
    '<script>alert("x")</script><img src=https://evil.example/a.png onerror=alert(1)>'
    "' onload='x\" style=\"\u202eright to left\ud800\x00 & a\u200db"
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element closes in order; notes elements, attributes, text."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag, **wanted):
        """Attributes of every element of a kind that carry the wanted class."""
        found = [attrs for name, attrs in self.elements if name == tag]
        words = wanted.get("with_class")
        return [a for a in found if words is None or words in a.get("class", "").split()]


def picture(colour="red", size=(40, 30), mode="RGB"):
    return Image.new(mode, size, colour)


def result(pictures=12, seed=0):
    """The retrieval result of made-up embeddings with two captions a picture."""
    random = np.random.default_rng(seed)
    image = random.normal(size=(pictures, 8))
    text = np.repeat(image, 2, axis=0) + random.normal(size=(2 * pictures, 8))
    return retrieval(image, text, np.repeat(np.arange(pictures), 2), resamples=50).to_dict()


def log_of(steps, validations=()):
    rows = [{"kind": "start", "seed": 0}]
    rows += [
        {"kind": "step", "step": s, "loss": 5 / (1 + s / 50), "lr": 1e-3} for s in range(steps)
    ]
    return rows + [{"kind": "validation", "step": s, "loss": 2.0} for s in validations]


def contents(**changed):
    """Everything a report can show, with some of it changed."""
    hits = [HitCell(picture("red"), 0.31, "a red thing", True)]
    hits += [HitCell(picture("blue"), -0.05, HOSTILE, False)]
    parts = {
        "title": "clip-tiny on scenes",
        "facts": [("Model", "clip-tiny"), ("Seed", "0")],
        "log_rows": log_of(100, [50, 99]),
        "retrieval": result(),
        "queries": [QueryRow("a red thing", hits), QueryRow("a green thing", hits[1:])],
        "similarity": SimilarityBlock(
            [picture("red"), picture("blue")], ["red", "blue"], np.array([[0.9, 0.1], [0.2, 0.1]])
        ),
    }
    return {**parts, **changed}


def written(tmp_path, **changed):
    path = write_report(tmp_path / "report.html", **contents(**changed))
    return Page(path.read_text(encoding="utf-8"))


def test_hostile_text_stays_text_everywhere(tmp_path):
    hits = [HitCell(picture(), 0.3, HOSTILE, True)]
    page = written(
        tmp_path,
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        queries=[QueryRow(HOSTILE, hits)],
        similarity=SimilarityBlock([picture()], [HOSTILE], np.array([[0.5]])),
    )
    kinds = {tag for tag, _ in page.elements}
    assert not kinds & {"script", "iframe", "object", "link", "a", "form"}
    assert "body" in kinds
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")]
    whole = "".join(page.text)
    assert whole.count('<script>alert("x")</script>') == 7  # as words; the tab's name is one
    assert not set("\u202e\ud800\x00") & set(whole)
    assert "a\u200db" in whole


def test_the_file_asks_for_nothing_from_outside(tmp_path):
    path = write_report(tmp_path / "report.html", **contents(queries=[]))
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", source)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    assert all(attrs["src"].startswith("data:image/") for attrs in page.all("img"))
    links = [a[name] for _, a in page.elements for name in ("href", "xlink:href") if name in a]
    assert links
    assert all(link.startswith("#") for link in links)
    policy = [a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_every_picture_is_inside_and_readable(tmp_path):
    page = written(tmp_path)
    pictures = page.all("img")
    assert len(pictures) == 3 + 2  # hits, and the matrix
    for attrs in pictures:
        data = b64decode(attrs["src"].partition(",")[2], validate=True)
        with Image.open(io.BytesIO(data)) as read:
            read.load()
            assert read.size == (int(attrs["width"]), int(attrs["height"])) == (40, 30)


def test_matches_are_marked_in_words_not_only_in_colour(tmp_path):
    page = written(tmp_path)
    text = "".join(page.text)
    assert len(page.all("li", with_class="correct")) == 1
    assert text.count("✓ match") == 2  # the explanation, and the one match
    assert text.count("No match shown.") == 1
    assert "1✓ match0.31a red thing" in text  # rank, mark, score, caption
    assert "2-0.05" in text


def test_headings_go_down_one_level_at_a_time(tmp_path):
    page = written(tmp_path)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_ids_are_unique(tmp_path):
    ids = [attrs["id"] for _, attrs in written(tmp_path).elements if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({"log_rows": []}, "How it learned"),
        ({"queries": []}, "Ask it"),
        ({"similarity": None}, "Pair against pair"),
        ({"facts": []}, "The run"),
    ],
)
def test_sections_without_content_are_left_out(tmp_path, changed, missing):
    assert missing in "".join(written(tmp_path).text)
    assert missing not in "".join(written(tmp_path, **changed).text)


def test_one_query_one_hit_one_step_and_one_pair_are_enough(tmp_path):
    page = written(
        tmp_path,
        log_rows=log_of(1),
        retrieval=result(pictures=1),
        queries=[QueryRow("x", [HitCell(picture(), 1.0, "", True)])],
        similarity=SimilarityBlock([picture()], ["x"], np.array([[0.5]])),
    )
    assert "2 captions, each among 1 distinct picture" in "".join(page.text)
    assert "validation" not in "".join(page.text)


def test_tiles_show_every_recall_with_its_interval_and_chance(tmp_path):
    found = result()
    text = "".join(written(tmp_path, retrieval=found).text)
    for direction in ("text_to_image", "image_to_text"):
        for name, chance in found["chance"][direction].items():
            recall = found[direction][name]
            low = percent(recall["low"])[:-2]
            assert f"95\u202f%: {low} to {percent(recall['high'])}" in text
            assert f"chance: {percent(chance)}" in text


def test_the_summary_says_when_a_result_is_no_better_than_guessing():
    assert "cannot be told from guessing" not in in_words(result())
    random = np.random.default_rng(0)
    guess = retrieval(random.normal(size=(50, 4)), random.normal(size=(50, 4)), np.arange(50))
    assert guess.text_to_image.recall[1].value == 0
    assert "so this cannot be told from guessing" in in_words(guess.to_dict())
    collapsed = retrieval(np.ones((9, 4)), np.ones((9, 4)), np.arange(9)).to_dict()
    collapsed["chance"]["text_to_image"]["recall@1"] = 0.5
    assert "so this is worse than guessing" in in_words(collapsed)


def test_the_old_report_stays_whole_when_writing_fails(tmp_path, monkeypatch):
    path = write_report(tmp_path / "deep" / "report.html", **contents())
    before = path.read_bytes()

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_report(path, **contents(title="other"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_same_contents_give_the_same_file(tmp_path):
    first = write_report(tmp_path / "a.html", **contents()).read_bytes()
    assert write_report(tmp_path / "b.html", **contents()).read_bytes() == first


def test_loss_curve_draws_what_the_log_holds():
    plain = loss_curve(log_of(100))
    assert "training" in plain
    assert "validation" not in plain
    assert "guessing" not in plain
    full = loss_curve(log_of(100, [10, 20]), chance_loss=log(256))
    assert "validation" in full
    assert "guessing (5.55)" in full
    only = loss_curve(log_of(0, [10, 20]))
    assert "validation" in only
    assert "training" not in only
    for drawing in (plain, full, only):
        assert Page(drawing).elements[0][0] == "svg"


def test_loss_curve_passes_over_losses_that_are_not_finite():
    bad = [{"kind": "step", "step": s, "loss": loss} for s, loss in enumerate((nan, inf, None))]
    assert loss_curve([]) == loss_curve(bad) == ""
    assert loss_curve(log_of(9) + bad) == loss_curve(log_of(9))


def test_loss_curve_of_a_long_run_stays_small():
    assert len(loss_curve(log_of(50 * MOST_POINTS))) < 60_000


def test_loss_curve_uses_the_colours_of_the_page():
    drawing = loss_curve(log_of(10, [5]), chance_loss=5.5)
    for name in ("--accent", "--second", "--muted", "--line", "--ink"):
        assert f"var({name}, #" in drawing
    assert not re.search(r": #(?!000)", drawing)  # no colour that the dark page cannot change


@pytest.mark.parametrize("count", [1, 2, 19, 100, 137])
def test_smoothing_matches_the_definition(count):
    losses = np.random.default_rng(count).normal(size=count)
    reach = max(1, count // 20)
    expected = []
    for i in range(count):
        weights = [max(0.0, 1 - abs(i - j) / reach) for j in range(count)]
        expected.append(np.average(losses, weights=weights))
    np.testing.assert_allclose(smoothed(losses), expected)


def test_similarity_matrix_outlines_the_diagonal_and_bolds_the_best():
    values = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, -0.004]])
    page = Page(similarity_matrix(values, [picture(), picture("blue")], ["a", "b", "c"]))
    cells = [attrs["class"] for attrs in page.all("td") if "class" in attrs]
    assert cells == ["own best", "", "", "best", "own", ""]
    assert " ".join(word for word in page.text if "." in word) == "0.90 0.10 0.20 0.80 0.30 0.00"
    assert [a["scope"] for a in page.all("th")] == ["col"] * 3 + ["row"] * 2


def test_similarity_matrix_of_equal_scores_has_one_shade():
    page = Page(similarity_matrix(np.ones((2, 2)), [picture()] * 2, ["a", "b"]))
    shades = {attrs.get("style") for attrs in page.all("td") if "style" in attrs}
    assert shades == {"--shade: 0.000"}


def test_similarity_matrix_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="is 2 x 2 for 1 pictures and 2 captions"):
        similarity_matrix(np.ones((2, 2)), [picture()], ["a", "b"])
    with pytest.raises(DataError, match="holds NaN"):
        similarity_matrix(np.full((1, 1), nan), [picture()], ["a"])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_inlined(mode):
    attrs = Page(picture_tag(Image.new(mode, (9, 5)), "x")).all("img")[0]
    assert (attrs["width"], attrs["height"]) == ("9", "5")


def test_pictures_are_upright_small_and_without_metadata():
    large = Image.new("RGB", (1000, 500), "red")
    large.getexif()[0x0112] = 6  # turned a quarter
    large.getexif()[0x010E] = "where I live"
    data = b64decode(Page(picture_tag(large, "x")).all("img")[0]["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as read:
        assert read.size == (THUMBNAIL_SIDE // 2, THUMBNAIL_SIDE)
        assert not read.getexif()
    assert b"where I live" not in data


def test_photographs_become_jpeg_and_drawings_png():
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    assert "data:image/jpeg" in picture_tag(Image.fromarray(noise), "")
    assert "data:image/png" in picture_tag(picture(size=(64, 64)), "")


def test_long_text_is_cut_and_short_text_is_not():
    assert escaped("a" * 300) == "a" * 300
    assert escaped("a" * 301) == "a" * 299 + "…"
    assert escaped("é <b> \n") == "é &lt;b&gt;  "


def test_percent_keeps_the_digits_that_matter():
    shares = [0.0, 1.0, 0.6342, 0.9999, 0.0025, 0.0002, 1e-6]
    expected = ["0", "100", "63.4", "100.0", "0.25", "0.02", "under 0.001"]
    assert [percent(share) for share in shares] == [f"{text}\u202f%" for text in expected]


def test_figures_leave_pyplot_alone():
    check = "import sys, diptych.report.page; sys.exit('matplotlib.pyplot' in sys.modules)"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", check], check=True, cwd=root)
