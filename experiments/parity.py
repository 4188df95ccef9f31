"""Diptych's numbers against the original libraries', digit for digit: writes docs/parity.md.

The original library makes a model of a published shape, every weight and statistic random, and
saves it as it saves any model. Diptych opens that folder, and both encode the same pictures and
texts: vectors and logits are compared, the pixels that the towers see bit for bit, token ids one by
one. Each case is a process of its own; finished ones (runs/parity/) are not done again.

    .venv-peers/bin/python experiments/parity.py [NAME …]
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

import diptych
from diptych.data.transforms import normalise

DATA = Path(os.environ.get("DIPTYCH_DATA", "../shared/data"))
RUNS = Path("runs/parity")
PAGE = Path("docs/parity.md")
BOUND = 1e-5
"""Largest difference of a number of a unit vector, and of a logit."""

SIZES = (
    *((1, 1), (2, 3), (31, 700), (700, 31), (223, 225), (224, 224), (225, 224), (337, 336)),
    *((640, 427), (427, 640), (500, 375), (97, 389), (1023, 767), (384, 383), (255, 256)),
)
"""Width and height of the pictures, in pixels."""

PER_LANGUAGE = 300
"""Texts of each of the 19 languages, with their emoji; every tenth is over-long."""

IN_VECTORS = 64
"""Texts whose vectors are compared too."""


@dataclass(frozen=True)
class Original:
    """What the library that saved a model says of it."""

    pixels: Callable[[Image.Image], Tensor]
    """(3, size, size), float32."""

    ids: Callable[[list[str]], Tensor]
    image_vectors: Callable[[Tensor], Tensor]
    text_vectors: Callable[[Tensor], Tensor]
    scale: float
    bias: float


@dataclass(frozen=True)
class Case:
    """One model."""

    name: str
    library: str
    save: Callable[[Path], Original]


def pictures() -> list[Image.Image]:
    """Smooth colours with noise, of many sizes."""
    made = []
    for number, (width, height) in enumerate(SIZES):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (7, 5, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noise = random.integers(-30, 31, smooth.shape)
        made.append(Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)))
    return made


def texts() -> list[str]:
    """Names of emoji in 19 languages, with the emoji; every tenth with all keywords five times."""
    table = pq.read_table(DATA / "emoji" / "captions_multilingual.parquet").to_pylist()
    by_language: dict[str, list[str]] = {}
    for row in table:
        known = by_language.setdefault(row["lang"], [])
        emoji = "".join(chr(int(code, 16)) for code in row["codepoint"].split("-"))
        words = ", ".join(row["keywords"] or ())
        long = f" ({words}) " * 5 if len(known) % 10 == 0 else ""
        known.append(f"{emoji} {row['name']}{long} &amp; “{words}”")
    step = {language: max(1, len(found) // PER_LANGUAGE) for language, found in by_language.items()}
    return [
        text
        for language, found in by_language.items()
        for text in found[:: step[language]][:PER_LANGUAGE]
    ]


@torch.no_grad()
def shuffle_weights(model: nn.Module) -> nn.Module:
    """Give every bias, gain and statistic a random value too: zeros and ones hide mistakes."""
    random = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or value.numel() == 1:
            continue
        noise = torch.randn(value.shape, generator=random)
        if name.endswith("running_var"):
            value.copy_(1 + 0.2 * noise.abs())
        elif value.ndim == 1:
            value.add_(0.05 * noise)
    return model.eval()


def clip_files(folder: Path) -> Any:
    """CLIP's tokenizer as transformers has it, from the merges that open_clip brings."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    rename = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {rename.get(token, token): number for token, number in simple.encoder.items()}
    made = CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks), model_max_length=77)
    made.save_pretrained(folder)
    return made


