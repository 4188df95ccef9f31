"""The whole line once: the demo trains, judges, embeds, searches and writes a page."""

import json
import re

import pytest
from small import SHRINK, picture_folder

from diptych import demo
from diptych.cli import run as command_line
from diptych.data.scenes import COUNTS
from diptych.demo import HELD_OUT, demo_run, run_demo
from diptych.errors import RequestError
from diptych.recipes import find_recipe
from diptych.train import session


@pytest.fixture
def shrunken(monkeypatch):
    """The demo's recipe in a tiny size, and few scenes to judge on."""

    def smaller(name):
        sizes = ("model.image.image_size=32", "data.transform.image_size=32", "batch=16")
        return find_recipe(name).override([*SHRINK, *sizes])

    monkeypatch.setattr(demo, "find_recipe", smaller)
    for split in ("val", "test"):
        monkeypatch.setitem(COUNTS, split, 60)
    monkeypatch.setattr(session, "LEARN_FROM_ENDLESS", 200)


def assert_self_contained(page):
    """Nothing in the page is fetched from elsewhere."""
    text = page.read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html>")
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"@import|url\((?!['\"]?(?:data:|#))", text)
    assert text.count("data:image/") > 10


@pytest.mark.parametrize("spec", ["scenes:shapes", "scenes:shapes:test", "scenes:shapes:val"])
def test_on_generated_scenes_what_is_judged_is_another_split(spec):
    data = demo_run(spec, 1.0, 0).data
    assert (data.source, data.val) == ("scenes:shapes", "scenes:shapes:val")
    assert demo._held_out(spec).name == "scenes:shapes:test"


def test_a_split_that_there_is_not_is_refused():
    with pytest.raises(RequestError, match="scenes have no split 'tset'"):
        demo_run("scenes:shapes:tset", 1.0, 0)


def test_of_another_source_what_is_judged_is_never_trained_on(tmp_path):
    pictures = picture_folder(tmp_path / "pictures", 200)
    data = demo_run(str(pictures), 1.0, 0).data
    assert data.source == data.val == str(pictures)
    assert data.options.part == (0.0, 1 - HELD_OUT)
    assert data.val_options.part == (1 - HELD_OUT, 1.0)
    trained = demo.open_source(data.source, data.options)
    judged = demo._held_out(str(pictures))
    keys = [
        {source.sample(index).key for index in range(source.size)} for source in (trained, judged)
    ]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 200
    assert 10 <= len(keys[1]) <= 35


def test_the_demo_on_scenes_leaves_a_page_a_run_and_vectors(shrunken, tmp_path):
    lines = []
    result = run_demo(tmp_path / "demo", "scenes:shapes", 0.05, 3, "cpu", lines.append)
    assert [line[:3] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    page = tmp_path / "demo/report.html"
    assert result.values["report"] == str(page)
    assert_self_contained(page)
    assert result.values["seed"] == 3
    assert result.values["data"]["source"] == "scenes:shapes:test"
    written = json.loads((tmp_path / "demo/retrieval.json").read_text())
    assert written["metrics"] == result.values["metrics"]
    assert (tmp_path / "demo/run/checkpoints/last/contract.json").exists()
    assert (tmp_path / "demo/vectors/embedding.json").exists()


def test_the_demo_on_a_folder_answers_and_may_be_repeated(shrunken, tmp_path, capsys):
    pictures = picture_folder(tmp_path / "pictures", 60, bad=(7,))
    out = tmp_path / "demo"
    arguments = ["demo", "--data", str(pictures), "--out", str(out), "--minutes", "0.05", "--json"]
    for seed in ("0", "1"):
        (out / "mine.txt").write_text("kept") if out.exists() else None
        assert command_line([*arguments, "--seed", seed]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["seed"] == int(seed)
        assert answer["steps"] > 0
        assert_self_contained(out / "report.html")
    assert (out / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("name", ["run", "vectors"])
def test_a_folder_that_no_demo_wrote_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(
        RequestError, match=rf"{name} was not written by a demo: .* Give another --out"
    ):
        run_demo(tmp_path, "scenes:shapes", 0.05, 0, "cpu", lambda line: None)
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["run/run.json", "vectors/embedding.json", "report.html"])
def test_a_run_that_is_no_demos_is_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(RequestError, match=r"not written by a demo: .*demo\.json is not there"):
        run_demo(tmp_path, "scenes:shapes", 0.05, 0, "cpu", lambda line: None)
    assert (tmp_path / name).read_text() == "{}"


def test_a_wrong_source_leaves_the_demo_before_untouched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(RequestError, match="there is nothing at"):
        run_demo(tmp_path, str(tmp_path / "nowhere"), 0.05, 0, "cpu", lambda line: None)
    assert (tmp_path / "run/run.json").exists()
