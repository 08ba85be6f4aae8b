"""The auditor: reads what both services and the provider have written down, and says all that does not add up.

It works from the tables and not through the services, and adds up by itself: of the services' code it uses only what
it compares with, the replay of the journal and the check of its chain.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from sandbox.s3 import BUCKET
from sandbox.stack import Stack
from services.batcher.object_store import batch_key
from services.chassis import journal
from services.wallet.holdings import (
    POINT,
    TOKEN,
    Account,
    AccountChange,
    CounterRecord,
    Earning,
    GrantRecord,
    Lot,
    Operation,
    Reservation,
    ReservationState,
    RuleSetRecord,
    State,
    Streak,
)
from services.wallet.journal_entry import apply
from services.wallet.market import ESCROW, Offer, Take
from services.wallet.sharing import Gift, LimitChange, Member, SpendingLimits, Team, TeamChange
from services.wallet.store_rows import entry_of
from tests.acceptance.stacks import books, database_urls

Row = dict[str, Any]
Tables = dict[str, list[Row]]

WALLET_TABLES: Final = (
    "accounts", "system_accounts", "reservations", "grants", "lots", "account_changes", "operations", "counters",
    "earnings", "streaks", "rule_sets", "teams", "members", "team_changes", "gifts", "offers",
    "takes", "spending_limits", "limit_changes", "journal", "journal_head",
)  # fmt: skip
BATCHER_TABLES: Final = (
    "jobs", "settlements", "attempts", "batches", "submissions", "images", "journal", "journal_head",
)  # fmt: skip
ENDINGS: Final = frozenset({"job.succeeded", "job.failed", "job.expired", "job.cancelled", "job.rejected"})
SETTLED: Final = frozenset({"job.settled", "job.uncollected"})
FINAL_STATES: Final = frozenset({"SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED", "REJECTED"})
BATCHER: Final = "batcher"


@dataclass
class Evidence:
    """The tables of both services and the books of the provider's twin, as they are at one time."""

    wallet: Tables
    batcher: Tables
    books: Row


async def audit(stack: Stack, *, second_batches: bool = False) -> Evidence:
    """Raises AssertionError with everything that does not add up; gives what it looked at.

    second_batches: an intent may have been bought again, where that was found and cancelled, or came to nothing.
    """
    evidence = await gather(stack)
    if second_batches:
        evidence.books["batches"] = [row for row in evidence.books["batches"] if not _is_spared(row, evidence)]
    found = [*problems(evidence), *_object_problems(evidence.batcher, stack.data / "objects" / BUCKET)]
    assert not found, "\n  ".join(["the audit found:", *found])
    return evidence


async def gather(stack: Stack) -> Evidence:
    """Reads everything. The batcher goes first, so that what it calls settled is in the wallet's tables."""
    urls = database_urls(stack)
    batcher = await _tables(urls["batcher"], BATCHER_TABLES)
    wallet = await _tables(urls["wallet"], WALLET_TABLES)
    return Evidence(wallet, batcher, await asyncio.to_thread(books, stack))


def problems(evidence: Evidence) -> Iterator[str]:
    """Everything that does not add up, each as a sentence."""
    for name, tables in (("wallet", evidence.wallet), ("batcher", evidence.batcher)):
        yield from _journal_problems(name, tables)
    yield from _replay_problems(evidence.wallet)
    yield from _balance_problems(evidence.wallet)
    yield from _reservation_problems(evidence.wallet)
    yield from _settlement_problems(evidence)
    yield from _ending_once_problems(evidence.batcher)
    yield from _purchase_problems(evidence)


def _journal_problems(service: str, tables: Tables) -> Iterator[str]:
    """The chain holds from the first row to the head."""
    rows = _journal(tables)
    if broken := journal.verify_chain(rows):
        yield f"the {service}'s journal breaks at revision {broken.revision}"
    (head,) = tables["journal_head"]
    last = (rows[-1].revision, rows[-1].hash) if rows else (0, journal.FIRST_HASH)
    if (head["revision"], head["hash"]) != last:
        yield f"the {service}'s journal ends at revision {last[0]}, its head says {head['revision']}"


