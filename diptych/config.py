"""The base class of every config, and the ways a config is written: TOML, JSON, dotted overrides.

A config is frozen, refuses unknown keys, documents each field in a docstring below it and
checks itself. Each component's config lives beside the component; this file only knows how
configs behave.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from diptych.errors import ConfigError, nearest

AnyConfig = TypeVar("AnyConfig", bound="Config")
"""Instead of typing.Self, which beartype cannot check in a decorated method."""


class Config(BaseModel):
    """A frozen set of named values that refuses names it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(type(self), error)) from None

    # Tells pydantic to build inner configs without calling this __init__ for each: then the
    # outermost one explains the error, with the whole dotted name.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def read(cls: type[AnyConfig], path: Path) -> AnyConfig:
        """Read a config from a .toml or .json file.

        Raises:
            ConfigError: The file is missing, is not valid TOML or JSON, or holds wrong values.
        """
        try:
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except FileNotFoundError:
            raise ConfigError(f"there is no config file {path}. Check the path.") from None
        except ValueError as error:
            raise ConfigError(f"{path} cannot be read: {error}. Mend the file.") from None
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path} holds a {type(values).__name__}, not a table of settings. Mend the file."
            )
        return cls(**values)

    def override(self: AnyConfig, settings: Sequence[str]) -> AnyConfig:
        """A copy with dotted settings replaced, such as `["model.image.width=128", "seed=1"]`.

        Values are read as JSON where they are JSON, else as plain text.

        Raises:
            ConfigError: A setting has no `=`, names no field, or its value does not fit.
        """
        values = self.model_dump(mode="json")
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ConfigError(
                    f"setting {setting!r} has no '='. Write it as name=value, such as seed=1."
                )
            *parents, last = name.strip().split(".")
            table: Any = values
            for depth, part in enumerate([*parents, last]):
                if not isinstance(table, dict):
                    whole = ".".join(parents[:depth])
                    raise ConfigError(
                        f"there is no setting {name!r}: {whole} holds no settings. "
                        f"Write it as {whole}=value."
                    )
                if part not in table:
                    raise ConfigError(f"there is no setting {name!r}. {nearest(part, table)}")
                if depth < len(parents):
                    table = table[part]
            try:
                table[last] = json.loads(text)
            except ValueError:
                table[last] = text
        return type(self)(**values)


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = _fields_at(kind, first["loc"][:-1])
        return f"there is no setting {place!r}. {nearest(str(first['loc'][-1]), fields)}"
    if first["type"] == "missing":
        return f"setting {place!r} of {kind.__name__} is missing. Give it a value."
    return f"setting {place!r} is {first['input']!r}: {first['msg']}. Give a value that fits."


def _fields_at(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Names of the fields of the config found by walking `place` down from `kind`."""
    for part in place:
        inner = kind.model_fields[str(part)].annotation if part in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return list(kind.model_fields)
