"""Labels in templates: one unit vector each, and what is refused."""

import numpy as np
import pytest

from diptych.data.prompts import (
    TEMPLATES,
    check_labels,
    class_vectors,
    fill,
    read_labels,
    read_templates,
)
from diptych.errors import RequestError


def encode(texts):
    """Unit vectors that depend on the text alone."""
    rows = [
        np.random.default_rng([ord(letter) for letter in text]).normal(size=8) for text in texts
    ]
    vectors = np.array(rows)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_class_is_the_unit_mean_of_its_unit_vectors():
    templates = ("{}", "a photo of a {}.", "two {}, one {}")
    expected = []
    for label in ("cat", "guinea pig"):
        vectors = [encode([template.replace("{}", label)])[0] for template in templates]
        mean = sum(vector / np.linalg.norm(vector) for vector in vectors) / len(vectors)
        expected.append(mean / np.linalg.norm(mean))
    found = class_vectors(encode, ["cat", "guinea pig"], templates)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_without_templates_our_own_are_used():
    np.testing.assert_array_equal(
        class_vectors(encode, ["cat"]), class_vectors(encode, ["cat"], TEMPLATES)
    )


@pytest.mark.parametrize("template", ["a {}.", "a {c}."])
def test_a_label_with_signs_of_its_own_is_put_in_as_it_is(template):
    assert fill(template, "50% {0} c}") == "a 50% {0} c}."


def test_templates_are_read_from_a_file_of_clip_benchmark(tmp_path):
    path = tmp_path / "zeroshot_classification_templates.txt"
    path.write_text("a photo of a {c}.\n\n  a drawing of a {}. \n")
    assert read_templates(path) == ("a photo of a {c}.", "a drawing of a {}.")


def test_what_cannot_be_used_is_refused(tmp_path):
    bad = tmp_path / "bad.txt"
    for text, words in (("", r"no list of templates"), ("a cat\n", r"'a cat' has no place for th")):
        bad.write_text(text)
        with pytest.raises(RequestError, match=words):
            read_templates(bad)
    with pytest.raises(RequestError, match=r"nowhere.txt cannot be read: No such file"):
        read_templates(tmp_path / "nowhere.txt")
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="it is not UTF-8 text"):
        read_labels(bad)
    bad.write_text("cat\ndog\ncat\n")
    with pytest.raises(RequestError, match=r"bad.txt: the label 'cat' is given twice"):
        read_labels(bad)
    with pytest.raises(RequestError, match="label 2 of 3 is blank"):
        check_labels(["cat", " ", "dog"])
    with pytest.raises(RequestError, match="no list of labels"):
        class_vectors(encode, [])
