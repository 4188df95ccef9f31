"""`diptych recipes` and `diptych doctor`: what there is, and what this machine can do."""

from diptych.cli.common import Device, Json, Seed, answer


def recipes(as_json: Json = False, seed: Seed = 0, device: Device = "auto") -> None:
    """List the recipes that `diptych train` knows.

    Example: diptych recipes
    """
    import torch

    from diptych.models.kinds import build_model
    from diptych.recipes import RECIPES, about

    rows, lines = [], []
    for name, make in RECIPES.items():
        run = make()
        with torch.device("meta"):
            size = sum(weight.numel() for weight in build_model(run.model).parameters())
        rows.append({"name": name, "parameters": size, "batch": run.batch, "about": about(name)})
        lines.append(f"{name:<22}{size / 1e6:>6.1f} M  {about(name)}")
    answer(as_json, {"recipes": rows}, "\n".join(lines))


def doctor(as_json: Json = False, seed: Seed = 0, device: Device = "auto") -> None:
    """Say what this machine can do, with advice.

    Example: diptych doctor
    """
    from diptych.cli.machine import examine
    from diptych.predict.model import choose_device

    facts, advice = examine(choose_device(device), seed)
    lines = [f"{name:<22}{value}" for name, value in facts.items()]
    lines += [f"advice: {line}" for line in advice]
    answer(as_json, {**facts, "advice": advice}, "\n".join(lines))
