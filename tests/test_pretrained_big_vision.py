"""big_vision's .npz files give the vectors of big_vision, here written out in numpy, by hand."""

import json
import math
import zipfile

import numpy as np
import pytest
import torch

from diptych.errors import CheckpointError, RequestError
from diptych.models.dual_encoder import DualEncoder
from diptych.pretrained.architectures import ARCHITECTURES, Architecture
from diptych.pretrained.big_vision import read_big_vision
from diptych.pretrained.open_clip_config import PREPROCESS

WIDTH, HEADS, HIDDEN, PATCH, SIDE, CONTEXT = 24, 3, 40, 8, 35, 7
GRID = SIDE // PATCH
TEXT_WIDTH, TEXT_HEADS, TEXT_HIDDEN, WORDS = 32, 2, 56, 40
LAYERS = 2
TEXTS = ["a red kite", "Two DOGS", "", "snow on the hill by the sea"]
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
LETTERS = {token: i for i, token in enumerate([*SPECIAL, "▁", *"abcdefghijklmnopqrstuvwxyz,&"])}
ATTENTION = "MultiHeadDotProductAttention_0"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """An architecture of the size that is tested."""
    model = {"embed_dim": WIDTH, "vision_cfg": {"image_size": SIDE}}
    model["text_cfg"] = {"vocab_size": WORDS, "context_length": CONTEXT}
    squash = {**PREPROCESS, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture(model, squash, clip_words=False))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A tokenizer.json as Gemma's, with letters as its tokens."""
    folder = tmp_path_factory.mktemp("words")
    model = {"type": "BPE", "vocab": LETTERS, "merges": [], "unk_token": "<unk>"}
    special = {"single_word": False, "lstrip": False, "rstrip": False}
    special |= {"normalized": False, "special": True}
    added = [{"id": LETTERS[word], "content": word, **special} for word in SPECIAL]
    whole = {"version": "1.0", "added_tokens": added, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    return folder / "tokenizer.json"


def block_shapes(start, width, heads, hidden):
    """Names and shapes of one block."""
    each = width // heads
    shapes = {}
    for part in ("query", "key", "value"):
        shapes[f"{start}{ATTENTION}/{part}/kernel"] = (width, heads, each)
        shapes[f"{start}{ATTENTION}/{part}/bias"] = (heads, each)
    shapes[f"{start}{ATTENTION}/out/kernel"] = (heads, each, width)
    shapes[f"{start}{ATTENTION}/out/bias"] = (width,)
    shapes[f"{start}MlpBlock_0/Dense_0/kernel"] = (width, hidden)
    shapes[f"{start}MlpBlock_0/Dense_0/bias"] = (hidden,)
    shapes[f"{start}MlpBlock_0/Dense_1/kernel"] = (hidden, width)
    shapes[f"{start}MlpBlock_0/Dense_1/bias"] = (width,)
    for norm in ("LayerNorm_0", "LayerNorm_1"):
        shapes |= {f"{start}{norm}/{end}": (width,) for end in ("scale", "bias")}
    return shapes


def arrays_of_siglip():
    """Random numbers under big_vision's names, fresh layout."""
    shapes = {
        "img/embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "img/embedding/bias": (WIDTH,),
        "img/pos_embedding": (1, GRID**2, WIDTH),
        "img/MAPHead_0/probe": (1, 1, WIDTH),
        "txt/Embed_0/embedding": (WORDS, TEXT_WIDTH),
        "txt/pos_embedding": (1, CONTEXT, TEXT_WIDTH),
        "txt/head/kernel": (TEXT_WIDTH, WIDTH),
        "txt/head/bias": (WIDTH,),
        "t": (1,),
        "b": (1,),
    }
    for layer in range(LAYERS):
        start = f"img/Transformer/encoderblock_{layer}/"
        shapes |= block_shapes(start, WIDTH, HEADS, HIDDEN)
        start = f"txt/Encoder_0/encoderblock_{layer}/"
        shapes |= block_shapes(start, TEXT_WIDTH, TEXT_HEADS, TEXT_HIDDEN)
    head = block_shapes("img/MAPHead_0/", WIDTH, HEADS, HIDDEN)
    shapes |= {name: shape for name, shape in head.items() if "LayerNorm_1" not in name}
    for start, width in (("img/Transformer", WIDTH), ("txt/Encoder_0", TEXT_WIDTH)):
        shapes |= {f"{start}/encoder_norm/{end}": (width,) for end in ("scale", "bias")}
    draw = np.random.default_rng(0)
    return {
        name: (draw.standard_normal(shape) * 0.3).astype(np.float32)
        for name, shape in shapes.items()
    }


def scanned(arrays):
    """The same as big_vision writes it when layers are a scan: one array for all of them."""
    stacked = {}
    for name, array in arrays.items():
        if "/encoderblock_" not in name:
            stacked[name] = array
        elif "/encoderblock_0/" in name:
            each = [name.replace("encoderblock_0", f"encoderblock_{i}") for i in range(LAYERS)]
            whole = np.stack([arrays[one] for one in each])
            stacked[name.replace("encoderblock_0", "encoderblock")] = whole
    return stacked


def norm_by_hand(p, name, x):
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred / spread * p[f"{name}/scale"] + p[f"{name}/bias"]


def mlp_by_hand(p, name, x):
    x = x @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"]
    x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]


