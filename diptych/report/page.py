"""The HTML report of a run: one file, with every picture inside, that asks the network for nothing.

It opens in any browser, in light or dark, on a desk or on a phone, and runs no script.
Captions and facts are other people's text: all of it passes through `markup.escaped`.

`figures.py` draws, `page.css` is the look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from diptych.files import write_text
from diptych.report.figures import loss_curve, similarity_matrix
from diptych.report.markup import NARROW, escaped, percent, picture_tag

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the browser may load: nothing from outside the file, and no script."""

MARK = (
    '<svg class="mark" viewBox="0 0 28 20" aria-hidden="true">'
    '<rect x="1" y="1" width="12" height="18" rx="2"/>'
    '<rect x="15" y="1" width="12" height="18" rx="2" class="second"/></svg>'
)
"""Two panels, side by side."""


@dataclass(frozen=True)
class HitCell:
    """A picture that a query found."""

    picture: Image.Image

    score: float
    """Similarity to the query."""

    caption: str
    """What the data set says of the picture."""

    correct: bool
    """Whether the picture belongs to the query."""


@dataclass(frozen=True)
class QueryRow:
    """A text and the pictures found for it, best first."""

    text: str
    hits: Sequence[HitCell]


@dataclass(frozen=True)
class SimilarityBlock:
    """A few pairs against each other: picture i belongs to caption i."""

    pictures: Sequence[Image.Image]
    captions: Sequence[str]
    matrix: Float[np.ndarray, "pictures captions"]


def write_report(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    log_rows: Sequence[dict[str, Any]],
    retrieval: Mapping[str, Any],
    queries: Sequence[QueryRow],
    similarity: SimilarityBlock | None = None,
    chance_loss: float | None = None,
) -> Path:
    """Write the report of a run; a section without content is left out.

    Args:
        path: The file to write, such as runs/emoji/report.html. It appears whole or not at all.
        title: The heading, such as "clip-tiny on scenes".
        facts: (name, value) pairs for the table at the end: model, data, seed, fingerprint, ...
        log_rows: The run's log, see `figures.loss_curve`.
        retrieval: `RetrievalResult.to_dict()` of `diptych.evaluate.retrieval`.
        queries: Texts with the pictures found for them.
        similarity: Pairs to show against each other.
        chance_loss: Loss of a model that guesses, in nats; drawn as a line.

    Returns:
        `path`.

    Raises:
        DataError: The similarity matrix does not fit its pictures and captions.
    """
    sections = [
        _header(title, retrieval),
        _results(retrieval),
        _training(log_rows, chance_loss),
        _ask(queries),
        _pairs(similarity),
        _facts(facts),
        _footnote(retrieval),
    ]
    style = (files("diptych.report") / "page.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)} · Diptych report</title>\n<style>\n{style}</style>\n</head>\n"
        "<body>\n" + "\n".join(part for part in sections if part) + "\n</body>\n</html>\n"
    )
    write_text(path, page)
    return path


def in_words(retrieval: Mapping[str, Any]) -> str:
    """The result as one sentence, and honest where it is no better than guessing."""
    found = retrieval["text_to_image"]
    recall, chance = found["recall@1"], retrieval["chance"]["text_to_image"]["recall@1"]
    guessing = f"guessing would do so for {percent(chance)}"
    if recall["low"] <= chance <= recall["high"]:
        guessing += ", so this cannot be told from guessing"
    elif recall["high"] < chance:
        guessing += ", so this is worse than guessing"
    return (
        f"For {percent(recall['value'])} of {_count(found['queries'], 'caption')} the model puts a "
        f"right picture first among {found['candidates']:,} "
        f"(95{NARROW}% interval {_ends(recall)}); {guessing}."
    )


def _header(title: str, retrieval: Mapping[str, Any]) -> str:
    """The name of the run and its result in a sentence."""
    return (
        f'<header>\n<p class="brand">{MARK} Diptych report</p>\n'
        f'<h1><bdi>{escaped(title)}</bdi></h1>\n<p class="lead">{in_words(retrieval)}</p>\n'
        "</header>\n<main>"
    )


def _results(retrieval: Mapping[str, Any]) -> str:
    """Two panels: captions that look for pictures, pictures that look for captions."""
    panels = [
        _panel(
            *("Caption → picture", "caption", "picture"),
            *(retrieval["text_to_image"], retrieval["chance"]["text_to_image"]),
        ),
        _panel(
            *("Picture → caption", "picture", "caption"),
            *(retrieval["image_to_text"], retrieval["chance"]["image_to_text"]),
        ),
    ]
    return (
        '<section aria-labelledby="results">\n<h2 id="results">How well it finds</h2>\n'
        '<p class="sub">Each bar runs from 0 to 100 %. The mark is the result, the band its 95 % '
        "interval, the grey tick what guessing gives.</p>\n"
        '<div class="panels">\n' + "\n".join(panels) + "\n</div>\n</section>"
    )


def _panel(
    heading: str, asker: str, sought: str, found: Mapping[str, Any], chance: Mapping[str, float]
) -> str:
    """One direction: a tile for each recall, and the median rank."""
    tiles = "\n".join(_tile(name, found[name], share) for name, share in chance.items())
    rank = found["median_rank"]
    return (
        f'<article class="panel">\n<h3>{heading}</h3>\n'
        f'<p class="sub">{_count(found["queries"], asker)}, each among '
        f"{_count(found['candidates'], f'distinct {sought}')}</p>\n"
        f'<ul class="tiles">\n{tiles}\n</ul>\n'
        f'<p class="sub">Median rank <strong>{rank["value"]:,.4g}</strong> '
        f"({rank['low']:,.4g} to {rank['high']:,.4g})</p>\n</article>"
    )