def sentencepiece_model(folder: Path, pieces: int, kind: str) -> Path:
    """A vocabulary trained on the texts, with the ids of T5 (unigram) or Gemma (bpe)."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    ids = (
        {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        if kind == "unigram"
        else {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    )
    gemma = {"byte_fallback": True, "split_digits": True, "add_dummy_prefix": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()),
        model_prefix=str(folder / "spiece"),
        vocab_size=pieces,
        model_type=kind,
        normalization_rule_name="nmt_nfkc" if kind == "unigram" else "identity",
        remove_extra_whitespaces=kind == "unigram",
        character_coverage=0.9995,
        max_sentence_length=100_000,
        minloglevel=2,
        **ids,
        **({} if kind == "unigram" else gemma),
    )
    return folder / "spiece.model"


def siglip_tokenizer(folder: Path, generation: int) -> Any:
    """SigLIP's (sentencepiece) or SigLIP 2's (Gemma's kind) tokenizer, saved into the folder."""
    if generation == 1:
        from transformers import SiglipTokenizer

        path = sentencepiece_model(folder, 8_000, "unigram")
        made = SiglipTokenizer(str(path), model_max_length=64)
    else:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
        from transformers import Siglip2Tokenizer

        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        bytes_ = [f"<0x{number:02X}>" for number in range(256)]
        inner = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        inner.normalizer = normalizers.Replace(" ", "▁")
        inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        inner.decoder = decoders.Replace("▁", " ")
        trainer = trainers.BpeTrainer(
            vocab_size=12_000, special_tokens=special + bytes_, show_progress=False
        )
        inner.train_from_iterator((text.lower() for text in texts()), trainer)
        model = json.loads(inner.to_str())["model"]
        merges = [tuple(merge) for merge in model["merges"]]
        made = Siglip2Tokenizer(vocab=model["vocab"], merges=merges, model_max_length=64)
    made.save_pretrained(folder)
    return made


def of_open_clip(name: str) -> Callable[[Path], Original]:
    """A case of open_clip: its own model, saved as its hub folders are."""

    def save(folder: Path) -> Original:
        import open_clip
        from open_clip.push_to_hf_hub import save_for_hf

        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        config = open_clip.get_model_config(name)
        kind = config["text_cfg"].get("hf_tokenizer_name")
        if kind:
            siglip_tokenizer(folder, 2 if "SigLIP2" in name else 1)
        model: Any = shuffle_weights(open_clip.create_model(name))
        if kind:
            from open_clip.tokenizer import HFTokenizer

            config["text_cfg"]["hf_tokenizer_name"] = str(folder)
            context = config["text_cfg"]["context_length"]
            tokenizer: Any = HFTokenizer(
                str(folder), context_length=context, **config["text_cfg"]["tokenizer_kwargs"]
            )
        else:
            tokenizer = open_clip.get_tokenizer(name)
            tokenizer.save_pretrained = lambda _: None
        save_for_hf(model, tokenizer, config, str(folder), safe_serialization=True)
        from open_clip.transform import PreprocessCfg, image_transform_v2

        preprocess = image_transform_v2(
            PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
        )
        return Original(
            pixels=preprocess,
            ids=tokenizer,
            image_vectors=lambda pixels: model.encode_image(pixels, normalize=True),
            text_vectors=lambda ids: model.encode_text(ids, normalize=True),
            scale=model.logit_scale.exp().item(),
            bias=0.0 if model.logit_bias is None else model.logit_bias.item(),
        )

    return save


def of_transformers(vision: dict[str, Any], text: dict[str, Any], kind: str) -> Any:
    """A case of transformers: `kind` is clip, siglip or siglip2."""

    def save(folder: Path) -> Original:
        import transformers

        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        if kind == "clip":
            tokenizer = clip_files(folder)
            config = transformers.CLIPConfig(
                vision_config=vision,
                text_config=text | {"eos_token_id": 49407, "bos_token_id": 49406},
                projection_dim=vision["projection_dim"],
            )
            model: Any = transformers.CLIPModel(config)
            size = {"shortest_edge": vision["image_size"]}
            crop = {"height": vision["image_size"], "width": vision["image_size"]}
            processor: Any = transformers.CLIPImageProcessorPil(size=size, crop_size=crop)
        else:
            tokenizer = siglip_tokenizer(folder, 2 if kind == "siglip2" else 1)
            model = transformers.SiglipModel(
                transformers.SiglipConfig(vision_config=vision, text_config=text)
            )
            size = {"height": vision["image_size"], "width": vision["image_size"]}
            processor = transformers.SiglipImageProcessorPil(size=size)
        shuffle_weights(model)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        context = 77 if kind == "clip" else text["max_position_embeddings"]

        def ids(strings: list[str]) -> Tensor:
            return tokenizer(
                strings,
                padding="max_length",
                truncation=True,
                max_length=context,
                return_tensors="pt",
            ).input_ids

        def unit(output: Any) -> Tensor:
            return nn.functional.normalize(output.pooler_output, dim=-1)

        return Original(
            pixels=lambda picture: processor(picture, return_tensors="pt").pixel_values[0],
            ids=ids,
            image_vectors=lambda pixels: unit(model.get_image_features(pixel_values=pixels)),
            text_vectors=lambda tokens: unit(model.get_text_features(input_ids=tokens)),
            scale=model.logit_scale.exp().item(),
            bias=model.logit_bias.item() if kind != "clip" else 0.0,
        )

    return save


def vit(width: int, layers: int, patch: int, image: int, **more: Any) -> dict[str, Any]:
    """A vision tower of transformers."""
    shape = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    heads = {"num_attention_heads": width // 64, "patch_size": patch, "image_size": image}
    return shape | heads | more


def clip_text(width: int, **more: Any) -> dict[str, Any]:
    """A text tower of transformers' CLIP."""
    shape = {"hidden_size": width, "intermediate_size": 4 * width}
    return shape | {"num_attention_heads": width // 64, "num_hidden_layers": 12} | more


SO400M = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
}
SIGLIP_TEXT = vit(768, 12, 1, 1) | {"vocab_size": 32_000, "max_position_embeddings": 64}
SIGLIP_TEXT = {k: v for k, v in SIGLIP_TEXT.items() if k not in ("patch_size", "image_size")}

CASES = (
    *(
        Case(name, "open_clip", of_open_clip(name))
        for name in (
            *("RN50", "ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14-336"),
            *("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "ViT-SO400M-14-SigLIP"),
        )
    ),
    Case(
        "CLIP B/32",
        "transformers",
        of_transformers(
            vit(768, 12, 32, 224, projection_dim=512), clip_text(512, projection_dim=512), "clip"
        ),
    ),
    Case(
        "CLIP B/16",
        "transformers",
        of_transformers(
            vit(768, 12, 16, 224, projection_dim=512), clip_text(512, projection_dim=512), "clip"
        ),
    ),
    Case(
        "CLIP L/14@336",
        "transformers",
        of_transformers(
            vit(1024, 24, 14, 336, projection_dim=768), clip_text(768, projection_dim=768), "clip"
        ),
    ),
    Case(
        "SigLIP B/16", "transformers", of_transformers(vit(768, 12, 16, 224), SIGLIP_TEXT, "siglip")
    ),
    Case(
        "SigLIP So400m/14",
        "transformers",
        of_transformers(
            SO400M | {"patch_size": 14, "image_size": 224},
            SO400M | {"vocab_size": 32_000, "max_position_embeddings": 64},
            "siglip",
        ),
    ),
    Case(
        "SigLIP 2 B/16",
        "transformers",
        of_transformers(vit(768, 12, 16, 224), SIGLIP_TEXT | {"vocab_size": 256_000}, "siglip2"),
    ),
)


@torch.inference_mode()
def measure(case: Case) -> dict[str, Any]:
    """Save, open, compare."""
    folder = RUNS / case.name.replace("/", "-").replace(" ", "-")
    original = case.save(folder)
    ours = diptych.load(folder, device="cpu")
    images, strings = pictures(), texts()
    theirs = torch.stack([original.pixels(picture) for picture in images])
    prepared = np.stack([ours.prepare(picture) for picture in images])
    transform = ours.transform
    pixels = normalise(torch.from_numpy(prepared), transform.mean, transform.std)
    different = [
        size for size, a, b in zip(SIZES, pixels, theirs, strict=True) if not torch.equal(a, b)
    ]
    their_ids = torch.cat(list(_in_parts(strings, original.ids)))
    our_ids, cut = ours.tokenize(strings)
    wrong = (our_ids != their_ids.numpy()).any(axis=1)
    some = [strings[number] for number in range(0, len(strings), len(strings) // IN_VECTORS)]
    their_image = original.image_vectors(theirs).numpy()
    their_text = original.text_vectors(original.ids(some)).numpy()
    our_image, our_text = ours.encode_image(images), ours.encode_text(some)
    their_logits = original.scale * their_image @ their_text.T + original.bias
    our_logits = ours.scale * our_image @ our_text.T + (ours.bias or 0.0)
    return {
        "name": case.name,
        "library": case.library,
        "parameters": ours.parameters,
        "image": float(np.abs(our_image - their_image).max()),
        "text": float(np.abs(our_text - their_text).max()),
        "logits": float(np.abs(our_logits - their_logits).max()),
        "scale": original.scale,
        "pictures": len(images),
        "pictures_different": [list(size) for size in different],
        "texts": len(strings),
        "texts_cut": cut,
        "texts_different": [strings[number] for number in np.flatnonzero(wrong)[:20]],
        "texts_different_count": int(wrong.sum()),
        "notes": list(ours.notes),
    }


def _in_parts(strings: list[str], encode: Callable[[list[str]], Tensor]) -> Iterator[Tensor]:
    """Ids of a few strings at a time."""
    for start in range(0, len(strings), 500):
        yield encode(strings[start : start + 500])


def page(results: list[dict[str, Any]]) -> str:
    """The page, in Markdown."""
    import open_clip
    import transformers

    lines = [
        "# Parity with the original libraries",
        "",
        "Written by `.venv-peers/bin/python experiments/parity.py`. No pretrained weights can be",
        "downloaded where this was run, so the weights are random, every bias, gain and running",
        "statistic too: the original library makes a model of the published shape and saves it,",
        "and Diptych opens that folder.",
        "",
        f"- *Vectors, logits*: largest absolute difference over {len(SIZES)} pictures of odd sizes",
        f"  and {IN_VECTORS} texts; the bound is {BOUND:g}, at the scale a model begins with.",
        "- *Pixels*: what the tower sees, bit for bit, against the original's Pillow path.",
        f"- *Ids*: of {results[0]['texts']:,} texts in 19 languages, with emoji, HTML entities and",
        "  curly quotes; every tenth is over-long. The vocabularies of SigLIP and SigLIP 2 were",
        "  trained for this (sentencepiece unigram, BPE with bytes); CLIP's is the published one.",
        "  *Cut* is how many texts were too long for the model and lost their end.",
        "",
        f"Versions: open_clip {open_clip.__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__.split('+')[0]}.",
        "",
        "| saved by | model | parameters | image vectors | text vectors | logits | pixels differ "
        "| ids differ | cut |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in results:
        lines.append(
            f"| {found['library']} | {found['name']} | {found['parameters'] / 1e6:.1f} M "
            f"| {found['image']:.1e} | {found['text']:.1e} | {found['logits']:.1e} "
            f"| {len(found['pictures_different'])} of {found['pictures']} "
            f"| {found['texts_different_count']} of {found['texts']:,} | {found['texts_cut']:,} |"
        )
    worst = max(max(found["image"], found["text"], found["logits"]) for found in results)
    lines += ["", f"Largest of all: {worst:.1e}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do what is missing, then write the page."""
    if sys.argv[1:2] == ["--case"]:
        case = next(case for case in CASES if case.name == sys.argv[2])
        found = measure(case)
        RUNS.mkdir(parents=True, exist_ok=True)
        _result(case).write_text(json.dumps(found, indent=1))
        return
    wanted = sys.argv[1:] or [case.name for case in CASES]
    for case in CASES:
        if case.name in wanted and not _result(case).exists():
            print(f"{case.library} {case.name}", flush=True)
            subprocess.run([sys.executable, __file__, "--case", case.name], check=True)
    results = [json.loads(_result(case).read_text()) for case in CASES if _result(case).exists()]
    PAGE.write_text(page(results))
    print(page(results))


def _result(case: Case) -> Path:
    """Where a case's result is kept."""
    return RUNS / f"{case.name.replace('/', '-').replace(' ', '-')}.json"


if __name__ == "__main__":
    main()
