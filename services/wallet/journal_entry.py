"""What the journal records, and what each record means for accounts, reservations and lots.

`apply` is the only function that changes a balance. The ledger decides by making entries and applying them; an audit
reads the same entries back, applies them to nothing, and must arrive at the same accounts and reservations.

    kind      balance          held                  counterparty
    open                                                        an account begins
    grant     + amount                               @issue     new tokens, perhaps as a lot
    revoke    - what was left                        @issue     a grant is taken back; its lots end
    reserve                    + amount                         a hold begins
    amend                      - released                       a hold shrinks, or ends later
    commit    - committed      - (all that was held) @revenue   a hold is taken; the rest goes back
    release                    - (all that was held)            a hold goes back; on an unused id, a tombstone
    expire                     - (all that was held)            a hold's time has passed
    refund    + amount                               @revenue   committed tokens come back
    lapse     - amount                               @lapsed    a lot's time has passed
    grace                                                       tokens of a lot that is over live on as a new lot
    earn      + tokens or points               @issue     a rule gives something; `rule` says which
    convert   - points                               @issue     points become tokens, in two rows
              + tokens                               @issue
    rules                                                       a version of the earning rules, on nobody's account
    give      - amount                               @transfer  tokens go to another account: two rows
    receive   + amount                               @transfer
    offer     - amount                               @escrow    tokens are offered for points
    buy       - points                               @transfer  some of them are bought: three rows, the buyer's points,
    sell      + points                               @transfer  the seller's points,
    buy       + tokens                               @escrow    and the buyer's tokens
    unoffer   + what nobody bought                   @escrow    an offer is cancelled, or its time has passed
    team                                                        the account is a team from now on, of its first owner
    member, unmember                                            a team's member comes, changes or goes
    limit                                                       an account's spending limits are set anew
    freeze, unfreeze                                            an account may be used less, or again
    close     - balance                              @lapsed    an account is over

`facts` hold what else a kind needs. Wherever lots have a part: `lots` lists (lot id, change of remaining, change of
held), and `pins` is what the reservation has of which lot afterwards. `counts` lists (counter, day, change) of what is
limited. An asset's rows on an account follow each other, and know nothing of those of another asset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from services.wallet import economy_entry, market_entry, sharing_entry
from services.wallet.holdings import (
    NO_FACTS,
    PLAIN_PRIORITY,
    TOKEN,
    Account,
    AccountChange,
    AccountState,
    Entry,
    GrantRecord,
    Key,
    Lot,
    Operation,
    Reservation,
    ReservationState,
    State,
    write_pins,
)


def entry_on(
    account: Account,
    kind: str,
    actor: str,
    *,
    balance_change: int = 0,
    held_change: int = 0,
    counterparty: str = "",
    created_by: str = "",
    reservation_id: str = "",
    key: str = "",
    facts: Mapping[str, Any] = NO_FACTS,
) -> Entry:
    """The entry that changes an account by so much: it follows the account's last one and says what comes out."""
    return Entry(
        kind,
        actor,
        account.account_id,
        account.revision,
        balance_change,
        held_change,
        account.balance + balance_change,
        account.held + held_change,
        counterparty,
        created_by,
        reservation_id,
        key,
        facts,
        account.asset,
    )


def apply(state: State, entry: Entry, now_us: int) -> None:
    """Changes the state by one entry, which becomes the next revision.

    Raises `ValueError` for an entry whose own balances do not follow from the state: in an audit, the first wrong row.
    """
    state.revision += 1
    state.entries.append(entry)
    if entry.kind == "open":
        _open(state, entry, now_us)
        return
    if entry.account_id:
        _move(state, entry, now_us)
    follow = _FOLLOW.get(entry.kind)
    if follow is None:
        raise ValueError(f"revision {state.revision}: there is no kind {entry.kind!r}")
    follow(state, entry, now_us)


def _open(state: State, entry: Entry, now_us: int) -> None:
    key = (entry.account_id, TOKEN)
    state.accounts[key] = Account(entry.account_id, TOKEN, 0, 0, None, now_us, state.revision)