def _replay_problems(wallet: Tables) -> Iterator[str]:
    """Accounts, reservations and system accounts are what the journal says, and nothing else."""
    state = State()
    for row in _journal(wallet):
        try:
            apply(state, entry_of(row), row.time_us)
        except (KeyError, ValueError) as error:
            yield f"the wallet's journal cannot be replayed at revision {row.revision}: {error!r}"
            return
    # When something is due next is a hint for sweeps, which may be early.
    replayed = {key: account._replace(due_time_us=None) for key, account in state.accounts.items()}
    stored = {
        (row["account_id"], row["asset"]): Account(**row)._replace(due_time_us=None) for row in wallet["accounts"]
    }
    yield from _differences("account", replayed, stored)
    reservations = {(row["created_by"], row["reservation_id"]): Reservation(**row) for row in wallet["reservations"]}
    yield from _differences("reservation", state.reservations, reservations)
    lots = {lot_id: lot for of_account in state.lots.values() for lot_id, lot in of_account.items()}
    yield from _differences("lot", lots, {row["lot_id"]: Lot(**row) for row in wallet["lots"]})
    grants = {(row["created_by"], row["grant_id"]): GrantRecord(**row) for row in wallet["grants"]}
    yield from _differences("grant", state.grants, grants)
    operations = {
        (row["created_by"], row["reservation_id"], row["operation_id"]): Operation(**row)
        for row in wallet["operations"]
    }
    yield from _differences("operation", state.operations, operations)
    changes = {(row["created_by"], row["change_id"]): AccountChange(**row) for row in wallet["account_changes"]}
    yield from _differences("account change", state.changes, changes)
    yield from _economy_problems(state, wallet)
    system = {(row["account_id"], row["asset"]): row["balance"] for row in wallet["system_accounts"]}
    # One that has nothing has no row until it once had something.
    moved = {key: value for key, value in state.system.items() if value}
    yield from _differences("system account", moved, {key: value for key, value in system.items() if value})


def _economy_problems(state: State, wallet: Tables) -> Iterator[str]:
    """Counters, earnings, streaks, versions of rules and teams are what the journal says."""
    counters = {(row["account_id"], row["counter"], row["day"]): CounterRecord(**row) for row in wallet["counters"]}
    yield from _differences("counter", state.counters, counters)
    earnings = {(row["created_by"], row["earning_id"]): Earning(**row) for row in wallet["earnings"]}
    yield from _differences("earning", state.earnings, earnings)
    streaks = {row["account_id"]: Streak(**row) for row in wallet["streaks"]}
    yield from _differences("streak", state.streaks, streaks)
    sets = {row["version"]: RuleSetRecord(**row) for row in wallet["rule_sets"]}
    yield from _differences("version of the rules", state.rule_sets, sets)
    teams = {row["team_id"]: Team(**row) for row in wallet["teams"]}
    yield from _differences("team", state.shared.teams, teams)
    members = {(row["team_id"], row["member_id"]): Member(**row) for row in wallet["members"]}
    yield from _differences("member", state.shared.members, members)
    made = {(row["created_by"], row["change_id"]): TeamChange(**row) for row in wallet["team_changes"]}
    yield from _differences("change of a team", state.shared.team_changes, made)
    gifts = {(row["created_by"], row["gift_id"]): Gift(**row) for row in wallet["gifts"]}
    yield from _differences("gift", state.shared.gifts, gifts)
    offers = {(row["account_id"], row["offer_id"]): Offer(**row) for row in wallet["offers"]}
    yield from _differences("offer", state.market.offers, offers)
    takes = {(row["created_by"], row["take_id"]): Take(**row) for row in wallet["takes"]}
    yield from _differences("take", state.market.takes, takes)
    left = sum(each.left for each in offers.values())
    if left != (escrow := state.system.get((ESCROW, TOKEN), 0)):
        yield f"{ESCROW} has {escrow}, and open offers have {left} left"
    limits = {row["account_id"]: SpendingLimits(**row) for row in wallet["spending_limits"]}
    yield from _differences("spending limits", state.shared.limits, limits)
    set_by = {(row["created_by"], row["change_id"]): LimitChange(**row) for row in wallet["limit_changes"]}
    yield from _differences("change of limits", state.shared.limit_changes, set_by)


def _differences(what: str, replayed: dict[Any, Any], stored: dict[Any, Any]) -> Iterator[str]:
    for key in sorted(replayed.keys() | stored.keys()):
        if replayed.get(key) != stored.get(key):
            yield f"{what} {key} is {stored.get(key)}, and the journal says {replayed.get(key)}"


def _move_between(wallet: Tables, balances: Counter[str], points: Counter[str]) -> None:
    """What accounts gave and sold to each other, and what waits in offers."""
    for row in wallet["gifts"]:
        balances[row["account_id"]] -= row["amount"]
        balances[row["receiver_id"]] += row["amount"]
    for row in wallet["offers"]:
        balances[row["account_id"]] += row["returned"] - row["tokens"]
    for row in wallet["takes"]:
        balances[row["account_id"]] += row["tokens"]
        points[row["account_id"]] -= row["points"]
        points[row["seller_id"]] += row["points"]