def attention_by_hand(p, name, queries, tokens):
    """One head after another, one query after another."""
    heads, each, _ = p[f"{name}/out/kernel"].shape
    result = np.tile(p[f"{name}/out/bias"], (len(queries), 1))
    for head in range(heads):
        query, key, value = (
            x @ p[f"{name}/{part}/kernel"][:, head] + p[f"{name}/{part}/bias"][head]
            for part, x in (("query", queries), ("key", tokens), ("value", tokens))
        )
        for i in range(len(queries)):
            weights = np.exp(key @ query[i] / math.sqrt(each))
            result[i] += (weights / weights.sum()) @ value @ p[f"{name}/out/kernel"][head]
    return result


def encoder_by_hand(p, name, x):
    for layer in range(LAYERS):
        block = f"{name}/encoderblock_{layer}"
        y = norm_by_hand(p, f"{block}/LayerNorm_0", x)
        x = x + attention_by_hand(p, f"{block}/{ATTENTION}", y, y)
        x = x + mlp_by_hand(p, f"{block}/MlpBlock_0", norm_by_hand(p, f"{block}/LayerNorm_1", x))
    return norm_by_hand(p, f"{name}/encoder_norm", x)


def image_by_hand(p, picture):
    """The vector of one picture of (height, width, 3)."""
    tokens = []
    for row in range(GRID):
        for column in range(GRID):
            square = picture[row * PATCH :, column * PATCH :][:PATCH, :PATCH, :, None]
            tokens.append((square * p["img/embedding/kernel"]).sum((0, 1, 2)))
    x = np.stack(tokens) + p["img/embedding/bias"] + p["img/pos_embedding"][0]
    x = encoder_by_hand(p, "img/Transformer", x)
    head = "img/MAPHead_0"
    x = attention_by_hand(p, f"{head}/{ATTENTION}", p[f"{head}/probe"][0], x)
    x = x + mlp_by_hand(p, f"{head}/MlpBlock_0", norm_by_hand(p, f"{head}/LayerNorm_0", x))
    return x[0] / np.linalg.norm(x[0])


def text_by_hand(p, ids):
    """The vector of one text."""
    x = p["txt/Embed_0/embedding"][ids] + p["txt/pos_embedding"][0]
    x = encoder_by_hand(p, "txt/Encoder_0", x)[-1]
    x = x @ p["txt/head/kernel"] + p["txt/head/bias"]
    return x / np.linalg.norm(x)


