"""What the price lists in the database promise, on SQLite and on PostgreSQL."""

import asyncio
import json

import pytest

from services.batcher.errors import (
    PriceChanged,
    PriceListInForce,
    PriceListMismatch,
    PriceListNotFound,
    PriceListWithdrawn,
    RolloutShrinks,
    TooManyPriceLists,
)
from services.batcher.job import Lane
from services.batcher.price_list import Content, Hours, PriceRow, Rollout, plain_list, standing
from services.batcher.pricing import Prices, Terms, prices_of
from services.batcher.store import Store
from services.batcher.store_prices import CONFIGURATION, LISTS_MAX, PriceBook, PriceStore
from services.chassis.errors import InvalidField
from tests.batcher_jobs import FAR_US, image, new_job, opened_stores

HOUR_US = 3600 * 1_000_000
FIRST = plain_list("v1", {Lane.BATCH: 1, Lane.INSTANT: 5})
DEARER = plain_list("v2", {Lane.BATCH: 2, Lane.INSTANT: 6})


class Priced:
    """Stores of one database: prices that change at once, others with an hour's notice, and two replicas' jobs."""

    def __init__(self, stores):
        self.stores = stores
        self.at_once = PriceStore(stores.database, 0)
        self.noticed = PriceStore(stores.database, HOUR_US)
        self.books = PriceBook(), PriceBook()
        self.replicas = [Store(stores.database, lambda: None, True, book) for book in self.books]

    async def price(self, account_id="alice", replica=0):
        async with self.stores.database.reading() as tx:
            lists, time_us = await self.books[replica].seen(tx)
        return prices_of(lists, account_id, "m", frozenset(), time_us)

    async def submit(self, job_id, replica=0, terms=None, **fields):
        command = new_job(job_id, price=0, price_version="", **fields)
        (result,) = await self.replicas[replica].submit([command._replace(terms=terms or Terms())])
        return result


@pytest.fixture
async def priced(database_url):
    async with opened_stores(database_url) as stores:
        made = Priced(stores)
        await made.at_once.seed([FIRST])
        await stores.jobs.add_image(image())
        yield made


async def test_the_first_lists_were_always_in_force_and_are_put_once_by_whoever_comes_first(priced):
    again = await asyncio.gather(*(store.seed([FIRST]) for store in (priced.at_once, priced.noticed)))
    (only,) = (await priced.at_once.page(FAR_US, 10)).lists
    rows = [row for row in await priced.stores.journal() if row.kind == "prices.put"]

    assert [changed.replayed for (changed,) in again] == [True, True]
    assert (only.effective_time_us, only.actor, only.rollouts) == (0, CONFIGURATION, (Rollout(100, 0),))
    assert [(row.subject, row.actor) for row in rows] == [("prices/v1", CONFIGURATION)]
    assert await priced.price() == Prices("v1", 1, 5)


async def test_a_configured_list_that_comes_later_begins_after_notice_and_another_content_is_refused(priced):
    (later,) = await priced.noticed.seed([DEARER])
    with pytest.raises(PriceListMismatch) as caught:
        await priced.at_once.seed([plain_list("v1", {Lane.BATCH: 1, Lane.INSTANT: 7})])

    assert later.price_list.effective_time_us == later.price_list.create_time_us + HOUR_US
    assert caught.value.metadata == {"field": "rows[1].amount", "stored": "5", "received": "7"}
    assert await priced.price() == Prices("v1", 1, 5)


async def test_a_list_that_is_put_prices_the_next_job_on_every_replica_and_none_of_before(priced):
    before = [await priced.submit(f"before-{replica}", replica) for replica in (0, 1)]
    await priced.at_once.put(DEARER, "admin")
    after = [await priced.submit(f"after-{replica}", replica, lane=Lane.INSTANT) for replica in (0, 1)]
    again = [await priced.submit(f"before-{replica}", 1 - replica) for replica in (0, 1)]

    assert [(result.job.price, result.job.price_version) for result in before] == [(1, "v1")] * 2
    assert [(result.job.price, result.job.price_version) for result in after] == [(6, "v2")] * 2
    assert [(result.job.price, result.replayed) for result in again] == [(1, True)] * 2


