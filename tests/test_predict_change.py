"""Using a change model: it says what the network says, in any chunk and picture by picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from small import picture_of, random_model

from diptych.checkpoint import Bundle, save_bundle
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig, normalise
from diptych.errors import CheckpointError, DataError, RequestError
from diptych.models.change import ChangeModel, ChangeModelConfig
from diptych.models.generation import beam, greedy
from diptych.predict.change import ChangeReader, _check_sequence, load_change
from diptych.tensors import load_tensors, save_tensors

TEXTS = ["a red ball was added.", "the blue cube has gone.", "nothing has changed.", "ball."]
SEQUENCES = [[picture_of(10 * row + n) for n in range(2 + row % 2)] for row in range(5)]


def reader_of(tmp_path, state="none", *, seed=1):
    """A reader of a model of which no weight is zero or one."""
    tokenizer = Tokenizer.learn(TEXTS, vocabulary=300, context=12)
    image = {"image_size": 16, "patch_size": 8, "width": 12, "layers": 2, "heads": 3}
    text = {"context": 12, "width": 12, "layers": 1, "heads": 3, "mlp_width": 20}
    names = ("vocabulary", "end_token", "pad_token")
    text["start_token"] = int(tokenizer.encode([""])[0][0, 0])
    config = ChangeModelConfig(
        image=image | {"mlp_width": 20, "class_token": False, "pool": "mean", "state": state},
        text=text | {name: getattr(tokenizer, name) for name in names},
    )
    model = ChangeModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
        model.connector.down.weight *= 10  # so that the text depends on the pictures
    transform = ImageTransformConfig(image_size=16)
    return ChangeReader(Bundle(model, tokenizer, transform, f"random {state} {seed}"), tmp_path)


@pytest.fixture(params=["none", "cross_ffn"])
def reader(request, tmp_path):
    return reader_of(tmp_path, request.param)


@pytest.fixture
def plain(tmp_path):
    return reader_of(tmp_path)


def said(changes):
    return [change.text for change in changes]


def assert_same(found, expected):
    assert said(found) == said(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)


def test_what_is_read_is_what_the_model_says(reader):
    net, tokenizer, transform = reader._net, reader._bundle.tokenizer, reader.transform
    for change, sequence in zip(reader.read(SEQUENCES), SEQUENCES, strict=True):
        pixels = torch.from_numpy(np.stack([reader.prepare(picture) for picture in sequence]))
        image = normalise(pixels, transform.mean, transform.std)[None]
        with torch.no_grad():
            tokens = net.encode(image)
            text = greedy(net.text, net.prefix(tokens))[0].tolist()
            output = net(image, torch.tensor([text]))
        assert change.text == tokenizer.decode(text)
        assert change.score == pytest.approx(output.changed.sigmoid().item(), abs=1e-5)
        assert change.score_is == "probability"
        np.testing.assert_allclose(change.heatmap, output.place[0].sigmoid(), atol=1e-5)
        assert change.labels == []
    assert len({change.text for change in reader.read(SEQUENCES)}) > 1


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_a_sequence_is_read_the_same_alone_and_in_any_chunk(reader, chunk):
    assert_same(
        reader.read(SEQUENCES, chunk=chunk),
        [reader.read([sequence])[0] for sequence in SEQUENCES],
    )


def test_each_part_alone_is_that_of_the_whole(reader):
    whole = reader.read(SEQUENCES, beams=3)
    assert reader.describe(SEQUENCES, beams=3) == said(whole)
    scores, maps = reader.changed(SEQUENCES), reader.heatmap(SEQUENCES)
    assert (scores.dtype, maps.dtype, maps.shape) == (np.float32, np.float32, (5, 2, 2))
    for change, score, heatmap in zip(whole, scores, maps, strict=True):
        assert change.score == pytest.approx(score, abs=1e-6)
        np.testing.assert_allclose(change.heatmap, heatmap, atol=1e-6)


def test_no_sequence_gives_nothing(plain):
    assert plain.read([]) == plain.describe([]) == []
    assert plain.changed([]).shape == (0,)
    assert plain.heatmap([]).shape == (0, 2, 2)


def test_beams_and_draws_are_those_of_generation(plain):
    net = plain._net
    prefixes = [
        net.prefix(tokens) for _, tokens in plain._tokens([row[:2] for row in SEQUENCES], 32)
    ]
    expected = beam(net.text, prefixes[0], beams=4).tolist()
    pairs = [row[:2] for row in SEQUENCES]
    assert plain.describe(pairs, beams=4) == [
        plain._bundle.tokenizer.decode(row) for row in expected
    ]
    drawn = plain.describe(pairs, top_p=1.0, seed=1)
    assert plain.describe(pairs, top_p=1.0, seed=1) == drawn
    assert plain.describe(pairs, top_p=1.0, seed=2) != drawn
    assert plain.describe(pairs, top_p=1e-6) == plain.describe(pairs)


def test_foretold_is_the_loss_of_each_token_of_each_text(reader):
    texts = [TEXTS[row % 4] for row in range(5)]
    sums, counts = reader.foretold(SEQUENCES, texts, chunk=2)
    ids = torch.from_numpy(reader._bundle.tokenizer.encode(texts)[0])
    net = reader._net
    for row, sequence in enumerate(SEQUENCES):
        ((_, tokens),) = reader._tokens([sequence], 1)
        with torch.no_grad():
            logits = net.text(net.prefix(tokens), ids[row : row + 1])[0]
        used = [place for place in range(1, 12) if ids[row, place] != net.config.text.pad_token]
        nats = [-logits[place].log_softmax(dim=0)[ids[row, place]].item() for place in used]
        assert counts[row] == len(nats)
        assert sums[row] == pytest.approx(sum(nats), rel=1e-4)
    with pytest.raises(RequestError, match=r"there are 5 sequences and 1 texts\. Give one text"):
        reader.foretold(SEQUENCES, ["one"])


def test_a_stream_says_of_each_picture_what_is_read_of_all_up_to_it(reader):
    pictures, stream = [picture_of(n) for n in range(4)], reader.stream()
    for last, picture in enumerate(pictures):
        change = stream.next(picture, beams=2)
        if last:
            assert_same([change], reader.read([pictures[: last + 1]], beams=2))


def test_the_first_picture_of_a_stream_changed_nothing(reader):
    stream = reader.stream()
    first = stream.next(picture_of(0))
    assert (first.text, first.score, first.score_is) == ("", 0, "probability")
    np.testing.assert_array_equal(first.heatmap, np.zeros((2, 2), np.float32))
    assert stream.next(picture_of(1)).score > 0
    with pytest.raises(RequestError, match="beams is 0"):
        reader.stream().next(picture_of(0), beams=0)


def test_a_stream_goes_on_where_it_was_saved(reader, tmp_path):
    pictures, stream = [picture_of(n) for n in range(4)], reader.stream()
    for picture in pictures[:2]:
        stream.next(picture)
    stream.save(tmp_path / "stream.safetensors")
    other = reader.stream()
    other.load(tmp_path / "stream.safetensors")
    for picture in pictures[2:]:
        assert_same([other.next(picture)], [stream.next(picture)])


def test_a_stream_stands_still_at_a_picture_that_cannot_be_read(reader, tmp_path):
    stream, untouched = reader.stream(), reader.stream()
    for one in (stream, untouched):
        one.next(picture_of(0))
    with pytest.raises(DataError, match="is no picture that can be read"):
        stream.next(b"this is no picture")
    assert_same([stream.next(picture_of(1))], [untouched.next(picture_of(1))])


def test_a_stream_that_does_not_fit_is_refused(reader, tmp_path):
    path = tmp_path / "stream.safetensors"
    with pytest.raises(RequestError, match=r"has seen no picture.*Call next first"):
        reader.stream().save(path)
    stream = reader.stream()
    stream.next(picture_of(0))
    stream.save(path)
    other = reader_of(tmp_path, seed=4)
    with pytest.raises(CheckpointError, match="no stream of the model random none 4: it says 'ran"):
        other.stream().load(path)
    kept = load_tensors(path)
    save_tensors(path, kept | {"tokens": kept["tokens"] + 1})
    with pytest.raises(CheckpointError, match=r"was changed after it was saved\. Copy the file"):
        reader.stream().load(path)
    save_tensors(path, {name: kept[name] for name in kept if name != "model"})
    with pytest.raises(CheckpointError, match=r"no stream of the model random .* it says ''"):
        reader.stream().load(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        reader.stream().load(path)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        reader.stream().load(tmp_path / "nothing")


def test_a_saved_model_reads_as_before(reader, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    bundle = reader._bundle
    save_bundle(folder, bundle.model, bundle.tokenizer, bundle.transform)
    again = load_change(folder, device="cpu")
    assert_same(again.read(SEQUENCES), reader.read(SEQUENCES))
    assert again.parameters == reader.parameters


def test_a_model_of_vectors_is_refused(tmp_path):
    bundle = random_model(tmp_path)._bundle
    save_bundle(tmp_path, bundle.model, bundle.tokenizer, bundle.transform)
    with pytest.raises(RequestError, match=r"not a change model.*diptych\.load"):
        load_change(tmp_path)


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        (["a.png", "b.png"], r"sequence 0 is one picture \(str\).*Give \[\[before, after\]\]"),
        ([[picture_of(0)], []], r"sequence 1 has no picture\. Give \[before, after\]"),
        ([["there/is/nothing.png"]], "nothing.png"),
    ],
)
def test_what_is_no_list_of_pictures_is_refused(plain, sequences, words):
    with pytest.raises(RequestError, match=words):
        plain.read(sequences)


@pytest.mark.parametrize("one", [picture_of(0), np.zeros((9, 9, 3), np.uint8)])
def test_one_picture_is_refused_where_a_list_belongs(one):
    with pytest.raises(RequestError, match=r"sequence 3 is one picture \((Image|ndarray)\)"):
        _check_sequence(3, one)


def test_a_picture_that_cannot_be_read_is_an_error(plain):
    with pytest.raises(DataError, match="is no picture that can be read"):
        plain.changed([[picture_of(0), b"this is no picture"]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beams": 0}, r"beams is 0, and no text is continued\. Use 1 or more"),
        ({"beams": 2, "top_p": 0.5}, r"beams 2 looks for the likeliest text, and top_p 0\.5 draws"),
        ({"top_p": 1.5}, r"top_p is 1\.5, which is no share in \(0, 1\]\. Use 0\.9"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_options_out_of_range_are_refused(plain, options, words):
    with pytest.raises(RequestError, match=words):
        plain.read(SEQUENCES, **options)


def test_arrays_and_grey_pictures_are_read_like_others(plain):
    picture = picture_of(1)
    arrays = [np.asarray(picture), np.asarray(picture)]
    assert_same(plain.read([arrays]), plain.read([[picture, picture]]))
    plain.read([[picture.convert("L"), Image.new("RGBA", (7, 5))]])
