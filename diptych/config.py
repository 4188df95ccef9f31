"""The base class of every config, and the ways a config is written: TOML, JSON, dotted overrides.

A config is frozen, refuses unknown keys, documents each field in a docstring below it and
checks itself. Each component's config lives beside the component; this file only knows how
configs behave.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Tag, TypeAdapter, ValidationError

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
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read: {error}. Mend the file.") from None
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path} holds a {type(values).__name__}, not a table of settings. Mend the file."
            )
        return cls(**values)

    def override(self: AnyConfig, settings: Sequence[str]) -> AnyConfig:
        """A copy with dotted settings replaced, such as `["model.image.width=128", "seed=1"]`.

        Values are read as JSON where they are JSON, else as plain text. A text that stands for a
        whole config may be followed by settings of that config.

        Raises:
            ConfigError: A setting has no `=`, names no field, or its value does not fit.
        """
        values = self.model_dump(mode="json")
        turned = {}
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
                    table[part] = _spelt_out(self, [*parents[:depth], part], table[part])
                    table = table[part]
            old = table[last]
            try:
                table[last] = json.loads(text)
            except ValueError:
                table[last] = text
            if last == "kind" and table[last] != old:
                turned[".".join(parents)] = table[last]
        try:
            return type(self)(**values)
        except ConfigError as error:
            for place, kind in turned.items():
                if f"'{place}." in str(error) and f"'{place}.kind'" not in str(error):
                    raise _other_kind(place, kind) from None
            raise


def _spelt_out(config: Any, place: Sequence[str], value: Any) -> Any:
    """All settings that a text in a place of `config` stands for, such as the name of a variant;
    any other value as it is.

    Raises:
        ConfigError: The text does not fit there.
    """
    *parents, last = place
    for part in parents:
        config = getattr(config, part, None)
    fields = type(config).model_fields if isinstance(config, Config) else {}
    if not isinstance(value, str) or last not in fields:
        return value
    try:
        meant = TypeAdapter(fields[last].rebuild_annotation()).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(
            f"setting {'.'.join(place)!r} is {value!r}: {reason}. Give a value that fits."
        ) from None
    return meant.model_dump(mode="json") if isinstance(meant, Config) else value


def _other_kind(place: str, kind: str) -> ConfigError:
    """A table was called another kind and kept the settings of the old one."""
    whole = f'{place}={{"kind":"{kind}"}}'
    return ConfigError(
        f"{place} has other settings when its kind is {kind!r}, and those of the old kind do not "
        f"fit. Replace it whole (--set '{whole}', with what else differs from the defaults "
        "beside the kind), or begin with a recipe of that kind."
    )


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    parts, fields = _walk(kind, first["loc"])
    place = ".".join(parts)
    if first["type"] == "extra_forbidden":
        return f"there is no setting {place!r}. {nearest(parts[-1], fields)}"
    if first["type"] == "missing":
        return f"setting {place!r} of {kind.__name__} is missing. Give it a value."
    if first["type"] == "union_tag_invalid":
        tag, known = first["ctx"]["tag"], first["ctx"]["expected_tags"]
        return f"setting '{place}.kind' is {tag!r}: known are {known}. Give one of them."
    return f"setting {place!r} is {first['input']!r}: {first['msg']}. Give a value that fits."


def _walk(kind: type[BaseModel], place: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """The names a user writes for a place inside `kind`, and the fields beside the last of them.

    Where several configs may stand, pydantic puts the one that was chosen into the place by the
    value of its field `kind`; users do not.
    """
    parts: list[str] = []
    choices: dict[str, type[BaseModel]] = {}
    fields: list[str] = list(kind.model_fields)
    for part in map(str, place):
        if part in choices:
            kind, choices = choices[part], {}
            continue
        parts.append(part)
        fields = list(kind.model_fields)
        inner = kind.model_fields[part].annotation if part in kind.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner
        choices = _choices(inner)
    return parts, fields


def _choices(annotation: Any) -> dict[str, type[BaseModel]]:
    """The configs of a union by their `Tag`, which is what a config says as its `kind`; none if
    the annotation is something else."""
    if get_origin(annotation) not in (Union, UnionType):
        return {}
    tagged = [get_args(member) for member in get_args(annotation)]
    return {
        mark.tag: config
        for config, *marks in filter(None, tagged)
        for mark in marks
        if isinstance(mark, Tag)
    }