def _balance_problems(wallet: Tables) -> Iterator[str]:
    """A balance = welcome + grants + earned - revoked - lapsed - committed + refunded, and what was given and traded;
    held = what open reservations hold. Points are what was earned of them, and traded.
    """
    balances: Counter[str] = Counter()
    points: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for row in wallet["grants"]:
        balances[row["account_id"]] += row["amount"] - (row["revoked"] or 0)
    for row in wallet["earnings"]:
        balances[row["account_id"]] += row["tokens"]
        points[row["account_id"]] += row["points"]
    _move_between(wallet, balances, points)
    for row in wallet["journal"]:
        if row["kind"] in {"lapse", "close"}:
            balances[row["subject"]] += json.loads(row["body"]).get("balance_change", 0)
    for row in wallet["reservations"]:
        balances[row["payer_account_id"]] += row["refunded"] - row["committed"]
        if row["state"] == ReservationState.HELD:
            held[row["payer_account_id"]] += row["reserved"] - row["released"]
    for row in wallet["accounts"]:
        account_id = row["account_id"]
        expected = (points[account_id], 0) if row["asset"] == POINT else (balances[account_id], held[account_id])
        if (row["balance"], row["held"]) != expected:
            yield f"account {row['account_id']} has {row['balance']}, {row['held']} held; it must have {expected}"
    yield from _sum_problems(wallet)


def _sum_problems(wallet: Tables) -> Iterator[str]:
    """All that users and system accounts have of an asset comes to nothing."""
    sums: Counter[str] = Counter()
    for row in wallet["accounts"] + wallet["system_accounts"]:
        sums[row["asset"]] += row["balance"]
    yield from (f"all balances of {asset} come to {total}" for asset, total in sums.items() if total)


def _reservation_problems(wallet: Tables) -> Iterator[str]:
    """Once ended, reserved = committed + released + expired; always refunded <= committed."""
    for row in wallet["reservations"]:
        parts = row["committed"] + row["released"] + row["expired"]
        if row["state"] != ReservationState.HELD and row["reserved"] != parts:
            yield f"reservation {row['reservation_id']} of {row['reserved']} ended as {parts}"
        if not 0 <= row["refunded"] <= row["committed"]:
            yield f"reservation {row['reservation_id']} gave back {row['refunded']} of {row['committed']}"


def _settlement_problems(evidence: Evidence) -> Iterator[str]:
    """Each ended job has one settlement, SETTLED, and the wallet did what it says; others hold their tokens."""
    reservations = {
        row["reservation_id"]: row for row in evidence.wallet["reservations"] if row["created_by"] == BATCHER
    }
    settlements = _by(evidence.batcher["settlements"], "uid")
    jobs = {row["uid"]: row for row in evidence.batcher["jobs"]}
    for uid in sorted(reservations.keys() - jobs.keys()):
        yield f"reservation {uid} was made by the batcher for no job"
    for uid, job in jobs.items():
        reservation = reservations.get(uid)
        if job["state"] in FINAL_STATES:
            found = list(_ending_problems(job, settlements.get(uid, []), reservation))
        else:
            found = list(_waiting_problems(job, settlements.get(uid, []), reservation))
        yield from (f"job {job['account_id']}/{job['job_id']} ({uid}) {problem}" for problem in found)


def _ending_problems(job: Row, settlements: Sequence[Row], reservation: Row | None) -> Iterator[str]:
    if len(settlements) != 1:
        yield f"is {job['state']} with {len(settlements)} settlements"
        return
    (settlement,) = settlements
    due = ("COMMIT", job["price"]) if job["state"] == "SUCCEEDED" else ("RELEASE", 0)
    if (settlement["action"], settlement["amount"]) != due:
        yield f"is {job['state']} and its settlement says {settlement['action']} {settlement['amount']}, not {due}"
    if settlement["state"] != "SETTLED":
        yield f"has ended and its settlement is {settlement['state']}"
    elif reservation is None:
        yield "is settled and the wallet knows no reservation of it"
    else:
        state = ReservationState.COMMITTED if due[1] else ReservationState.RELEASED
        if (reservation["state"], reservation["committed"]) != (state, due[1]):
            yield f"must be {state.name} with {due[1]}; the wallet has {reservation}"
        if reservation["payer_account_id"] not in {job["payer_account_id"], ""}:
            yield f"is paid by {job['payer_account_id']}; the wallet took from {reservation['payer_account_id']}"


