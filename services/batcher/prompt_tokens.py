"""How many tokens a job's request has for the provider, as an estimate made before it is sent. Pure.

The provider counts what is enqueued in tokens of the prompt, and tells the count only afterwards. The text is taken for
a token every four bytes of the order as it is stored, which holds a few words more than the prompt. An image is counted
by the provider's published rules, of which there are two:

    tiles     fit it into a square of 2,048 pixels, bring its shorter side to 768, cut it into squares of 512: a base
              and so much for each square; at low detail the base alone
    patches   squares of 32 pixels, up to a budget, times a factor

It is an estimate: the rules of a model may differ from what is written here, and a model that is not known is taken for
one of tiles. What the provider refuses teaches the rest (`allowance`).
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

BYTES_PER_TOKEN: Final = 4
SQUARE_PIXELS: Final = 2048
SHORTER_PIXELS: Final = 768
TILE_PIXELS: Final = 512
PATCH_PIXELS: Final = 32


class Tiles(NamedTuple):
    """Tokens of an image, and of each of its tiles."""

    base: int
    tile: int


class Patches(NamedTuple):
    """What a patch counts, and how many are counted at most."""

    factor: float
    budget: int


IMAGE_TOKENS: Final[dict[str, Tiles | Patches]] = {
    "gpt-4o": Tiles(85, 170),
    "gpt-4o-mini": Tiles(2833, 5667),
    "gpt-4.1": Tiles(85, 170),
    "gpt-4.1-mini": Patches(1.62, 1536),
    "gpt-4.1-nano": Patches(2.46, 1536),
    "gpt-5": Tiles(70, 140),
    "gpt-5-mini": Patches(1.62, 1536),
    "gpt-5-nano": Patches(2.46, 1536),
    "gpt-5.1": Tiles(70, 140),
    "gpt-5.": Patches(1.2, 2500),
    "gpt-6": Patches(1.2, 2500),
    "o1": Tiles(75, 150),
    "o3": Tiles(75, 150),
}
"""By how a model's name begins; the longest beginning counts."""

UNKNOWN: Final = Tiles(85, 170)


def estimate(model: str, detail: str, text_bytes: int, images: Iterable[tuple[int, int]]) -> int:
    """Tokens of a request, at least 1. detail: LOW, HIGH or AUTO; images: (width, height) in pixels."""
    rule = _rule_of(model)
    return max(1, -(-text_bytes // BYTES_PER_TOKEN) + sum(_image_tokens(rule, detail, *size) for size in images))


def _rule_of(model: str) -> Tiles | Patches:
    known = [start for start in IMAGE_TOKENS if model.startswith(start)]
    return IMAGE_TOKENS[max(known, key=len)] if known else UNKNOWN


def _image_tokens(rule: Tiles | Patches, detail: str, width: int, height: int) -> int:
    if isinstance(rule, Patches):
        return round(min(_squares(width, height, PATCH_PIXELS), rule.budget) * rule.factor)
    if detail == "LOW":
        return rule.base
    shrink = min(1.0, SQUARE_PIXELS / max(width, height))
    shrink *= min(1.0, SHORTER_PIXELS / (min(width, height) * shrink))
    return rule.base + rule.tile * _squares(round(width * shrink), round(height * shrink), TILE_PIXELS)


def _squares(width: int, height: int, side: int) -> int:
    return max(1, -(-width // side)) * max(1, -(-height // side))
