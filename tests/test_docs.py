"""What README.md says is so: commands, options, files, recipes; and its examples run."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from diptych import cli
from diptych.pretrained.hub import ALIASES
from diptych.recipes import RECIPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SMALLER = {"clip-mini": "clip-tiny", "--epochs 40": "--steps 3 --batch 8 --workers 0"}
"""How the README's examples are made quick."""


def blocks(language):
    """The fenced blocks of one language in the README."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands_of(text):
    """Lines that call diptych, without their comments."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [shlex.split(line)[1:] for line in lines if line.startswith("diptych ")]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with photos/ and test-photos/, as the README's reader has."""
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "test-photos"):
        (tmp_path / folder).mkdir()
        rows = ["image,caption"]
        for number in range(24):
            picture = Image.new("RGB", (40, 32), (number * 10, 99, 240 - number * 10))
            ImageDraw.Draw(picture).rectangle((number, 4, number + 9, 20), fill="white")
            picture.save(tmp_path / folder / f"{number}.png")
            rows.append(f"{number}.png,picture number {number}")
        (tmp_path / folder / "captions.csv").write_text("\n".join(rows) + "\n")
    Image.new("RGB", (30, 40), "red").save("a.jpg")
    Image.new("RGB", (31, 17), "blue").save("b.png")
    return tmp_path


def test_the_examples_of_the_readme_run(photos, capsys):
    text = "".join(blocks("sh"))
    for long, short in SMALLER.items():
        assert long in text
        text = text.replace(long, short)
    commands = [command for command in commands_of(text) if command]
    assert [command[0] for command in commands] == [
        "train",
        "evaluate",
        "index",
        "search",
        "classify",
    ]
    for command in commands:
        assert cli.run(command) == 0, capsys.readouterr().err
    assert len(capsys.readouterr().out.strip().splitlines()[-5:]) == 5

    python = "".join(blocks("python"))
    python = "import torch\nscale, bias = torch.tensor(10.0), torch.tensor(-10.0)\n" + python
    before, losses = python.split("from diptych.losses")
    tensors = "image, text = torch.from_numpy(image), torch.from_numpy(text)\n"
    names: dict[str, object] = {}
    exec(before + tensors + "from diptych.losses" + losses, names)
    assert names["loss"].isfinite()


def test_the_table_lists_every_command_and_no_other():
    table = set(re.findall(r"^\| `diptych (\w+)", README, re.MULTILINE))
    there = {command.callback.__name__ for command in cli.app.registered_commands}
    assert table == there


def test_every_command_has_help_with_an_example(capsys):
    for command in cli.app.registered_commands:
        assert cli.run([command.callback.__name__, "--help"]) == 0
        said = capsys.readouterr().out
        assert f"diptych {command.callback.__name__}" in said.partition("Example:")[2]


def test_every_option_of_the_readme_exists(capsys):
    for command in cli.app.registered_commands:
        cli.run([command.callback.__name__, "--help"])
    helps = capsys.readouterr().out
    for option in set(re.findall(r"(?<=[\s`(\[/])--[a-z][a-z-]+", README)):
        assert option in helps, f"README names {option}, which no command has"


def test_every_recipe_and_short_name_of_the_readme_exists():
    names = set(re.findall(r"`((?:clip|siglip2?|laion|metaclip)-[a-z0-9-]+)`", README))
    assert len(names) > 10
    assert names <= {*RECIPES, *ALIASES}
    assert set(ALIASES) - {"default"} <= names


def test_every_file_of_the_tree_exists():
    tree = next(block for block in re.findall(r"```\n(diptych/\n.*?)```", README, re.DOTALL))
    names = re.findall(r"([\w]+(?:\.py|/))", tree)
    assert len(names) > 10
    for name in names:
        assert name == "diptych/" or (ROOT / "diptych" / name).exists(), name
    there = {path.name for path in (ROOT / "diptych").iterdir() if path.suffix == ".py"}
    assert there - {"__init__.py", "__main__.py"} <= set(names)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")))
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
