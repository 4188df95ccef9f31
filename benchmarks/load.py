"""How long from a folder to the first picture's and the first text's vector: ViT-L/14, 1.7 GB.

    .venv-peers/bin/python benchmarks/load.py

A model with random weights is saved as open_clip does, and the same model as a Diptych folder.
Every measurement is a new process: interpreter, imports, weights, preprocessing, one picture, one
text, all in fp32. Sides alternate, and the best of each counts; files are in the system's cache.
The peak is what the system says the process held at most (VmHWM), over the bytes of the weights;
it is taken in Diptych's own environment (.venv), because importing a torch built for GPUs, as the
peers' is, takes 300 MB more. Times are all of the peers' environment.

The peer is open_clip as it is, reading its own folder. A second open_clip, whose random
initialisation is patched out of torch by hand, shows how much of the difference that makes: no
option of open_clip does it, so those ratios are printed and kept without a target. The vectors of
both libraries are compared too. The results go to results/load.json.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPEATS = 3
NAME = "ViT-L-14"
TEXT = "a photo of a red bicycle in front of a house"
FASTER, LEANER = 0.5, 1.2
"""Targets: our time over that of open_clip as it is, our peak over the weights."""

ASIDE = "open_clip with its random initialisation patched out by hand (no option of its own)"
"""What the ratios without a target are to."""

NEARLY = 1e-5
"""Largest difference of two libraries' vectors."""


def vectors_of_diptych(folder: Path, picture: Path) -> list[list[float]]:
    """The picture's and the text's vector by Diptych."""
    import diptych

    model = diptych.load(folder, device="cpu")
    return [model.encode_image([picture])[0].tolist(), model.encode_text([TEXT])[0].tolist()]


def vectors_of_open_clip(folder: Path, picture: Path) -> list[list[float]]:
    """The same by open_clip, as its README does it."""
    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)
    with torch.inference_mode():
        image = model.encode_image(preprocess(Image.open(picture))[None], normalize=True)
        text = model.encode_text(tokenizer([TEXT]), normalize=True)
    return [image[0].tolist(), text[0].tolist()]


def vectors_of_open_clip_patched(folder: Path, picture: Path) -> list[list[float]]:
    """The same without random numbers for weights that are about to be read."""
    import torch

    for name in ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    for name in ("normal_", "uniform_"):
        setattr(torch.Tensor, name, lambda tensor, *_, **__: tensor)
    for name in ("randn", "rand"):
        setattr(torch, name, torch.empty)
    return vectors_of_open_clip(folder, picture)


OWN = Path(__file__).parent.parent / ".venv" / "bin" / "python"
"""Diptych's own environment, with torch for CPUs."""

PEERS = Path(sys.executable)

SIDES: dict[str, tuple[Path, str, Callable[[Path, Path], list[list[float]]]]] = {
    "diptych, its own folder": (PEERS, "diptych", vectors_of_diptych),
    "diptych, open_clip's folder": (PEERS, "open_clip", vectors_of_diptych),
    "open_clip": (PEERS, "open_clip", vectors_of_open_clip),
    "open_clip, patched": (PEERS, "open_clip", vectors_of_open_clip_patched),
    "diptych in .venv, its own folder": (OWN, "diptych", vectors_of_diptych),
    "diptych in .venv, open_clip's folder": (OWN, "open_clip", vectors_of_diptych),
}
"""With which interpreter, which folder, and what is done with it."""


def one_side(side: str, place: Path) -> None:
    """Do one side in this process, and print when it was done and what it took."""
    _, folder, vectors_of = SIDES[side]
    vectors = vectors_of(place / folder, place / "picture.jpg")
    done = time.monotonic()
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF)
    worked = used.ru_utime + used.ru_stime
    print(json.dumps({"done": done, "worked": worked, "peak": peak, "vectors": vectors}))


def measure(side: str, place: Path) -> dict[str, Any]:
    """Seconds, processor seconds, peak bytes and vectors of one side in its own process."""
    command = [str(SIDES[side][0]), __file__, "--side", side, "--place", str(place)]
    start = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return {"seconds": result.pop("done") - start, **result}


def save_as_open_clip(folder: Path) -> int:
    """A model with random weights as open_clip saves one; gives the bytes of its weights."""
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from safetensors.torch import save_file

    logging.disable(logging.WARNING)  # it warns that the weights are random
    model = open_clip.create_model(NAME)
    preprocess = {
        "mean": OPENAI_DATASET_MEAN,
        "std": OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": open_clip.get_model_config(NAME), "preprocess_cfg": preprocess}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return sum(weight.nbytes for weight in weights.values())


def save_both(place: Path) -> int:
    """Both folders and a picture; gives the bytes of the weights."""
    import numpy as np
    from PIL import Image

    from diptych.pretrained.convert import convert
    from diptych.pretrained.opening import open_model

    size = save_as_open_clip(place / "open_clip")
    convert(open_model(place / "open_clip"), place / "diptych", "diptych")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(place / "picture.jpg", quality=95)
    return size


def largest_difference(one: list[list[float]], other: list[list[float]]) -> float:
    """Over all numbers of both vectors."""
    return max(
        abs(a - b)
        for ours, theirs in zip(one, other, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def main() -> None:
    """Measure, print, write results/load.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--place", type=Path)
    asked = parser.parse_args()
    if asked.side:
        one_side(asked.side, asked.place)
        return
    from common import Ratio, machine, ratio_of_seconds, ratio_table, write_results

    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        size = save_both(Path(place))
        for _ in range(REPEATS):
            for side, runs in found.items():
                runs.append(measure(side, Path(place)))
    seconds = {side: [run["seconds"] for run in runs] for side, runs in found.items()}
    worked = {side: [run["worked"] for run in runs] for side, runs in found.items()}
    peaks = {side: max(run["peak"] for run in runs) for side, runs in found.items()}
    own, other, plain, patched, own_lean, other_lean = SIDES
    difference = largest_difference(found[other][0]["vectors"], found[plain][0]["vectors"])
    ratios = [
        ratio_of_seconds("time, open_clip's folder", seconds[other], seconds[plain], FASTER),
        ratio_of_seconds("time, Diptych's folder", seconds[own], seconds[plain], FASTER),
        Ratio("peak memory / weights, open_clip's folder", peaks[other_lean] / size, LEANER),
        Ratio("peak memory / weights, Diptych's folder", peaks[own_lean] / size, LEANER),
        Ratio("difference of the vectors / 1e-5", difference / NEARLY, 1.0),
    ]
    aside = {side: min(seconds[side]) / min(seconds[patched]) for side in (other, own)}
    print(ratio_table(ratios))
    print(f"without a target, time over that of {ASIDE}:")
    for side, ratio in aside.items():
        print(f"{side:<38}{ratio:8.4f}")
    for side, values in seconds.items():
        print(
            f"{side:<38}{min(values):7.2f} s  {min(worked[side]):6.2f} processor seconds  "
            f"peak {peaks[side] / size:6.3f} x the weights"
        )
    write_results(
        "load",
        ratios,
        {
            "seconds": seconds,
            "processor_seconds": worked,
            "without_target": {"over": ASIDE, "time": aside},
            "peak_bytes": peaks,
            "weights_bytes": size,
            "peer": plain,
            "machine": machine(["torch", "open_clip_torch", "safetensors"]),
        },
    )


if __name__ == "__main__":
    main()