def model_of(foreign):
    model = DualEncoder(foreign.config).eval()
    model.load_state_dict(foreign.tensors)
    return model


@pytest.mark.parametrize("prefix", ["", "params/"])
@pytest.mark.parametrize("layout", [dict, scanned])
def test_the_vectors_are_those_of_big_vision(tmp_path, vocabulary, layout, prefix):
    arrays = arrays_of_siglip()
    written = {prefix + name: array for name, array in layout(arrays).items()}
    optimizer = {"opt/0/count": np.zeros(3)} if prefix else {}
    np.savez(tmp_path / "siglip.npz", **written, **optimizer)
    foreign = read_big_vision(tmp_path / "siglip.npz", "tiny", tokenizer=vocabulary)
    model = model_of(foreign)
    pictures = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    ids = torch.from_numpy(foreign.tokenizer.encode(TEXTS)[0])
    with torch.no_grad():
        found = model.encode_image(pictures).numpy(), model.encode_text(ids).numpy()
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    seen = pictures.permute(0, 2, 3, 1).numpy().astype(np.float64)
    images = np.stack([image_by_hand(exact, picture) for picture in seen])
    texts = np.stack([text_by_hand(exact, row) for row in ids.numpy()])
    np.testing.assert_allclose(found[0], images, atol=1e-5)
    np.testing.assert_allclose(found[1], texts, atol=1e-5)
    assert model.log_scale.item() == arrays["t"][0]
    assert model.bias.item() == arrays["b"][0]


@pytest.fixture
def saved(tmp_path):
    """A file in which arrays are changed, or taken away."""

    def save(drop=(), **changed):
        arrays = {**arrays_of_siglip(), **changed}
        path = tmp_path / "siglip.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if name not in drop})
        return path

    return save


def test_the_contract_is_that_of_the_architecture(saved, vocabulary):
    foreign = read_big_vision(saved(), "tiny", tokenizer=vocabulary)
    assert foreign.made_by == "big_vision"
    assert (foreign.transform.image_size, foreign.transform.resize) == (SIDE, "squash")
    assert foreign.transform.mean == (0.5, 0.5, 0.5)
    assert foreign.config.image.cut_edge
    assert "the contract is that of tiny" in foreign.notes[0]


def test_texts_are_lower_cased_always_padded_and_keep_their_end(saved, vocabulary):
    tokenizer = read_big_vision(saved(), "tiny", tokenizer=vocabulary.parent).tokenizer
    texts = [*TEXTS, "A <b>", "Kites, &"]
    ids, cut = tokenizer.encode(texts)
    for row, text in zip(ids, texts, strict=True):
        letters = [LETTERS.get(sign, 3) for sign in text.lower().replace(" ", "▁")]
        expected = [*letters[: CONTEXT - 1], 1]
        assert row.tolist() == expected + [0] * (CONTEXT - len(expected))
    assert cut == 4


def test_numbers_of_two_bytes_without_a_meaning_are_bfloat16(saved, vocabulary):
    whole = arrays_of_siglip()["txt/head/kernel"]
    short = torch.from_numpy(whole).bfloat16()
    raw = short.view(torch.int16).numpy().view("V2")
    foreign = read_big_vision(saved(**{"txt/head/kernel": raw}), "tiny", tokenizer=vocabulary)
    torch.testing.assert_close(
        foreign.tensors["text_projection.weight"], short.float().T, rtol=0, atol=0
    )


