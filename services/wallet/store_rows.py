"""How the ledger's values look as rows: what a group changed, and the journal's JSON, written and read back."""

import json
from json.encoder import encode_basestring
from typing import TypeVar

from services.chassis import journal
from services.chassis.database import Rows
from services.wallet.holdings import TOKEN, Account, CounterRecord, Entry, GrantRecord, Lot, Reservation, State, Streak
from services.wallet.market import Market, Offer
from services.wallet.sharing import Shared, Team

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
    return (
        account.account_id,
        account.asset,
        account.balance,
        account.held,
        account.due_time_us,
        account.revision,
        account.state,
        account.lots,
        account.worked,
        account.team,
        account.spend_since,
    )


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
        each.pins,
    )


def lot_update(lot: Lot) -> tuple[object, ...]:
    """The parameters of `update_lot`."""
    return (lot.lot_id, lot.expire_time_us, lot.remaining, lot.held, lot.revoked, lot.revision)


def grant_update(record: GrantRecord) -> tuple[object, ...]:
    """The parameters of `update_grant`."""
    return (record.created_by, record.grant_id, record.revoked, record.revision)


def counter_update(each: CounterRecord) -> tuple[object, ...]:
    """The parameters of `update_counter`."""
    return (each.account_id, each.counter, each.day, each.amount, each.revision)


def streak_update(each: Streak) -> tuple[object, ...]:
    """The parameters of `update_streak`."""
    return (each.account_id, each.day, each.days, each.best_days, each.grace_day, each.revision)


def team_update(team: Team) -> tuple[object, ...]:
    """The parameters of `update_team`."""
    return (team.team_id, team.members, team.owners, team.revision)


def offer_update(offer: Offer) -> tuple[object, ...]:
    """The parameters of `update_offer`."""
    return (offer.account_id, offer.offer_id, offer.state, offer.sold, offer.returned, offer.revision)


def statements(loaded: State, state: State) -> list[tuple[str, Rows]]:
    """What writes all that differs from what was loaded, but for the journal."""
    accounts, changed_accounts = changes(loaded.accounts, state.accounts)
    reservations, changed_reservations = changes(loaded.reservations, state.reservations)
    written: list[tuple[str, Rows]] = [
        ("insert_account", accounts),
        ("update_account", [account_update(account) for account in changed_accounts]),
        ("insert_reservation", reservations),
        ("update_reservation", [reservation_update(each) for each in changed_reservations]),
        ("move_system_account", [(*key, change) for key, change in state.system.items() if change]),
    ]
    if state.lots:
        lots, changed_lots = changes(_by_id(loaded), _by_id(state))
        written += [("insert_lot", lots), ("update_lot", [lot_update(lot) for lot in changed_lots])]
    if state.grants:
        grants, changed_grants = changes(loaded.grants, state.grants)
        written += [("insert_grant", grants), ("update_grant", [grant_update(record) for record in changed_grants])]
    if state.operations:
        written.append(("insert_operation", changes(loaded.operations, state.operations)[0]))
    if state.changes:
        written.append(("insert_account_change", changes(loaded.changes, state.changes)[0]))
    written += _economy(loaded, state)
    if state.shared != _NOTHING_SHARED:
        written += _sharing(loaded.shared, state.shared)
    if state.market.offers:
        written += _market(loaded.market, state.market)
    return written


def _economy(loaded: State, state: State) -> list[tuple[str, Rows]]:
    written: list[tuple[str, Rows]] = []
    if state.counters:
        counters, counted = changes(loaded.counters, state.counters)
        written += [("insert_counter", counters), ("update_counter", [counter_update(each) for each in counted])]
    if state.streaks:
        streaks, longer = changes(loaded.streaks, state.streaks)
        written += [("insert_streak", streaks), ("update_streak", [streak_update(each) for each in longer])]
    if state.earnings:
        written.append(("insert_earning", changes(loaded.earnings, state.earnings)[0]))
    if state.rule_sets:
        written.append(("insert_rule_set", changes(loaded.rule_sets, state.rule_sets)[0]))
    return written


_NOTHING_SHARED = Shared()


def _sharing(loaded: Shared, shared: Shared) -> list[tuple[str, Rows]]:
    teams, changed_teams = changes(loaded.teams, shared.teams)
    members, changed_members = changes(loaded.members, shared.members)
    limits, changed_limits = changes(loaded.limits, shared.limits)
    return [
        ("insert_team", teams),
        ("update_team", [team_update(team) for team in changed_teams]),
        ("insert_member", members),
        ("update_member", list(changed_members)),
        ("insert_team_change", changes(loaded.team_changes, shared.team_changes)[0]),
        ("insert_gift", changes(loaded.gifts, shared.gifts)[0]),
        ("insert_spending_limit", limits),
        ("update_spending_limit", list(changed_limits)),
        ("insert_limit_change", changes(loaded.limit_changes, shared.limit_changes)[0]),
    ]


def _market(loaded: Market, market: Market) -> list[tuple[str, Rows]]:
    offers, changed_offers = changes(loaded.offers, market.offers)
    return [
        ("insert_offer", offers),
        ("update_offer", [offer_update(offer) for offer in changed_offers]),
        ("insert_take", changes(loaded.takes, market.takes)[0]),
    ]


def _by_id(state: State) -> dict[int, Lot]:
    return {lot_id: lot for lots in state.lots.values() for lot_id, lot in lots.items()}


def journal_entry(entry: Entry) -> journal.Entry:
    """An entry as the journal keeps it; what is empty is left out.

    Another asset than TOKEN is said by the subject (`POINT/alice`, which no account can be called), so that an account
    has a chain of its own for each asset.
    """
    body = f'{{"balance":{entry.balance},"held":{entry.held}'
    if entry.balance_change:
        body += f',"balance_change":{entry.balance_change}'
    if entry.held_change:
        body += f',"held_change":{entry.held_change}'
    if entry.counterparty:
        body += f',"counterparty":{encode_basestring(entry.counterparty)}'
    if entry.created_by:
        body += f',"created_by":{encode_basestring(entry.created_by)}'
    if entry.reservation_id:
        body += f',"reservation_id":{encode_basestring(entry.reservation_id)}'
    if entry.key:
        body += f',"key":{encode_basestring(entry.key)}'
    if entry.facts:
        facts = ",".join([f'"{name}":{_json(value)}' for name, value in entry.facts.items()])
        body += f',"facts":{{{facts}}}'
    subject = entry.account_id if entry.asset == TOKEN else f"{entry.asset}/{entry.account_id}"
    return journal.Entry(entry.kind, entry.actor, subject, entry.previous, body + "}")


def _json(value: object) -> str:
    """`encode` without what it costs to begin, for the two kinds of value that nearly all facts are."""
    if type(value) is int:
        return str(value)
    return encode_basestring(value) if type(value) is str else encode(value)


def entry_of(row: journal.Row) -> Entry:
    """Reads a row of the journal back as the entry that it was written from."""
    body = json.loads(row.body)
    asset, slash, account_id = row.subject.rpartition("/")
    return Entry(
        row.kind,
        row.actor,
        account_id,
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
        asset if slash else TOKEN,
    )
