"""What kind of value belongs into a field of another library's config: that of the default.

Python takes "no" for true and repeats a text that is multiplied, so a config with a wrong kind of
value is refused before a model is made of it.
"""

from typing import Any

KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
}
"""What each kind is called in a message, and what counts as one."""


def missing_kind(value: Any, default: Any) -> str | None:
    """What belongs where `value` stands, such as "a whole number".

    None: it is right, or the default does not tell.
    """
    name, right = KINDS.get(type(default), ("", ()))
    return name if right and type(value) not in right else None
