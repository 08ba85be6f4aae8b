"""How the ledger's values look as rows: what a group changed, and the journal's JSON, written and read back."""

import json
from typing import Any, TypeVar

from services.chassis import journal
from services.wallet.journal_entry import Account, Entry, Reservation

K = TypeVar("K")
V = TypeVar("V")

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
"""Compact JSON. It is made once: json.dumps would make an encoder for each of a hundred thousand rows a second."""


def changes(loaded: dict[K, V], now: dict[K, V]) -> tuple[list[V], list[V]]:
    """What a group made, and what it changed: values are immutable, so that only changed ones are other objects."""
    new, changed = [], []
    for key, value in now.items():
        before = loaded.get(key)
        if before is None:
            new.append(value)
        elif before is not value:
            changed.append(value)
    return new, changed


def account_update(account: Account) -> tuple[object, ...]:
    """The parameters of `update_account`."""
    return (account.account_id, account.asset, account.balance, account.held, account.due_time_us, account.revision)


def reservation_update(each: Reservation) -> tuple[object, ...]:
    """The parameters of `update_reservation`."""
    return (
        each.created_by,
        each.reservation_id,
        each.state,
        each.committed,
        each.released,
        each.expired,
        each.refunded,
        each.expire_time_us,
        each.commit_amount,
        each.commit_late,
        each.revision,
    )


def journal_entry(entry: Entry) -> journal.Entry:
    """An entry as the journal keeps it; what is empty is left out."""
    body: dict[str, Any] = {"balance": entry.balance, "held": entry.held}
    if entry.balance_change:
        body["balance_change"] = entry.balance_change
    if entry.held_change:
        body["held_change"] = entry.held_change
    if entry.counterparty:
        body["counterparty"] = entry.counterparty
    if entry.created_by:
        body["created_by"] = entry.created_by
    if entry.reservation_id:
        body["reservation_id"] = entry.reservation_id
    if entry.key:
        body["key"] = entry.key
    if entry.facts:
        body["facts"] = entry.facts
    return journal.Entry(entry.kind, entry.actor, entry.account_id, entry.previous, encode(body))


def entry_of(row: journal.Row) -> Entry:
    """Reads a row of the journal back as the entry that it was written from."""
    body = json.loads(row.body)
    return Entry(
        row.kind,
        row.actor,
        row.subject,
        row.previous,
        body.get("balance_change", 0),
        body.get("held_change", 0),
        body["balance"],
        body["held"],
        body.get("counterparty", ""),
        body.get("created_by", ""),
        body.get("reservation_id", ""),
        body.get("key", ""),
        body.get("facts", {}),
    )