def _waiting_problems(job: Row, settlements: Sequence[Row], reservation: Row | None) -> Iterator[str]:
    if settlements:
        yield f"is {job['state']} and has a settlement already"
    if job["state"] != "ADMITTING" and (reservation is None or reservation["state"] != ReservationState.HELD):
        yield f"is {job['state']} without its tokens being held"


def _ending_once_problems(batcher: Tables) -> Iterator[str]:
    """By the journal each ended job has ended once, and was settled once."""
    endings = Counter(row["subject"] for row in batcher["journal"] if row["kind"] in ENDINGS)
    settled = Counter(row["subject"] for row in batcher["journal"] if row["kind"] in SETTLED)
    for job in batcher["jobs"]:
        due = 1 if job["state"] in FINAL_STATES else 0
        times = (endings[job["uid"]], settled[job["uid"]])
        if times != (due, due):
            yield f"job {job['uid']} is {job['state']}, has ended {times[0]} times, was settled {times[1]} times"


def _object_problems(batcher: Tables, bucket: Path) -> Iterator[str]:
    """Each image is stored whole, and each file that a closed batch was read from."""
    for image in batcher["images"]:
        path = bucket / image["object_key"]
        if not path.is_file() or path.stat().st_size != image["size_bytes"]:
            yield f"image {image['account_id']}/{image['image_id']} is not stored as it was taken"
    for batch in batcher["batches"]:
        for part in ("output", "error") if batch["state"] == "CLOSED" else ():
            path = bucket / batch_key(batch["batch_id"], batch["submission"], part)
            if batch[f"{part}_file_id"] and not path.is_file():
                yield f"the {part} file of batch {batch['batch_id']} is not stored"


def _is_spared(purchase: Row, evidence: Evidence) -> bool:
    """Whether a batch is a second one that was cancelled, or that had no file to work on; nobody may live by it."""
    harmless = purchase["status"] in {"cancelling", "cancelled"} or (
        purchase["status"] == "failed" and not purchase["answered"]
    )
    taken = {batch["provider_batch_id"] for batch in evidence.batcher["submissions"]}
    return harmless and purchase["id"] not in taken


def _purchase_problems(evidence: Evidence) -> Iterator[str]:
    """Each batch was bought once, under an intent of its own, with a line for each of its jobs."""
    bought = _by((row for row in evidence.books["batches"]), lambda row: row["metadata"]["batch_id"])
    intents = Counter(row["metadata"]["intent_id"] for row in evidence.books["batches"])
    yield from (f"intent {intent} was bought {times} times" for intent, times in intents.items() if times > 1)
    adopted = {row["intent_id"] for row in evidence.batcher["submissions"] if row["state"] == "ADOPTED"}
    yield from (f"intent {intent} was bought and nobody took it" for intent in sorted(set(intents) - adopted))
    for batch in evidence.batcher["batches"]:
        batch_id, purchases = batch["batch_id"], bought.pop(batch["batch_id"], [])
        if batch["provider_batch_id"] and len(purchases) != 1:
            yield f"batch {batch_id} was bought {len(purchases)} times"
        for purchase in purchases:
            if (purchase["lines"], purchase["id"]) != (batch["jobs"], batch["provider_batch_id"]):
                known = (batch["jobs"], batch["provider_batch_id"])
                if (purchase["status"], purchase["lines"], purchase["id"]) == ("cancelled", 0, known[1]):
                    # It was cancelled before the provider had read its file.
                    continue
                yield f"batch {batch_id} has {known[0]} jobs as {known[1]}; bought was {purchase}"
    yield from (f"batch {batch_id} was bought and nobody knows it" for batch_id in bought)
    instant = sum(1 for row in evidence.batcher["jobs"] if row["lane"] == "INSTANT" and row["state"] == "SUCCEEDED")
    if evidence.books["chat_completions"] < instant:
        yield f"{instant} instant jobs were answered by {evidence.books['chat_completions']} completions"


def _by(rows: Iterable[Row], key: Any) -> dict[Any, list[Row]]:
    """Rows by a column, or by what a function makes of them."""
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row) if callable(key) else row[key]].append(row)
    return dict(found)


def _journal(tables: Tables) -> list[journal.Row]:
    return sorted(journal.Row(**row) for row in tables["journal"])


async def _tables(url: str, names: Sequence[str]) -> Tables:
    """All rows of some tables, in one snapshot."""
    if url.startswith("sqlite:"):
        return await asyncio.to_thread(_sqlite_tables, url.removeprefix("sqlite:"), names)
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return {name: [dict(row) for row in await connection.fetch(f"SELECT * FROM {name}")] for name in names}
    finally:
        await connection.close()


def _sqlite_tables(path: str, names: Sequence[str]) -> Tables:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        return {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names}
