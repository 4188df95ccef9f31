"""Figures of a report, as pieces of HTML: the loss curve (inline SVG) and the similarity matrix.

Nothing here touches pyplot or its global figures. Colours are CSS variables of `page.css` with
a fallback, so that one figure serves the light and the dark page.

`page.py` puts the pieces together.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from diptych.errors import DataError
from diptych.report.markup import escaped, picture_tag

TRAINING, VALIDATION, INK, MUTED, LINE = "#2f5bd7", "#c2410c", "#161a22", "#5c6573", "#dfe3e9"
VARIABLES = {
    TRAINING: "--accent",
    VALIDATION: "--second",
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
}
"""Colour in the drawing -> name of the CSS variable that replaces it."""

MOST_POINTS = 600
"""Points drawn of a curve; a longer log is averaged down to them."""


def loss_curve(
    log_rows: Sequence[dict[str, Any]],
    *,
    chance_loss: float | None = None,
    width: int = 960,
    height: int = 300,
) -> str:
    """Training loss (faint, and smoothed) and validation loss against the step, as inline SVG.

    Args:
        log_rows: Rows of the run's log: {"kind": "step" or "validation", "step", "loss", ...};
            other kinds and rows whose loss is not finite are passed over.
        chance_loss: Loss of a model that guesses, in nats: ln(batch) for the softmax loss.
        width: Of the drawing, in pixels; the page stretches it to fit.
        height: In pixels.

    Returns:
        An `svg` element, or "" where the log holds no loss.
    """
    steps, losses = _averaged(*_series(log_rows, "step"))
    val_steps, val_losses = _series(log_rows, "validation")
    if not len(steps) and not len(val_steps):
        return ""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    if len(steps):
        axes.plot(steps, losses, color=TRAINING, alpha=0.4, linewidth=1)
        axes.plot(steps, smoothed(losses), color=TRAINING, linewidth=2, label="training")
    if len(val_steps):
        axes.plot(val_steps, val_losses, "o-", color=VALIDATION, linewidth=1.2, label="validation")
    if chance_loss is not None:
        label = f"guessing ({chance_loss:.2f})"
        axes.axhline(chance_loss, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=label)
    _clean(axes, columns=3 if width > 500 else 2)
    description = _described(losses, val_losses, chance_loss)
    return _inline_svg(figure, description, name=f"loss{width}")


def similarity_matrix(
    matrix: Float[np.ndarray, "pictures captions"],
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
) -> str:
    """A table of pictures (down) against captions (across): shade and number say how alike.

    True pairs are on the diagonal and outlined; the best caption of each picture is in bold.

    Raises:
        DataError: The matrix has another shape, or holds NaN or infinity.
    """
    if matrix.shape != (len(pictures), len(captions)):
        raise DataError(
            f"the similarity matrix is {matrix.shape[0]} x {matrix.shape[1]} for "
            f"{len(pictures)} pictures and {len(captions)} captions. "
            "Give one row for each picture and one column for each caption."
        )
    if not np.isfinite(matrix).all():
        raise DataError("the similarity matrix holds NaN or infinity. Look at the embeddings.")
    low, high = matrix.min(initial=np.inf), matrix.max(initial=-np.inf)
    shades = (matrix - low) / (high - low) if high > low else np.zeros_like(matrix)
    heads = "".join(
        f'<th scope="col"><span class="clamp" title="{escaped(caption)}">'
        f"<bdi>{escaped(caption)}</bdi></span></th>"
        for caption in captions
    )
    rows = []
    for row, picture in enumerate(pictures):
        own = captions[row] if row < len(captions) else ""
        best = int(np.argmax(matrix[row])) if len(captions) else -1
        cells = "".join(
            _cell(value, shade, row == column, column == best)
            for column, (value, shade) in enumerate(
                zip(matrix[row].tolist(), shades[row].tolist(), strict=True)
            )
        )
        rows.append(f'<tr><th scope="row">{picture_tag(picture, own)}</th>{cells}</tr>')
    return (
        '<table class="matrix"><thead><tr><td></td>' + heads + "</tr></thead>"
        "<tbody>" + "\n".join(rows) + "</tbody></table>"
    )


def smoothed(losses: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Mean of neighbours on both sides, near ones first, over about a twentieth of the curve.

        for each point i:
            smooth[i] = mean of losses[j] with weight max(0, 1 - abs(i - j) / reach)

    A running average of the past would lag behind a falling loss, and draw it too high.
    """
    reach = max(1, len(losses) // 20)
    weights = 1 - np.abs(np.arange(1 - reach, reach)) / reach
    middle = slice(reach - 1, reach - 1 + len(losses))
    totals = np.convolve(losses, weights)[middle]
    return totals / np.convolve(np.ones_like(losses), weights)[middle]


def _series(
    log_rows: Sequence[dict[str, Any]], kind: str
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Steps and finite losses of one kind of row, in order of the step."""
    points = [
        (float(row["step"]), float(row["loss"]))
        for row in log_rows
        if row.get("kind") == kind and row.get("loss") is not None and np.isfinite(row["loss"])
    ]
    table = np.array(sorted(points), dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _averaged(
    steps: Float[np.ndarray, " rows"], losses: Float[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """At most `MOST_POINTS` points: means of neighbours."""
    if len(steps) <= MOST_POINTS:
        return steps, losses
    pieces = np.linspace(0, len(steps), MOST_POINTS + 1).astype(np.int64)
    sizes = np.diff(pieces)
    return (
        np.add.reduceat(steps, pieces[:-1]) / sizes,
        np.add.reduceat(losses, pieces[:-1]) / sizes,
    )


def _described(
    losses: Float[np.ndarray, " points"],
    val_losses: Float[np.ndarray, " validations"],
    chance_loss: float | None,
) -> str:
    """The curve in words, for readers who do not see it."""
    parts = []
    if len(losses):
        parts.append(f"training loss from {losses[0]:.2f} to {smoothed(losses)[-1]:.2f}")
    if len(val_losses):
        parts.append(f"validation loss from {val_losses[0]:.2f} to {val_losses[-1]:.2f}")
    if chance_loss is not None:
        parts.append(f"guessing gives {chance_loss:.2f}")
    return "; ".join(parts).capitalize() + "."


def _clean(axes: Axes, columns: int) -> None:
    """The house style: horizontal hairlines, no frame, the legend above the plot."""
    axes.grid(axis="y", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=12, length=0, pad=6)
    axes.margins(x=0.01, y=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(2 * columns, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("step", color=MUTED, fontsize=12)
    axes.set_ylabel("loss, in nats", color=MUTED, fontsize=12)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        ncols=columns,
        columnspacing=1.4,
        handlelength=1.4,
        frameon=False,
        fontsize=12,
        labelcolor=INK,
    )


def _inline_svg(figure: Figure, description: str, name: str) -> str:
    """The drawing as an `svg` element for a page: no prologue, no addresses, the page's colours."""
    buffer = io.StringIO()
    # text stays text, in the page's font; ids follow from `name`, so they repeat and are unique
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 : drawing.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;]*;", "font-family: inherit;", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable}, {colour})")
    width, height = figure.get_size_inches() * 72
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escaped(description)}" style="stroke-linejoin: round">{body}</svg>'
    )


def _cell(value: float, shade: float, own: bool, best: bool) -> str:
    """One cell of the similarity matrix; `shade` in 0 to 1."""
    names = [("own", own), ("best", best)]
    chosen = " ".join(name for name, holds in names if holds)
    number = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
    return f'<td class="{chosen}" style="--shade: {shade:.3f}">{number}</td>'