def _tile(name: str, recall: Mapping[str, float], chance: float) -> str:
    """One recall: the number, its interval drawn and written, and what guessing gives."""
    k = name.removeprefix("recall@")
    place = "in first place" if k == "1" else f"in the first {k}"
    ends = f"--low: {100 * recall['low']:.2f}; --high: {100 * recall['high']:.2f}"
    points = f"--value: {100 * recall['value']:.2f}; --chance: {100 * chance:.2f}"
    value, sign = percent(recall["value"]).rsplit(NARROW, 1)
    return (
        f'<li class="tile"><span class="name">R@{k} <small>{place}</small></span>'
        f'<span class="value">{value}<small>{NARROW}{sign}</small></span>'
        f'<span class="bar" style="{ends}; {points}" aria-hidden="true">'
        "<i></i><b></b><u></u></span>"
        f'<span class="note">95{NARROW}%: {_ends(recall)}</span>'
        f'<span class="note">chance: {percent(chance)}</span></li>'
    )


def _training(log_rows: Sequence[dict[str, Any]], chance_loss: float | None) -> str:
    """The loss curve, drawn once for wide and once for narrow screens."""
    wide = loss_curve(log_rows, chance_loss=chance_loss)
    narrow = loss_curve(log_rows, chance_loss=chance_loss, width=340, height=280)
    if not wide:
        return ""
    return (
        '<section aria-labelledby="training">\n<h2 id="training">How it learned</h2>\n'
        f'<figure class="card chart"><div class="wide">{wide}</div>\n'
        f'<div class="narrow">{narrow}</div></figure>\n</section>'
    )


def _ask(queries: Sequence[QueryRow]) -> str:
    """Texts and the best pictures for each."""
    if not queries:
        return ""
    rows = "\n".join(_query(row) for row in queries)
    return (
        '<section aria-labelledby="ask">\n<h2 id="ask">Ask it</h2>\n'
        '<p class="sub">A text, and the pictures the model puts first, with its score and their '
        'own captions. <span class="tick">✓ match</span> marks a picture that the data set pairs '
        f'with the text.</p>\n<div class="card queries">\n{rows}\n</div>\n</section>'
    )


def _query(row: QueryRow) -> str:
    """One text with its pictures."""
    hits = "\n".join(_hit(rank, hit) for rank, hit in enumerate(row.hits, start=1))
    missed = "" if any(hit.correct for hit in row.hits) else '<p class="sub">No match shown.</p>'
    return (
        f'<article class="query">\n<div><h3><bdi>{escaped(row.text)}</bdi></h3>{missed}</div>\n'
        f'<ol class="hits">\n{hits}\n</ol>\n</article>'
    )


def _hit(rank: int, hit: HitCell) -> str:
    """One found picture."""
    tick = '<span class="tick">✓ match</span>' if hit.correct else ""
    return (
        f'<li class="hit{" correct" if hit.correct else ""}">'
        f"{picture_tag(hit.picture, hit.caption)}"
        f'<span class="line"><span>{rank}</span>{tick}<span>{hit.score:.2f}</span></span>'
        f'<span class="clamp" title="{escaped(hit.caption)}"><bdi>{escaped(hit.caption)}</bdi>'
        "</span></li>"
    )


def _pairs(similarity: SimilarityBlock | None) -> str:
    """Pairs against each other."""
    if similarity is None or not len(similarity.pictures):
        return ""
    table = similarity_matrix(similarity.matrix, similarity.pictures, similarity.captions)
    return (
        '<section aria-labelledby="pairs">\n<h2 id="pairs">Pair against pair</h2>\n'
        '<p class="sub">Similarity of each picture (down) to each caption (across). True pairs '
        "are outlined, the best caption of each picture is bold.</p>\n"
        f'<div class="card scroll" tabindex="0" role="region" aria-labelledby="pairs">{table}'
        "</div>\n</section>"
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    """What someone needs to repeat the run."""
    if not facts:
        return ""
    rows = "\n".join(
        f"<div><dt>{escaped(name)}</dt><dd><bdi>{escaped(value)}</bdi></dd></div>"
        for name, value in facts
    )
    return (
        '<section aria-labelledby="facts">\n<h2 id="facts">The run</h2>\n'
        f'<dl class="card facts">\n{rows}\n</dl>\n</section>'
    )


def _footnote(retrieval: Mapping[str, Any]) -> str:
    """What the numbers mean."""
    return (
        "</main>\n<footer>\n<p><strong>R@k</strong> is the share of queries with a right answer "
        "among the first k. Identical pictures count as one, identical captions too, and a hit on "
        "any copy counts. Ties count against the model.</p>\n"
        "<p><strong>95 % intervals</strong> come from a bootstrap: the test pictures are drawn "
        f"again {retrieval['resamples']:,} times (seed {retrieval['seed']}), each with all its "
        "captions, and the interval holds the middle 95 % of the results. (Where all queries "
        "succeed, or none, it is the exact binomial interval.) It tells how much the "
        "number would move with other test pictures of this kind; it says nothing of other seeds "
        "of training, or of other kinds of pictures. <strong>Chance</strong> is what a random "
        "order would score.</p>\n</footer>"
    )


def _ends(interval: Mapping[str, float]) -> str:
    """Both ends of an interval of shares, such as "55.5 to 61.2 %"."""
    return f"{percent(interval['low']).rsplit(NARROW, 1)[0]} to {percent(interval['high'])}"


def _count(number: int, noun: str) -> str:
    """A number and its noun, such as "1 picture" or "1,200 pictures"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
