"""Examining the machine for `diptych doctor`: what is there, and three short measurements."""

import io
import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diptych.data.pictures import to_rgb
from diptych.data.transforms import ImageTransformConfig, evaluation_transform
from diptych.train.step import has_fast_bf16


def examine(device_name: str, seed: int) -> tuple[dict[str, str | int | float], list[str]]:
    """Facts and advice. Takes about two seconds."""
    device = torch.device(device_name)
    bf16 = has_fast_bf16(device)
    facts: dict[str, str | int | float] = {
        "diptych": version("diptych"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "torch_threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "disk_free_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "device": _device_name(device),
        "bf16_in_hardware": bf16,
        "fp32_gflops": _matmul_gflops(device, torch.float32),
    }
    if bf16:
        facts["bf16_gflops"] = _matmul_gflops(device, torch.bfloat16)
    facts["jpeg_per_s"] = _decode_rate(seed)
    return facts, _advice(facts, device)


def _advice(facts: dict[str, str | int | float], device: torch.device) -> list[str]:
    """What to do about what was found."""
    advice = []
    if device.type == "cpu":
        advice.append("no GPU: train the -small recipes; larger ones want CUDA")
    if not facts["bf16_in_hardware"]:
        advice.append("no bf16 in hardware: training runs in fp32")
    elif float(facts["bf16_gflops"]) < 1.2 * float(facts["fp32_gflops"]):
        advice.append("bf16 is hardly faster than fp32 here: try --set precision=fp32")
    if float(facts["disk_free_gb"]) < 5:
        advice.append("less than 5 GB of disk are free: checkpoints may not fit")
    return advice


def _memory_gb() -> float:
    """Main memory."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return 0.0


def _device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu ({line.partition(':')[2].strip()})"
    return f"cpu ({platform.processor() or platform.machine()})"


def _matmul_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of a 1024-cubed matrix product, in 10^9 operations per second."""
    side = 1024
    left = torch.ones(side, side, device=device, dtype=dtype)

    def product() -> None:
        torch.matmul(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return round(2 * side**3 * _rate(product) / 1e9, 1)


def _decode_rate(seed: int) -> float:
    """JPEG pictures of 640 x 480 decoded and resized to 224 px per second, on one core."""
    noise = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    config = ImageTransformConfig(image_size=224)
    data = buffer.getvalue()
    return round(_rate(lambda: evaluation_transform(to_rgb(data), config)), 1)


def _rate(work: Callable[[], object], seconds: float = 0.5) -> float:
    """How often per second `work` can be done."""
    work()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - start)
