"""Imports point down: a part may use the layers below it, and never a stranger of its own layer."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diptych"
LAYERS = [
    {"errors", "config", "batch", "comm", "files", "tensors"},
    {"nn"},
    {"models", "losses", "data"},
    {"contract"},
    {"checkpoint"},
    {"pretrained"},
    {"train", "evaluate", "predict", "search"},
    {"recipes"},
    {"report"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
WITHIN = {
    *(("config", "errors"), ("files", "errors"), ("comm", "errors"), ("batch", "errors")),
    *(("tensors", "errors"), ("tensors", "files")),
}


def imported_parts(path: Path) -> set[str]:
    """Parts of diptych that a file imports, at its top or inside its functions."""
    dotted: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            dotted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            dotted += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in dotted if name.startswith("diptych.")}


def part_of(path: Path) -> str:
    """The part of diptych a file belongs to: the first name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = part_of(path)
    assert part in LEVEL, f"{part} has no layer: list it in LAYERS"
    for other in imported_parts(path):
        down = LEVEL[other] < LEVEL[part] or other == part or (part, other) in WITHIN
        assert down, f"{part} (layer {LEVEL[part]}) imports {other} (layer {LEVEL[other]})"


def test_every_listed_part_exists():
    existing = {part_of(path) for path in FILES}
    assert set(LEVEL) == existing


def test_no_file_is_longer_than_a_sitting():
    lengths = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}
