"""From a decoder to texts: the likeliest token each time, the best of several beams, or a draw.

All three read the prefix once and then one token at a time, with the keys and values of what was
read kept (`Decoder.step`). A row's text ends with its own end token, whatever the others do; what
stands behind it is padding. A text without an end token was cut at the context.

Padding and the start token are never written. `decoder.py` is the model, `predict/change.py` makes
strings of the ids.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diptych.models.decoder import Cache, Decoder, DecoderConfig


@torch.no_grad()
def greedy(
    decoder: Decoder, prefix: Float[Tensor, "batch given width"]
) -> Int64[Tensor, "batch length"]:
    """The likeliest token at each place, given those before it.

        while the text has not ended and there is room:
            text.append(argmax p(token | prefix, text))

    Returns:
        Texts from the start token to the end token, padded on the right to the longest of them.
    """
    text, cache = _begun(decoder.config, prefix), decoder.read(prefix)
    ended = torch.zeros_like(text[:, 0], dtype=torch.bool)
    for _ in range(decoder.config.context - 1):
        chances = _next(decoder, text[:, -1], cache)
        text, ended = _appended(decoder.config, text, ended, chances.argmax(dim=1))
        if ended.all():
            break
    return text


@torch.no_grad()
def nucleus(
    decoder: Decoder,
    prefix: Float[Tensor, "batch given width"],
    *,
    top_p: float,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Int64[Tensor, "batch length"]:
    """A draw among the likeliest tokens at each place: the fewest whose chances sum to `top_p`.

    Args:
        decoder: What writes.
        prefix: What it reads.
        top_p: In (0, 1]; 1 draws among all tokens.
        generator: Where the draws come from; on the device of the prefix. The rows share it.
        temperature: Above 0; divides the logits first. Below 1 the likely becomes likelier.

    Returns:
        As `greedy`.

    Raises:
        ValueError: `top_p` or `temperature` is out of range.

    Paper: Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv:1904.09751.
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not in (0, 1]. Use 0.9.")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0. Use 1, or `greedy`.")
    text, cache = _begun(decoder.config, prefix), decoder.read(prefix)
    ended = torch.zeros_like(text[:, 0], dtype=torch.bool)
    for _ in range(decoder.config.context - 1):
        chances = _next(decoder, text[:, -1], cache)
        chances = likeliest((chances / temperature).softmax(dim=1), top_p)
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        text, ended = _appended(decoder.config, text, ended, drawn)
        if ended.all():
            break
    return text


def likeliest(
    chances: Float[Tensor, "batch vocabulary"], top_p: float
) -> Float[Tensor, "batch vocabulary"]:
    """The chances with all set to 0 but the fewest, largest ones that sum to `top_p`."""
    sorted_, order = chances.sort(dim=1, descending=True, stable=True)
    before = sorted_.cumsum(dim=1) - sorted_  # what the likelier ones sum to
    before[:, 0] = 0
    return torch.zeros_like(chances).scatter(1, order, sorted_ * (before < top_p))


@torch.no_grad()
def beam(
    decoder: Decoder, prefix: Float[Tensor, "batch given width"], *, beams: int
) -> Int64[Tensor, "batch length"]:
    """The best of several texts that are continued side by side.

        keep = {(start)}
        repeat until all kept texts have ended:
            grown = every text in keep with every token behind it; ended ones as they are
            keep = the `beams` texts of grown with the highest mean log p per token
        return the best of keep

    The mean, rather than the sum, lets long texts win over short ones. One beam is `greedy`; beams
    for all texts search exhaustively.

    Args:
        decoder: What writes.
        prefix: What it reads.
        beams: Texts kept of each row, 1 or more.

    Returns:
        As `greedy`.

    Raises:
        ValueError: `beams` is below 1.
    """
    if beams < 1:
        raise ValueError(
            f"beams {beams} is below 1. Use 4, or 1 for the likeliest token each time."
        )
    config, rows = decoder.config, len(prefix)
    cache = decoder.read(prefix).repeated(beams)
    text = _begun(config, prefix).repeat_interleave(beams, dim=0)  # (rows * beams, length)
    ended = torch.zeros_like(text[:, 0], dtype=torch.bool)
    log_p = torch.full((rows, beams), float("-inf"), device=prefix.device)
    log_p[:, 0] = 0.0  # at first all beams are the same text: one of them counts
    tokens = torch.zeros(rows, beams, device=prefix.device)  # in each text, the start left out
    first = torch.arange(0, rows * beams, beams, device=prefix.device)[:, None]
    for _ in range(config.context - 1):
        chances = _next(decoder, text[:, -1], cache)
        chances = _only_padding(config, chances, ended).unflatten(0, (rows, beams))
        grown = log_p[:, :, None] + chances  # (rows, beams, vocabulary)
        tokens = tokens + ~ended.view(rows, beams)
        best = (grown / tokens[:, :, None]).flatten(1).topk(beams, dim=1).indices
        parent, token = best // config.vocabulary, best % config.vocabulary
        log_p, tokens = grown.flatten(1).gather(1, best), tokens.gather(1, parent)
        chosen = (first + parent).flatten()
        cache.pick(chosen)
        text, ended = _appended(config, text[chosen], ended[chosen], token.flatten())
        if ended.all():
            break
    text = text.unflatten(0, (rows, beams))[:, 0]  # sorted, the best one first
    longest = int((text != config.pad_token).sum(dim=1).max())
    return text[:, :longest]


def _begun(
    config: DecoderConfig, prefix: Float[Tensor, "batch given width"]
) -> Int64[Tensor, "batch 1"]:
    """Texts of which only the start token is there."""
    return torch.full((len(prefix), 1), config.start_token, device=prefix.device)


def _next(
    decoder: Decoder, token: Int64[Tensor, " batch"], cache: Cache
) -> Float[Tensor, "batch vocabulary"]:
    """Log probabilities of the token behind this one, none for padding and start."""
    logits = decoder.step(token, cache)
    logits[:, [decoder.config.pad_token, decoder.config.start_token]] = float("-inf")
    return logits.log_softmax(dim=1)


def _appended(
    config: DecoderConfig,
    text: Int64[Tensor, "batch length"],
    ended: Bool[Tensor, " batch"],
    token: Int64[Tensor, " batch"],
) -> tuple[Int64[Tensor, "batch longer"], Bool[Tensor, " batch"]]:
    """Texts with the next token, padding behind those that had ended; and which have ended now."""
    token = token.where(~ended, config.pad_token)
    return torch.cat([text, token[:, None]], dim=1), ended | (token == config.end_token)


def _only_padding(
    config: DecoderConfig,
    chances: Float[Tensor, "batch vocabulary"],
    ended: Bool[Tensor, " batch"],
) -> Float[Tensor, "batch vocabulary"]:
    """Log probabilities in which an ended text goes on in one way, with padding, which is free."""
    padding = torch.full_like(chances, float("-inf"))
    padding[:, config.pad_token] = 0.0
    return torch.where(ended[:, None], padding, chances)
