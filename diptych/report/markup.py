"""Text, numbers and pictures as safe pieces of HTML.

Captions come from strangers: everything that is text passes through `escaped`.
"""

import base64
import html
import io
import unicodedata

from PIL import Image, ImageOps

LONGEST_TEXT = 300
"""Characters of a caption that are shown; the rest becomes an ellipsis."""

JOINERS = "\u200c\u200d"
"""Invisible characters that stay: Persian and emoji are spelt with them."""

NARROW = "\u202f"
"""A narrow space at which lines do not break."""

THUMBNAIL_SIDE = 224
"""Longest side of an inlined picture, in pixels: twice what the page shows, for dense screens."""


def escaped(text: str) -> str:
    """Text that cannot leave its place in the page: neither as markup nor as control characters."""
    short = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
    # Cc: control characters; Cf: invisible ones, such as those that turn the direction of
    # writing round; Cs: halves of characters, which UTF-8 cannot write
    kept = (
        " " if unicodedata.category(sign) == "Cc" else sign
        for sign in short
        if sign in JOINERS or unicodedata.category(sign) not in ("Cf", "Cs")
    )
    return html.escape("".join(kept), quote=True)


def percent(share: float) -> str:
    """A share in percent: "63.4 %", "100 %", and "0.25 %" where one decimal would say too little.

    The sign stays on the line of its number.
    """
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f}{NARROW}%"
    if value < 0.001:
        return f"under 0.001{NARROW}%"
    return f"{value:.2g}{NARROW}%" if value < 1 else f"{value:.1f}{NARROW}%"


def picture_tag(picture: Image.Image, alt: str) -> str:
    """An `img` that carries its picture inside, without the metadata of the original."""
    upright = ImageOps.exif_transpose(picture)
    small = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    kind, data = "png", _encoded(small, "PNG", optimize=True)
    if small.mode == "RGB":
        jpeg = _encoded(small, "JPEG", quality=88)
        if len(jpeg) < len(data):  # photographs; drawings are smaller and sharper as PNG
            kind, data = "jpeg", jpeg
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return (
        f'<img src="{source}" alt="{escaped(alt)}" width="{small.width}" height="{small.height}">'
    )


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
