"""The price lists in the database: each command is one transaction, and leaves one row in the journal.

Whoever changes prices locks the one row of `price_head` and tells the time after that; whoever takes jobs shares it,
before any other lock. So the jobs of a transaction are priced by all the lists that began before it, and by none that
is withdrawn meanwhile. The lists are read again only when the head's revision has moved.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from services.batcher.errors import PriceListMismatch, PriceListNotFound, TooManyPriceLists
from services.batcher.price_change import begin_us, rolled_out, time_text, withdraws
from services.batcher.price_list import Content, PriceList, Rollout, decode, encode, first_difference
from services.batcher.pricing import base_of
from services.chassis import journal
from services.chassis.database import Database, Row, Transaction
from services.chassis.errors import InvalidField, Violation

LISTS_MAX: Final = 100
"""Lists in force or to come: each submission looks through them."""

CONFIGURATION: Final = "@configuration"


class PriceBook:
    """The lists that count, as one process remembers them. Times before it learnt of a list are told as that time."""

    def __init__(self) -> None:
        self._known: tuple[int, int, tuple[PriceList, ...]] = (-1, 0, ())

    async def shared(self, tx: Transaction) -> tuple[tuple[PriceList, ...], int]:
        """The lists, none of which changes until the transaction ends, and the time by which to price."""
        return await self._lists(tx, "price_head_share")

    async def seen(self, tx: Transaction) -> tuple[tuple[PriceList, ...], int]:
        """The lists as this transaction sees them, and the time by which to price."""
        return await self._lists(tx, "price_head_read")

    async def _lists(self, tx: Transaction, statement: str) -> tuple[tuple[PriceList, ...], int]:
        row = await tx.row(statement)
        revision, now_us = int(row[0]) if row else 0, await tx.now_us()
        known, load_time_us, lists = self._known
        if known != revision:
            lists, load_time_us = await _alive(tx, now_us), now_us
            self._known = (revision, load_time_us, lists)
        # What a clock that is put back would still price by may not be loaded any more.
        return lists, max(now_us, load_time_us)


class Changed(NamedTuple):
    """A price list as it is now. replayed: it was so before."""

    price_list: PriceList
    replayed: bool


class Page(NamedTuple):
    """Price lists, those put last first, with the time and the latest list that has reached everybody."""

    lists: tuple[PriceList, ...]
    now_us: int
    base: PriceList | None


class PriceStore:
    """Changes of the price lists. notice_us: how long before it begins each is known."""

    def __init__(self, database: Database, notice_us: int) -> None:
        self._database = database
        self._notice_us = notice_us

    async def put(self, content: Content, actor: str) -> Changed:
        """Stores a list, or finds it. Raises InvalidField (it would begin too early), PriceListMismatch,
        TooManyPriceLists.
        """
        async with self._database.transaction() as tx:
            await tx.row("price_head_lock")
            now_us = await tx.now_us()
            known = await _list(tx, content.version)
            if known is not None:
                return _again(known, content)
            effective_us = begin_us(content, now_us, self._notice_us)
            if effective_us is None:
                raise InvalidField([_too_early(content.effective_time_us, now_us, self._notice_us)])
            if len(await _alive(tx, now_us)) >= LISTS_MAX:
                raise TooManyPriceLists(LISTS_MAX)
            put = await _insert(tx, content, effective_us, actor, now_us)
        return Changed(put, False)

    async def seed(self, contents: Sequence[Content]) -> list[Changed]:
        """Puts the lists of the configuration that are not known yet. Raises PriceListMismatch.

        The first lists of a database were always in force; later ones begin after notice, or at a later time of theirs.
        """
        async with self._database.transaction() as tx:
            await tx.row("price_head_lock")
            now_us = await tx.now_us()
            is_first = not await _alive(tx, now_us)
            soonest_us = 0 if is_first else now_us + self._notice_us
            results = []
            for content in contents:
                known = await _list(tx, content.version)
                if known is not None:
                    results.append(_again(known, content))
                    continue
                effective_us = max(content.effective_time_us, soonest_us)
                results.append(Changed(await _insert(tx, content, effective_us, CONFIGURATION, now_us), False))
        return results

    async def extend(self, version: str, percent: int, actor: str) -> Changed:
        """Rolls a list out to more accounts. Raises PriceListNotFound, PriceListWithdrawn, RolloutShrinks."""
        async with self._database.transaction() as tx:
            await tx.row("price_head_lock")
            now_us = await tx.now_us()
            known = await _list(tx, version)
            if known is None:
                raise PriceListNotFound(version)
            step = rolled_out(known, percent, now_us, self._notice_us)
            if step is None:
                return Changed(known, True)
            body = {"percent": percent, "start_time_us": step.start_time_us}
            revision = await _journal(tx, "prices.rolled_out", actor, version, known.last_revision, body, now_us)
            await tx.run("price_rollouts_insert", version=version, percent=percent, start_time_us=step.start_time_us)
            await tx.run("price_lists_change", version=version, withdraw_time_us=0, last_revision=revision)
        return Changed(known._replace(last_revision=revision, rollouts=(*known.rollouts, step)), False)

    async def withdraw(self, version: str, actor: str) -> Changed:
        """Takes a list back before it begins. Raises PriceListNotFound, PriceListInForce."""
        async with self._database.transaction() as tx:
            await tx.row("price_head_lock")
            now_us = await tx.now_us()
            known = await _list(tx, version)
            if known is None:
                raise PriceListNotFound(version)
            if not withdraws(known, now_us):
                return Changed(known, True)
            revision = await _journal(tx, "prices.withdrawn", actor, version, known.last_revision, {}, now_us)
            await tx.run("price_lists_change", version=version, withdraw_time_us=now_us, last_revision=revision)
        return Changed(known._replace(last_revision=revision, withdraw_time_us=now_us), False)

    async def page(self, before_revision: int, count: int) -> Page:
        """Lists that were put before a revision, withdrawn ones too."""
        async with self._database.reading() as tx:
            now_us = await tx.now_us()
            rows = await tx.rows("price_lists_page", before_revision=before_revision, count=count)
            return Page(await _with_rollouts(tx, rows), now_us, base_of(await _alive(tx, now_us), now_us))


async def _alive(tx: Transaction, now_us: int) -> tuple[PriceList, ...]:
    """The lists that may still price something: the latest that has reached everybody, and those behind it."""
    return await _with_rollouts(tx, await tx.rows("price_lists_alive", now_us=now_us, count=2 * LISTS_MAX))


async def _list(tx: Transaction, version: str) -> PriceList | None:
    row = await tx.row("price_list_get", version=version)
    return (await _with_rollouts(tx, [row]))[0] if row else None


async def _with_rollouts(tx: Transaction, rows: Sequence[Row]) -> tuple[PriceList, ...]:
    steps: dict[str, list[Rollout]] = defaultdict(list)
    if rows:
        for version, *step in await tx.rows("price_rollouts_of", versions=json.dumps([row["version"] for row in rows])):
            steps[version].append(Rollout._make(step))
    return tuple(_price_list(row, steps[row["version"]]) for row in rows)


def _price_list(row: Row, steps: Iterable[Rollout]) -> PriceList:
    _, document, *rest = row
    content = decode(document)
    return PriceList._make((content, ZoneInfo(content.time_zone), *rest, tuple(steps)))


def _again(known: PriceList, content: Content) -> Changed:
    difference = first_difference(known.content, content)
    if difference is not None:
        raise PriceListMismatch(content.version, *difference)
    return Changed(known, True)


async def _insert(tx: Transaction, content: Content, effective_us: int, actor: str, now_us: int) -> PriceList:
    body = {**content._asdict(), "effective_time_us": effective_us}
    revision = await _journal(tx, "prices.put", actor, content.version, 0, body, now_us)
    await tx.run(
        "price_lists_insert",
        version=content.version,
        document=encode(content),
        effective_time_us=effective_us,
        create_time_us=now_us,
        actor=actor,
        put_revision=revision,
    )
    percent = content.rollout_percent
    await tx.run("price_rollouts_insert", version=content.version, percent=percent, start_time_us=effective_us)
    zone, steps = ZoneInfo(content.time_zone), (Rollout(percent, effective_us),)
    return PriceList(content, zone, effective_us, now_us, 0, actor, revision, revision, steps)


async def _journal(
    tx: Transaction, kind: str, actor: str, version: str, previous: int, body: Mapping[str, object], now_us: int
) -> int:
    """Appends a row about a list and moves the prices' head to it; gives the row's revision."""
    head = await journal.lock_head(tx)
    entry = journal.Entry(kind, actor, f"prices/{version}", previous, json.dumps(body, separators=(",", ":")))
    new_head = await journal.append(tx, head, [entry], now_us)
    await tx.run("price_head_advance", revision=new_head.revision)
    return new_head.revision


def _too_early(effective_us: int, now_us: int, notice_us: int) -> Violation:
    soonest = time_text(now_us + notice_us)
    problem = f"must be at least {notice_us / 1_000_000:g} seconds ahead: {soonest} or later"
    return Violation("effective_time", time_text(effective_us), problem)