async def test_a_list_of_the_future_and_a_withdrawn_one_price_nothing(priced):
    """A replica that remembers the list, and one that has never read it."""
    put = await priced.noticed.put(DEARER, "admin")
    scheduled = await priced.submit("scheduled")
    withdrawn = await priced.at_once.withdraw("v2", "admin")
    results = [await priced.submit(f"withdrawn-{replica}", replica) for replica in (0, 1)]

    assert not put.replayed
    assert not withdrawn.replayed
    assert withdrawn.price_list.withdraw_time_us > 0
    assert [result.job.price_version for result in (scheduled, *results)] == ["v1"] * 3


async def test_a_version_stands_for_its_content_for_ever(priced):
    rows = (*DEARER.rows, PriceRow(Lane.BATCH, 1, hours=Hours(0, 360)), PriceRow(Lane.INSTANT, 5, tier="gold"))
    content = Content("v3", 0, "Europe/Berlin", rows, 10)
    first = await priced.at_once.put(content, "admin")
    again = await priced.at_once.put(content, "somebody")
    with pytest.raises(PriceListMismatch) as caught:
        await priced.at_once.put(content._replace(rollout_percent=11), "admin")
    (read, _) = (await priced.at_once.page(FAR_US, 10)).lists

    assert (first.replayed, again.replayed, again.price_list) == (False, True, first.price_list)
    assert caught.value.metadata == {"field": "rollout_percent", "stored": "10", "received": "11"}
    assert read == first.price_list
    assert (read.content, read.zone.key, read.actor) == (content, "Europe/Berlin", "admin")


