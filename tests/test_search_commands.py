"""`diptych index` and `diptych search`, as they are typed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from small import caption_of, picture_folder, picture_of, random_model

from diptych.checkpoint import save_bundle
from diptych.cli import run
from diptych.pretrained.clip_vocabulary import clip_tokenizer
from diptych.pretrained.open_clip import FACTS
from diptych.pretrained.open_clip_config import read_model
from diptych.pretrained.open_clip_names import places
from diptych.search import nearest
from diptych.search.library import Library


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder with the weights of its start."""
    folder = tmp_path_factory.mktemp("model") / "m"
    folder.mkdir()
    bundle = random_model(folder)._bundle
    save_bundle(folder, bundle.model, bundle.tokenizer, bundle.transform)
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return picture_folder(tmp_path / "photos", 8, bad=(3,))


def said(capsys, *arguments):
    """Exit code, standard output and standard error."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def answer(capsys, *arguments):
    code, out, err = said(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_indexing_and_searching_a_folder(capsys, model, photos):
    code, out, err = said(capsys, "index", model, photos)
    assert code == 0
    assert out.startswith(
        "photos.library holds 7 pictures: 7 added, 1 could not be read (7 embedded, "
    )
    assert err.startswith(f"left out {photos / '003.png'}: the picture of 18 bytes ")
    assert err.endswith("tried again when they change, or with --retry\n")
    again = answer(capsys, "index", model, photos)
    assert (again["unchanged"], again["embedded"], again["pictures"]) == (7, 0, 7)
    code, out, _ = said(capsys, "search", "photos.library", "red thing", "-k", 3)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert all(".png  (" in line and "thing number" in line for line in lines)
    hits = answer(capsys, "search", "photos.library", "--image", photos / "005.png")["hits"]
    assert len(hits) == 7
    assert (hits[0]["path"], hits[0]["caption"]) == (str(photos / "005.png"), caption_of(5))
    assert hits[0]["metadata"]["width"] == 48
    both = ("red", "--image", photos / "005.png", "--text-weight", 0, "--where", "name < '006'")
    hits = answer(capsys, "search", "photos.library", *both)["hits"]
    assert (hits[0]["path"], len(hits)) == (str(photos / "005.png"), 5)


def test_indexing_again_says_what_changed_and_prunes_when_told(capsys, model, photos):
    answer(capsys, "index", model, photos)
    (photos / "captions.csv").unlink()
    (photos / "000.png").rename(photos / "moved.png")
    (photos / "001.png").unlink()
    picture_of(3).save(photos / "003.png")
    code, out, _ = said(capsys, "index", model, photos)
    assert code == 0
    assert out.splitlines()[0].startswith(
        "photos.library holds 8 pictures: 1 added, 1 moved, 5 unchanged (1 embedded, "
    )
    assert out.splitlines()[1].startswith("1 of them have lost their files; --prune drops those")
    pruned = answer(capsys, "index", model, "--prune")
    assert (pruned["removed"], pruned["gone"], pruned["pictures"]) == (1, 0, 7)


def test_tables_and_single_pictures_are_indexed_too(capsys, model, photos):
    found = answer(capsys, "index", model, photos / "000.png", "--library", "one.library")
    assert (found["added"], found["library"]) == (1, "one.library")
    options = ("--library", "some.library", "--text-column", "caption", "--where", "image < '002'")
    assert answer(capsys, "index", model, photos, *options)["pictures"] == 2


def refusal(capsys, *arguments):
    code, out, err = said(capsys, *arguments)
    assert (out, err[:7], err.count("error: ")) == ("", "error: ", 1)
    return code, err


def test_wrong_requests_are_one_line_with_the_remedy(capsys, model, photos, tmp_path):
    answer(capsys, "index", model, photos)
    library = ("search", "photos.library")
    for arguments, words in (
        (("search", "none", "red"), "none holds no library and no vectors. Make a library with"),
        (library, "a search takes words or --image, and neither was given"),
        ((*library, " "), "a search takes words, and ' ' holds none"),
        ((*library, "x", "--where", "widht > 1"), "Did you mean 'width'?"),
        ((*library, "x", "--model", tmp_path / "other"), "other: nothing is there. Check"),
        (("index", model, photos, "--library", photos), "holds other files and no library"),
        (("index", model, "--library", "new.library"), "no folder is given, and none was added"),
        (("index", model, "none"), "there is nothing at none"),
    ):
        code, line = refusal(capsys, *arguments)
        assert words in line
        assert code == 2


def test_a_library_without_pictures_or_fitting_ones_says_so(capsys, model, photos):
    refusal(capsys, "index", model, "none")
    code, out, _ = said(capsys, "search", "photos.library", "red")
    assert (code, out) == (
        0,
        "photos.library holds no pictures yet. Add some: diptych index MODEL DIR "
        "--library photos.library.\n",
    )
    answer(capsys, "index", model, photos)
    code, out, _ = said(capsys, "search", "photos.library", "red", "--where", "width > 999")
    assert (code, out) == (0, "no picture of photos.library fits the condition width > 999\n")
    assert answer(capsys, "search", "photos.library", "red", "--where", "0") == {"hits": []}


def test_the_index_is_announced_only_where_it_is_used(capsys, model, photos, monkeypatch):
    answer(capsys, "index", model, photos)
    monkeypatch.setattr(nearest, "TAIL_ROWS", 2)
    search = ("search", "photos.library", "red")
    opened, original = [], Library.open.__func__
    monkeypatch.setattr(
        Library, "open", classmethod(lambda *a, **k: (opened.append(a), original(*a, **k))[1])
    )
    code, _, err = said(capsys, *search, "--where", "width > 1")
    assert (code, err, len(opened)) == (0, "", 1)
    code, _, err = said(capsys, *search)
    assert (code, err, len(opened)) == (0, "the index takes in 7 pictures first\n", 2)
    assert said(capsys, *search)[2] == ""


def test_a_model_that_moved_is_asked_for(capsys, model, photos, tmp_path):
    moved = shutil.copytree(model, tmp_path / "copy")
    answer(capsys, "index", moved, photos)
    moved.rename(tmp_path / "elsewhere")
    code, line = refusal(capsys, "search", "photos.library", "red")
    assert code == 2
    assert line.endswith(
        "Give it with --model, or build a new library: diptych index MODEL DIR --library NEW.\n"
    )
    hits = answer(capsys, "search", "photos.library", "red", "--model", tmp_path / "elsewhere")
    assert len(hits["hits"]) == 7
    answer(capsys, "index", tmp_path / "elsewhere", photos)
    assert len(answer(capsys, "search", "photos.library", "red")["hits"]) == 7


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A model that is one file: a small one of OpenAI's kind."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    model = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    config = read_model(model, clip_tokenizer("open_clip"))
    torch.manual_seed(0)
    tensors = {
        name: torch.randn(place.shape) / 10 for place in places(config) for name in place.theirs
    }
    path = tmp_path_factory.mktemp("archive") / "model.safetensors"
    save_file(tensors | {name: torch.tensor(32) for name in FACTS}, path)
    return path


def test_a_model_that_is_one_file_is_found_again(capsys, model, archive, photos):
    answer(capsys, "index", archive, photos)
    assert len(answer(capsys, "search", "photos.library", "red")["hits"]) == 7
    answer(capsys, "embed", archive, "--data", photos, "--out", "v")
    assert len(answer(capsys, "search", "v", "red", "-k", 3)["hits"]) == 3
    code, line = refusal(capsys, "search", "photos.library", "red", "--model", model)
    assert code == 2
    assert "Give that model with --model, or build a new library" in line


def test_a_folder_of_vectors_is_still_searched(capsys, model, photos):
    answer(capsys, "embed", model, "--data", photos, "--out", "v")
    hits = answer(capsys, "search", "v", "--image", photos / "005.png", "-k", 2)["hits"]
    assert hits[0]["path"] == str(photos / "005.png")
    code, line = refusal(capsys, "search", "v", "red", "--where", "width > 1")
    assert code == 2
    assert "v holds vectors without metadata, and --where was given." in line
    code, line = refusal(capsys, "index", model, photos, "--library", "v")
    assert "v holds vectors of diptych embed, no library" in line