def test_another_image_size_resizes_the_positions_bilinearly_between_corners(saved, vocabulary):
    foreign = read_big_vision(saved(), "tiny", tokenizer=vocabulary, image_size=56)
    assert foreign.config.image.image_size == foreign.transform.image_size == 56
    table = foreign.tensors["image.positions"].reshape(7, 7, WIDTH)
    old = arrays_of_siglip()["img/pos_embedding"].reshape(GRID, GRID, WIDTH)
    for row, column in ((0, 0), (0, 6), (6, 0), (6, 6), (2, 4)):
        np.testing.assert_allclose(table[row, column], old[row // 2, column // 2], atol=1e-6)
    np.testing.assert_allclose(table[1, 0], (old[0, 0] + old[1, 0]) / 2, atol=1e-6)
    assert model_of(foreign).encode_image(torch.zeros(1, 3, 56, 56)).shape == (1, WIDTH)


QUERY = f"img/Transformer/encoderblock_1/{ATTENTION}/query/bias"


@pytest.mark.parametrize(
    ("drop", "changed", "message"),
    [
        ([QUERY], {}, rf"has no {QUERY} \[3, 8\]. Copy"),
        ([], {QUERY: np.zeros((3, 9), np.float32)}, rf"{QUERY} has shape \[3, 9\].*\[3, 8\]"),
        ([], {"img/head/kernel": np.zeros((3, 4), np.float32)}, "has img/head/kernel, which a"),
        (["img/embedding/kernel"], {}, "is no SigLIP of big_vision: img/embedding/kernel is mis"),
        (["t"], {}, r"has no t \[1\]"),
        (
            ["txt/Embed_0/embedding"],
            {"txt/Embed_0/embedding": np.zeros((41, TEXT_WIDTH), np.float32)},
            "vocab_size 41, and tiny has 40. Name the architecture",
        ),
        ([], {"img/pos_embedding": np.zeros((1, 9, WIDTH), np.float32)}, r"\[1, 9, 24\].*\[1, 16,"),
        ([], {"b": np.array(["x"])}, "an array has the type <U1"),
        ([], {"b": np.array([{"a": 1}], dtype=object)}, "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_named(saved, vocabulary, drop, changed, message):
    drop = [name for name in drop if name not in changed]
    with pytest.raises(CheckpointError, match=message):
        read_big_vision(saved(drop, **changed), "tiny", tokenizer=vocabulary)


def test_nothing_pickled_in_a_file_is_run(saved, vocabulary, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = saved(b=np.array([Evil()], dtype=object))
    with pytest.raises(CheckpointError, match="Object arrays cannot be loaded"):
        read_big_vision(path, "tiny", tokenizer=vocabulary)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_is_named(saved, vocabulary, tmp_path):
    path = saved()
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"siglip.npz cannot be read as an .npz file"):
            read_big_vision(path, "tiny", tokenizer=vocabulary)
    with pytest.raises(CheckpointError, match=r"cannot be read as an .npz"):
        read_big_vision(tmp_path / "none.npz", "tiny", tokenizer=vocabulary)


def test_a_file_that_grows_out_of_proportion_is_not_opened(vocabulary, tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.npy", bytes(10_000_000))
    with pytest.raises(CheckpointError, match=r"says it holds 10,000,000"):
        read_big_vision(path, "tiny", tokenizer=vocabulary)


def test_requests_that_lack_something_say_what(saved, vocabulary):
    with pytest.raises(
        RequestError, match=r"there is no architecture 'tinny'. Did you mean 'tiny'"
    ):
        read_big_vision(saved(), "tinny", tokenizer=vocabulary)
    with pytest.raises(RequestError, match=r"'ViT-B-32' no SigLIP. Use the name of a SigLIP"):
        read_big_vision(saved(), "ViT-B-32", tokenizer=vocabulary)
    with pytest.raises(RequestError, match=r"has no vocabulary. Name its file"):
        read_big_vision(saved(), "tiny", tokenizer=None)


def test_a_text_has_the_same_vector_alone_and_in_any_batch(saved, vocabulary):
    foreign = read_big_vision(saved(), "tiny", tokenizer=vocabulary)
    model = model_of(foreign)

    def vectors(texts):
        with torch.no_grad():
            return model.encode_text(torch.from_numpy(foreign.tokenizer.encode(texts)[0]))

    together = vectors(TEXTS)
    for index, text in enumerate(TEXTS):
        torch.testing.assert_close(vectors([text])[0], together[index], rtol=0, atol=1e-6)
