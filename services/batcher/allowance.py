"""How many tokens of a model may be enqueued at the provider, as it is configured and as refusals have taught it. Pure.

A refusal may name the limit: then it is known. Where it names none, or one that our estimate had kept to, what was
tried was too much, and half of it is guessed; each batch that is accepted lets a guess grow by a quarter. What was
learnt is forgotten after a day, as limits rise with use. While refusals follow on each other nothing of the model is
planned for a pause that grows: the provider may release its queue late, up to a day.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from services.batcher.outcome import ALONE_TOO_LARGE, OVER_LIMIT

LEARNT_US: Final = 24 * 3600 * 1_000_000
USED_PERCENT: Final = 90
"""Our counts are estimates: so much of a limit is filled."""

TOKENS_MAX: Final = 10**15


class Allowance(NamedTuple):
    """What refusals have taught about a model. learnt_tokens: 0 for nothing; guessed: no refusal has named it.

    refusals: in a row. not_before_us: nothing of the model is planned before.
    """

    model: str
    learnt_tokens: int = 0
    guessed: bool = False
    learn_time_us: int = 0
    refusals: int = 0
    not_before_us: int = 0


class Room(NamedTuple):
    """What may be enqueued now. limit: in all, None where none is known; taken: by open batches."""

    limit: int | None
    taken: int
    not_before_us: int = 0

    @property
    def left(self) -> int | None:
        """Tokens that may still be enqueued; None: as many as there are."""
        return None if self.limit is None else max(0, self.limit * USED_PERCENT // 100 - self.taken)


def read_limits(text: str) -> dict[str, int]:
    """Limits as the configuration writes them: `gpt-4.1-mini=2000000,gpt-4o=90000`. ValueError."""
    limits: dict[str, int] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        model, equals, number = (part.strip() for part in entry.partition("="))
        if not (model and equals and number.isascii() and number.isdigit() and 0 < int(number) <= TOKENS_MAX):
            raise ValueError(f"an enqueued limit is written model=tokens, with a positive whole number, not {entry!r}")
        limits[model] = int(number)
    return limits


_LIMIT = re.compile(r"limit\b\D{0,8}?(\d[\d,_]*(?:\.\d+)?)\s*([km])?\b\s*(?:enqueued\s+)?(\w+)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}


def named_limit(message: str) -> int | None:
    """The limit of tokens that a refusal names, such as `Limit: 90,000 enqueued tokens`; None where it names none."""
    # The model's own name has digits too: what follows the last "limit" is the number.
    for found in reversed([match for start in _starts(message) if (match := _LIMIT.match(message, start))]):
        number, unit, noun = found.groups()
        tokens = int(float(re.sub("[,_]", "", number)) * _UNITS[(unit or "").lower()])
        if 0 < tokens <= TOKENS_MAX and (noun or "").lower() not in ("request", "requests", "per", "in"):
            return tokens
    return None


def _starts(message: str) -> list[int]:
    return [found.start() for found in re.finditer(r"limit\s*(?::|of|is|=|(?=\d))", message, re.IGNORECASE)]


def room(configured: int | None, known: Allowance | None, taken: int, now_us: int) -> Room:
    """What may be enqueued of a model: the lower of what is configured and what was learnt within a day."""
    limits = [configured] if configured else []
    if known and known.learnt_tokens and now_us < known.learn_time_us + LEARNT_US:
        limits.append(known.learnt_tokens)
    return Room(min(limits) if limits else None, taken, known.not_before_us if known else 0)


def pause(known: Allowance, not_before_us: int) -> Allowance:
    """Nothing of the model is planned for a while."""
    return known._replace(refusals=known.refusals + 1, not_before_us=not_before_us)


def refuse(known: Allowance, message: str, taken: int, not_before_us: int, now_us: int) -> Allowance:
    """A batch was refused for the queue's sake. taken: tokens of all open batches of the model, with this one.

    A first refusal that names a limit to which we kept may be the provider's slowness; the second teaches.
    """
    after = pause(known, not_before_us)
    named = named_limit(message)
    if named is not None and (taken > named or not known.refusals):
        return after._replace(learnt_tokens=named, guessed=False, learn_time_us=now_us)
    tried = taken if known.learnt_tokens == 0 else min(taken, known.learnt_tokens)
    return after._replace(learnt_tokens=max(1, tried // 2), guessed=True, learn_time_us=now_us)


def accept(known: Allowance) -> Allowance:
    """A batch of the model was taken."""
    grown = known.learnt_tokens + known.learnt_tokens // 4 if known.guessed else known.learnt_tokens
    return known._replace(learnt_tokens=grown, refusals=0, not_before_us=0)


def alone_over(message: str, batch_tokens: int, jobs: int) -> str | None:
    """The code of a batch that is over the named limit by itself, so that no waiting helps; None for any other."""
    named = named_limit(message)
    if named is None or batch_tokens <= named:
        return None
    return OVER_LIMIT if jobs > 1 else ALONE_TOO_LARGE


def read_rooms(
    configured: Mapping[str, int], known: Mapping[str, Allowance], taken: Mapping[str, int], now_us: int
) -> dict[str, Room]:
    """The room of every model of which anything is known."""
    return {
        model: room(configured.get(model), known.get(model), taken.get(model, 0), now_us)
        for model in {*configured, *known}
    }
