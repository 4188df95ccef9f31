"""The names and signatures that others rely on (design.md), in whatever order they are used."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

import diptych


def in_new_python(code):
    """What a new interpreter prints."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def parameters_of(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", diptych.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(diptych, name) is not None
    assert name in dir(diptych)
    assert not inspect.ismodule(getattr(diptych, name))


def test_the_list_is_sorted_and_whole():
    assert list(diptych.__all__) == sorted(diptych._WHERE)


def test_using_a_model_is_as_promised():
    assert parameters_of(diptych.load)[0] == "path"
    model = diptych.Model
    assert parameters_of(model.encode_image)[:2] == ["self", "images"]
    assert parameters_of(model.encode_text)[:2] == ["self", "texts"]
    assert parameters_of(model.score) == ["self", "images", "texts"]
    assert parameters_of(model.classify) == ["self", "images", "labels", "templates"]
    assert parameters_of(model.encode_sequences)[:2] == ["self", "sequences"]


def test_comparing_is_as_promised():
    assert parameters_of(diptych.compare)[:4] == ["model", "before", "after", "labels"]
    assert parameters_of(diptych.load_change)[0] == "path"
    fields = [field.name for field in dataclasses.fields(diptych.Change)]
    assert fields == ["text", "score", "score_is", "heatmap", "labels"]


def test_the_losses_are_as_promised():
    from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive

    both = (
        (softmax_contrastive, ["image", "text", "scale"]),
        (sigmoid_contrastive, ["image", "text", "scale", "bias"]),
    )
    for loss, given in both:
        found = inspect.signature(loss).parameters
        assert list(found) == [*given, "tile", "groups"]
        for name in ("tile", "groups"):
            assert found[name].kind is inspect.Parameter.KEYWORD_ONLY
            assert found[name].default is None


def test_every_error_is_a_diptych_error():
    errors = [name for name in diptych.__all__ if name.endswith("Error")]
    assert len(errors) == 7
    for name in errors:
        assert issubclass(getattr(diptych, name), diptych.DiptychError)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"diptych has no 'Libary'; it has .*load"):
        _ = diptych.Libary


def test_importing_diptych_imports_nothing_heavy():
    heavy = ("torch", "numpy", "PIL", "pydantic", "typer", "pyarrow", "matplotlib")
    code = f"import sys, diptych; dir(diptych); print([m for m in {heavy} if m in sys.modules])"
    assert in_new_python(code) == "[]"


@pytest.mark.parametrize(
    "before",
    [
        "diptych.find_recipe('clip-tiny')",
        "from diptych.train import loop, run; from diptych.search import exact",
        "diptych.train; diptych.search; import diptych.train.loop, diptych.search.exact",
    ],
)
def test_names_that_parts_carry_too_are_functions_in_any_order(before):
    code = f"import diptych\n{before}\nprint(diptych.train.__name__, callable(diptych.train), "
    assert in_new_python(f"{code}callable(diptych.search), callable(diptych.embed))") == (
        "train True True True"
    )
