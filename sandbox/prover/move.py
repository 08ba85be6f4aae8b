"""What users, the backend and the administrator do, one thing at a time."""

from typing import Final, NamedTuple

from services.batcher.price_list import Content
from services.wallet.economy import EarningRules
from services.wallet.sharing import Role

HOUR_US: Final = 3600 * 1_000_000
BACKEND: Final = "backend"
FALLBACK: Final = "FALLBACK"
"""The lane of a job that is asked for at once, and may go on as a batch job."""


class Move(NamedTuple):
    """One thing that somebody does. It carries its key, so that it is the same move when others are left out."""

    kind: str
    who: str
    key: str
    what: str = ""
    """An activity, an achievement, who is given to or taken in, or the key of the move that made what this is about."""
    amount: int = 0
    wait_us: int = 0
    """How much time passes before it."""
    zone_hours: int = 0
    """Where the user says that they are: no rule may believe it."""
    of: str = ""
    """The team that pays for what is reserved, or whose members change; or the seller of an offer."""
    role: int = int(Role.MEMBER)
    limits: tuple[int | None, int | None] = (None, None)
    """Of a member, for a day and a month."""
    hours: int = 1
    """How long what is reserved is held, or an offer is open: 0 for what the rules say."""
    price: int = 0
    """In points, for each token that is offered."""
    lane: str = ""
    """Of a job: BATCH, INSTANT or FALLBACK."""
    content: Content | None = None
    """Of a price list that is put."""
    rules: EarningRules | None = None
    """Of a version of the earning rules that is put: from now on, for amount % of the cohort that what names."""


def about(move: Move) -> str:
    """A move as a person reads it."""
    parts = [move.what if move.what != "none" else "", str(move.amount or ""), move.of and f"of {move.of}"]
    if move.kind == "member":
        day, month = ("any" if limit is None else limit for limit in move.limits)
        parts.append(f"as {Role(move.role).name.lower()} for {day} a day and {month} a month")
    if move.kind == "offer":
        parts.append(f"at {move.price} points" + (f" for {move.hours} h" if move.hours else ""))
    if move.kind == "claim" and move.zone_hours:
        parts.append(f"(says it is at UTC{move.zone_hours:+d})")
    if move.content is not None:
        parts.append(_said(move.content))
    if move.rules is not None:
        default = EarningRules()
        changed = [name for name in EarningRules._fields if getattr(move.rules, name) != getattr(default, name)]
        parts.append(", ".join(f"{name}={getattr(move.rules, name)!r}" for name in changed))
    said = "".join(f"{part} " for part in [*parts, move.lane] if part)
    return f"{move.who} {move.kind} {said}[{move.key}]"


def _said(content: Content) -> str:
    rows = [f"{row.lane.value} {row.amount}" for row in content.rows if row.is_plain]
    rows += [
        f"{row.lane.value} {row.amount} for {row.tier or 'some hours'}" for row in content.rows if not row.is_plain
    ]
    begins = f" at {content.effective_time_us}" if content.effective_time_us else ""
    return f"{', '.join(rows)} to {content.rollout_percent} %{begins}"
