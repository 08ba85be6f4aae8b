"""What the journal's rows mean for offers and takes; called by `journal_entry.apply`. Pure.

A row that does not follow from its offer as it is raises `ValueError`: in an audit, it is the first wrong one.
"""

from __future__ import annotations

from services.wallet.holdings import POINT, Entry, State
from services.wallet.market import Key, Offer, OfferState, Take


def offer(state: State, entry: Entry, now_us: int) -> None:
    """Begins an offer."""
    facts = entry.facts
    key = (entry.account_id, entry.key)
    if key in state.market.offers:
        raise ValueError(f"revision {state.revision}: there is an offer {key} already")
    state.market.offers[key] = Offer(
        entry.account_id,
        entry.key,
        entry.created_by,
        int(OfferState.OPEN),
        -entry.balance_change,
        facts["price"],
        0,
        0,
        facts.get("lifetime_us"),
        facts.get("reference", ""),
        facts["day"],
        now_us,
        facts["expire_time_us"],
        state.revision,
        state.revision,
    )


def sell(state: State, entry: Entry, _now_us: int) -> None:
    """Moves an offer on by what was sold of it: the row says how many points came in for how many tokens."""
    key, tokens = (entry.account_id, entry.facts["offer"]), entry.facts["tokens"]
    before = _open(state, key)
    if entry.balance_change != tokens * before.price_points or not 0 < tokens <= before.left:
        raise ValueError(
            f"revision {state.revision}: {entry.balance_change} points for {tokens} of {before.left} tokens "
            f"at {before.price_points}"
        )
    after = int(OfferState.FILLED if tokens == before.left else OfferState.OPEN)
    state.market.offers[key] = before._replace(state=after, sold=before.sold + tokens, revision=state.revision)


def buy(state: State, entry: Entry, _now_us: int) -> None:
    """Remembers a take with the row of its tokens, which comes last; that of its points only moves them."""
    if entry.asset == POINT:
        return
    facts = entry.facts
    state.market.takes[entry.created_by, entry.key] = Take(
        entry.created_by,
        entry.key,
        entry.account_id,
        facts["peer"],
        facts["offer"],
        entry.balance_change,
        facts["points"],
        state.revision,
    )


def unoffer(state: State, entry: Entry, _now_us: int) -> None:
    """Ends an offer: what nobody has bought is back."""
    key = (entry.account_id, entry.key)
    before = _open(state, key)
    if entry.balance_change != before.left:
        raise ValueError(f"revision {state.revision}: {entry.balance_change} come back of {before.left}")
    after = int(OfferState.EXPIRED if entry.facts.get("expired") else OfferState.CANCELLED)
    state.market.offers[key] = before._replace(state=after, returned=before.left, revision=state.revision)


def _open(state: State, key: Key) -> Offer:
    found = state.market.offers[key]
    if found.state != OfferState.OPEN:
        raise ValueError(f"revision {state.revision}: offer {key} is {OfferState(found.state).name}")
    return found