async def test_a_change_is_known_before_it_begins(priced):
    async with priced.stores.database.reading() as tx:
        now_us = await tx.now_us()
    with pytest.raises(InvalidField) as caught:
        await priced.noticed.put(DEARER._replace(effective_time_us=now_us + HOUR_US // 2), "admin")
    kept = await priced.noticed.put(DEARER._replace(effective_time_us=now_us + 2 * HOUR_US), "admin")
    soonest = await priced.noticed.put(DEARER._replace(version="v3"), "admin")

    (violation,) = caught.value.violations
    assert violation.field == "effective_time"
    assert "3600 seconds ahead" in violation.problem
    assert kept.price_list.effective_time_us == now_us + 2 * HOUR_US
    assert soonest.price_list.effective_time_us == soonest.price_list.create_time_us + HOUR_US


async def test_a_roll_out_grows_reaches_each_account_once_and_is_replayed(priced):
    await priced.at_once.put(DEARER._replace(rollout_percent=10), "admin")
    accounts = [f"account-{number}" for number in range(60)]
    small = [account for account in accounts if (await priced.price(account)).version == "v2"]
    grown = await priced.at_once.extend("v2", 50, "admin")
    again = await priced.at_once.extend("v2", 50, "admin")
    large = [account for account in accounts if (await priced.price(account, 1)).version == "v2"]
    with pytest.raises(RolloutShrinks) as caught:
        await priced.at_once.extend("v2", 20, "admin")
    later = await priced.noticed.extend("v2", 100, "admin")

    assert small == [account for account in accounts if standing("v2", account) < 10]
    assert large == [account for account in accounts if standing("v2", account) < 50]
    assert set(small) < set(large) < set(accounts)
    assert (grown.replayed, again.replayed, again.price_list) == (False, True, grown.price_list)
    assert caught.value.metadata == {"version": "v2", "percent": "20", "current_percent": "50"}
    assert [step.percent for step in later.price_list.rollouts] == [10, 50, 100]
    assert (await priced.price(next(each for each in accounts if each not in large))).version == "v1"


async def test_what_is_in_force_cannot_be_withdrawn_and_what_was_withdrawn_reaches_nobody(priced):
    trial = DEARER._replace(rollout_percent=10)
    await priced.noticed.put(trial, "admin")
    withdrawn = await priced.at_once.withdraw("v2", "admin")
    again = await priced.at_once.withdraw("v2", "admin")
    with pytest.raises(PriceListInForce) as caught:
        await priced.at_once.withdraw("v1", "admin")
    with pytest.raises(PriceListWithdrawn):
        await priced.at_once.extend("v2", 20, "admin")
    put_again = await priced.at_once.put(trial, "admin")

    assert (again.replayed, again.price_list) == (True, withdrawn.price_list)
    assert caught.value.metadata == {"version": "v1", "effective_time": "1970-01-01T00:00:00Z"}
    assert (put_again.replayed, put_again.price_list) == (True, withdrawn.price_list)


async def test_what_there_is_not_is_not_found(priced):
    for change in (priced.at_once.extend("v9", 50, "admin"), priced.at_once.withdraw("v9", "admin")):
        with pytest.raises(PriceListNotFound):
            await change


async def test_each_change_is_one_row_of_the_journal_with_its_actor(priced):
    await priced.noticed.put(DEARER._replace(rollout_percent=10), "ann")
    await priced.at_once.extend("v2", 20, "bob")
    await priced.at_once.withdraw("v2", "eve")
    await priced.at_once.withdraw("v2", "eve")
    rows = [row for row in await priced.stores.journal() if row.subject == "prices/v2"]
    bodies = [json.loads(row.body) for row in rows]

    assert [(row.kind, row.actor) for row in rows] == [
        ("prices.put", "ann"), ("prices.rolled_out", "bob"), ("prices.withdrawn", "eve")
    ]  # fmt: skip
    assert bodies[0]["rows"] == [["BATCH", 2, "", "", None], ["INSTANT", 6, "", "", None]]
    assert bodies[0]["rollout_percent"] == 10
    assert bodies[1]["percent"] == 20


async def test_a_job_on_other_terms_is_refused_alone_and_leaves_nothing(priced):
    await priced.at_once.put(DEARER, "admin")
    asked = [
        ("dear", Terms(max_price=1)), ("other", Terms(price_version="v1")), ("fine", Terms("v2", 2))
    ]  # fmt: skip
    commands = [new_job(name)._replace(terms=terms) for name, terms in asked]
    dear, other, fine = await priced.replicas[0].submit(commands)
    again = await priced.submit("fine", terms=Terms(max_price=1))
    accepted = await priced.submit("dear", terms=Terms(max_price=2))

    assert isinstance(dear, PriceChanged)
    assert dear.metadata == {"price": "2", "price_version": "v2", "max_price": "1"}
    assert other.metadata == {"price": "2", "price_version": "v2", "expected_version": "v1"}
    assert (fine.job.price, again.job.uid, again.replayed) == (2, fine.job.uid, True)
    assert (accepted.job.price, accepted.replayed) == (2, False)


async def test_lists_are_paged_those_put_last_first(priced):
    for number in range(4):
        await priced.noticed.put(DEARER._replace(version=f"w{number}"), "admin")
    await priced.at_once.withdraw("w1", "admin")
    pages, before = [], FAR_US
    while page := (await priced.at_once.page(before, 2)).lists:
        pages.append([each.content.version for each in page])
        before = page[-1].put_revision

    assert pages == [["w3", "w2"], ["w1", "w0"], ["v1"]]


async def test_so_many_lists_are_in_force_or_to_come_and_no_more(priced):
    for number in range(LISTS_MAX - 1):
        await priced.at_once.put(DEARER._replace(version=f"w{number}", rollout_percent=1), "admin")
    with pytest.raises(TooManyPriceLists):
        await priced.at_once.put(DEARER, "admin")
    known = await priced.at_once.put(DEARER._replace(version="w0", rollout_percent=1), "admin")
    await priced.at_once.extend("w98", 100, "admin")
    put = await priced.at_once.put(DEARER, "admin")

    assert known.replayed
    assert not put.replayed


async def test_one_version_that_many_put_at_once_is_put_once(priced):
    results = await asyncio.gather(*(priced.at_once.put(DEARER, f"admin-{number}") for number in range(20)))

    assert sorted(result.replayed for result in results) == [False] + [True] * 19
    assert len({result.price_list for result in results}) == 1


async def test_jobs_and_changes_at_the_same_time_leave_no_job_at_a_price_of_another_time(priced):
    """Each job's price is that of the newest list whose row in the journal stands before the job's own row."""
    lists = [plain_list(f"w{number}", {Lane.BATCH: number + 1, Lane.INSTANT: 500}) for number in range(1, 9)]

    async def change():
        for content in lists:
            await priced.at_once.put(content, "admin")

    async def take(replica):
        return [await priced.submit(f"{replica}-{number}", replica) for number in range(20)]

    _, *taken = await asyncio.gather(change(), take(0), take(1))
    newest, expected = "v1", {}
    for row in await priced.stores.journal():
        if row.kind == "prices.put":
            newest = row.subject.removeprefix("prices/")
        if row.kind == "job.accepted":
            expected[row.subject] = newest

    results = [result for of_replica in taken for result in of_replica]
    assert {result.job.uid: result.job.price_version for result in results} == expected
    assert (await priced.price()).version == "w8"