def _move(state: State, entry: Entry, now_us: int) -> None:
    key = (entry.account_id, entry.asset)
    account = state.accounts[key] if entry.asset == TOKEN else economy_entry.points_of(state, entry.account_id, now_us)
    balance, held = account.balance + entry.balance_change, account.held + entry.held_change
    if (balance, held) != (entry.balance, entry.held):
        raise ValueError(
            f"revision {state.revision}: account {entry.account_id!r} comes to balance {balance} and held {held}, "
            f"and the entry says {entry.balance} and {entry.held}"
        )
    facts = entry.facts
    due_time_us = _earlier(account.due_time_us, facts.get("expire_time_us"))
    lots = account.lots
    if "lots" in facts:
        for lot_id, remaining_change, held_change in facts["lots"]:
            before, after = _move_lot(state, entry.account_id, lot_id, remaining_change, held_change)
            lots += (after.remaining > 0) - (before.remaining > 0)
            if after.remaining and not after.is_over(now_us):
                due_time_us = _earlier(due_time_us, after.expire_time_us)
    state.accounts[key] = Account(
        account.account_id,
        account.asset,
        balance,
        held,
        due_time_us,
        account.create_time_us,
        state.revision,
        account.state,
        lots,
        1 if entry.kind == "commit" else account.worked,
        account.team,
        account.spend_since,
    )
    if "counts" in facts:
        economy_entry.count(state, entry)
    if entry.counterparty:
        other = (entry.counterparty, entry.asset)
        state.system[other] = state.system.get(other, 0) - entry.balance_change


def _earlier(one_us: int | None, other_us: int | None) -> int | None:
    if one_us is None or other_us is None:
        return other_us if one_us is None else one_us
    return min(one_us, other_us)


def _move_lot(state: State, account_id: str, lot_id: int, remaining_change: int, held_change: int) -> tuple[Lot, Lot]:
    lots = state.lots[account_id]
    before = lots[lot_id]
    after = before._replace(
        remaining=before.remaining + remaining_change, held=before.held + held_change, revision=state.revision
    )
    if not 0 <= after.held <= after.remaining <= after.granted:
        raise ValueError(f"revision {state.revision}: lot {lot_id} comes to {after.remaining} with {after.held} held")
    lots[lot_id] = after
    return before, after


def _grant(state: State, entry: Entry, _now_us: int) -> None:
    facts = entry.facts
    record = GrantRecord(
        entry.created_by,
        entry.key,
        entry.account_id,
        TOKEN,
        entry.balance_change,
        facts.get("reference", ""),
        state.revision,
        facts.get("lifetime_us"),
        facts.get("priority"),
    )
    state.grants[entry.created_by, entry.key] = record
    if record.made_a_lot:
        priority = PLAIN_PRIORITY if record.priority is None else record.priority
        _begin_lot(state, entry, priority, record.amount, grace=0)


def _begin_lot(state: State, entry: Entry, priority: int, amount: int, *, grace: int) -> None:
    lot = Lot(
        state.revision,
        entry.account_id,
        TOKEN,
        entry.created_by,
        entry.key,
        priority,
        entry.facts.get("expire_time_us"),
        amount,
        amount,
        0,
        grace,
        0,
        state.revision,
    )
    state.add_lots([lot])
    key = (entry.account_id, TOKEN)
    account = state.accounts[key]
    state.accounts[key] = account._replace(lots=account.lots + 1)


def _grace(state: State, entry: Entry, _now_us: int) -> None:
    facts = entry.facts
    _begin_lot(state, entry, state.lots[entry.account_id][facts["lot"]].priority, facts["amount"], grace=1)


def _revoke(state: State, entry: Entry, now_us: int) -> None:
    lots = state.lots.get(entry.account_id, {})
    for lot_id in entry.facts.get("ended", ()):
        lot = lots[lot_id]
        ends_us = now_us if lot.expire_time_us is None else min(lot.expire_time_us, now_us)
        lots[lot_id] = lot._replace(expire_time_us=ends_us, revoked=1, revision=state.revision)
    key = (entry.created_by, entry.key)
    state.grants[key] = state.grants[key]._replace(revoked=-entry.balance_change, revision=state.revision)


def _change_account(state: State, entry: Entry, _now_us: int) -> None:
    key = (entry.account_id, TOKEN)
    account = state.accounts[key]
    after = {"freeze": AccountState.FROZEN, "unfreeze": AccountState.OPEN, "close": AccountState.CLOSED}[entry.kind]
    state.accounts[key] = account._replace(
        state=int(after), due_time_us=None if after is AccountState.CLOSED else account.due_time_us
    )
    state.changes[entry.created_by, entry.key] = AccountChange(
        entry.created_by,
        entry.key,
        entry.account_id,
        entry.kind,
        entry.facts.get("forfeit", 0),
        entry.facts.get("reference", ""),
        state.revision,
    )


def _reserve(state: State, entry: Entry, now_us: int) -> None:
    facts = entry.facts
    state.reservations[entry.created_by, entry.reservation_id] = Reservation(
        entry.created_by,
        entry.reservation_id,
        facts["for"],
        entry.account_id,
        1,
        entry.held_change,
        0,
        0,
        0,
        0,
        facts["hold_us"],
        facts["expire_time_us"],
        now_us,
        facts.get("price_version", ""),
        facts.get("reference", ""),
        None,
        0,
        state.revision,
        write_pins(facts["pins"]) if "pins" in facts else "",
        facts["counts"][0][1] if "peer" in facts else 0,
    )


def _change_reservation(state: State, entry: Entry, now_us: int) -> None:
    key = (entry.created_by, entry.reservation_id)
    revision, facts = state.revision, entry.facts
    old = state.reservations.get(key)
    if old is None:
        if entry.account_id:
            raise ValueError(f"revision {revision}: there is no reservation {key} to {entry.kind}")
        state.reservations[key] = tombstone(key, now_us, revision)
        return
    freed = -entry.held_change
    pins = write_pins(facts["pins"]) if "pins" in facts else old.pins
    match entry.kind:
        case "commit":
            taken = -entry.balance_change
            state.reservations[key] = old._replace(
                state=int(ReservationState.COMMITTED),
                committed=taken,
                released=old.released + max(freed - taken, 0),
                expired=old.expired if freed else old.expired - taken,
                commit_amount=facts.get("amount"),
                commit_late=int(facts.get("allow_late", 0)),
                revision=revision,
                pins=pins,
            )
        case "release":
            state.reservations[key] = old._replace(
                state=int(ReservationState.RELEASED), released=old.released + freed, revision=revision, pins=pins
            )
        case "expire":
            state.reservations[key] = old._replace(
                state=int(ReservationState.EXPIRED), expired=freed, revision=revision, pins=pins
            )
        case "amend":
            state.reservations[key] = old._replace(
                released=old.released + freed, expire_time_us=facts["expire_time_us"], revision=revision, pins=pins
            )
            _remember(state, entry)
        case _:
            refunded = old.refunded + entry.balance_change
            state.reservations[key] = old._replace(refunded=refunded, revision=revision, pins=pins)
            _remember(state, entry)


def _remember(state: State, entry: Entry) -> None:
    state.operations[entry.created_by, entry.reservation_id, entry.key] = Operation(
        entry.created_by,
        entry.reservation_id,
        entry.key,
        entry.kind,
        entry.facts.get("amount"),
        entry.facts.get("hold_us"),
        state.revision,
    )


def _nothing_more(_state: State, _entry: Entry, _now_us: int) -> None:
    """A lapse is nothing but the move of its tokens."""


_FOLLOW: Final[Mapping[str, Callable[[State, Entry, int], None]]] = {
    "grant": _grant,
    "revoke": _revoke,
    "reserve": _reserve,
    "commit": _change_reservation,
    "release": _change_reservation,
    "expire": _change_reservation,
    "amend": _change_reservation,
    "refund": _change_reservation,
    "lapse": _nothing_more,
    "grace": _grace,
    "freeze": _change_account,
    "unfreeze": _change_account,
    "close": _change_account,
    "earn": economy_entry.earn,
    "convert": economy_entry.convert,
    "rules": economy_entry.put_rules,
    "team": sharing_entry.open_team,
    "member": sharing_entry.change_member,
    "unmember": sharing_entry.change_member,
    "give": sharing_entry.give,
    "receive": sharing_entry.receive,
    "offer": market_entry.offer,
    "buy": market_entry.buy,
    "sell": market_entry.sell,
    "unoffer": market_entry.unoffer,
    "limit": sharing_entry.set_limits,
}


def tombstone(key: Key, now_us: int, revision: int) -> Reservation:
    """The reservation that a release of an unused id leaves behind, so that a late Reserve finds it released."""
    created_by, reservation_id = key
    released = int(ReservationState.RELEASED)
    return Reservation(
        created_by, reservation_id, "", "", released, 0, 0, 0, 0, 0, 0, now_us, now_us, "", "", None, 0, revision
    )
