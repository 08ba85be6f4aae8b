"""Watchers of a journal: ordered, unique, reliable, resumable, bookmarkable, whatever the ring has forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis import journal
from services.chassis.journal import FIRST_HASH, Entry, Head, Row
from services.chassis.watch import (
    FallenBehind,
    Page,
    RevisionCompacted,
    RevisionUnknown,
    Subscription,
    Tailer,
    decode_token,
    encode_token,
    refuse_behind,
)

SUBJECTS = ["a", "b", "c", "d"]
SOON = 0.001
LONG = 5.0


class Journal:
    """A journal in memory; `oldest` is the first revision that is still kept."""

    def __init__(self) -> None:
        self.head = Head("epoch", 0, FIRST_HASH, 0)
        self.rows: list[Row] = []
        self.oldest = 1
        self.reads = 0

    def append(self, *subjects: str) -> None:
        self.head, rows = journal.chain(self.head, [Entry("k", "a", subject, 0, "{}") for subject in subjects], 1)
        self.rows += rows

    async def read_after(self, revision: int, limit: int) -> Sequence[Row]:
        self.reads += 1
        await asyncio.sleep(0)
        start = max(revision, self.oldest - 1)
        return self.rows[start : start + limit]

    def tailer(self, ring_rows_max: int = 100, page_rows: int = 100, batch_rows_max: int = 100) -> Tailer:
        return Tailer(
            self.read_after,
            self.head.revision,
            ring_rows_max=ring_rows_max,
            page_rows=page_rows,
            batch_rows_max=batch_rows_max,
        )


async def catch_up(tailer: Tailer) -> None:
    while await tailer.step():
        pass


async def drain(subscription: Subscription) -> list[int]:
    """The revisions that come until a bookmark does."""
    revisions: list[int] = []
    while (page := await subscription.next(SOON)).rows:
        revisions += [row.revision for row in page.rows]
    return revisions


class Watcher:
    """A client that keeps what it got, by subject, and can come back with its last token."""

    def __init__(
        self, log: Journal, tailer: Tailer, subscription: Subscription, subjects: set[str], revision: int
    ) -> None:
        self.log = log
        self.tailer = tailer
        self.subscription = subscription
        self.since = dict.fromkeys(subjects, revision)
        self.got: dict[str, list[int]] = {subject: [] for subject in subjects}
        self.revision = revision

    async def read(self) -> Page:
        page = await self.subscription.next(SOON)
        revisions = [row.revision for row in page.rows]
        assert revisions == sorted(set(revisions)), "ordered and unique within a message"
        for row in page.rows:
            self.got[row.subject].append(row.revision)
        self.revision = page.revision
        return page

    def add(self, subject: str, revision: int) -> None:
        self.subscription.add(subject, revision)
        self.since[subject] = revision
        self.got[subject] = []
        # No token covers the new subject's past before the next message comes.
        self.revision = min(self.revision, revision)

    async def reconnect(self) -> None:
        """Comes back with its token: rows behind the token come again, as they do for a client that asks for them."""
        self.subscription.close()
        for revisions in self.got.values():
            revisions[:] = [revision for revision in revisions if revision <= self.revision]
        # A token may lie behind the snapshot of a subject that was added: then what that one held comes again too.
        self.since = {subject: min(since, self.revision) for subject, since in self.since.items()}
        self.subscription = await self.tailer.subscribe(self.got, self.revision, self.log.head.revision)

    def check(self, rows: Sequence[Row]) -> None:
        for subject, got in self.got.items():
            expected = [row.revision for row in rows if row.subject == subject and row.revision > self.since[subject]]
            assert got == [revision for revision in expected if revision <= max(got, default=0)], (
                "ordered, unique, no gap"
            )
            missing = [revision for revision in expected if revision <= self.revision and revision not in got]
            assert missing == [], "a bookmark says that everything up to it has come"


class Scene:
    """A journal, its tailer and its watchers, and what may happen to them."""

    def __init__(self, ring_rows_max: int, page_rows: int, batch_rows_max: int) -> None:
        self.log = Journal()
        self.tailer = self.log.tailer(ring_rows_max, page_rows, batch_rows_max)
        self.watchers: list[Watcher] = []

    async def append(self, subjects: list[str]) -> None:
        self.log.append(*subjects)

    async def step(self) -> None:
        await self.tailer.step()

    async def watch(self, subjects: set[str], where: float) -> None:
        revision = round(where * self.log.head.revision)
        subscription = await self.tailer.subscribe(subjects, revision, self.log.head.revision)
        self.watchers.append(Watcher(self.log, self.tailer, subscription, subjects, revision))

    async def read(self, number: int) -> None:
        for watcher in self.watchers[number : number + 1]:
            await watcher.read()

    async def reconnect(self, number: int) -> None:
        for watcher in self.watchers[number : number + 1]:
            await watcher.reconnect()

    async def add(self, number: int, subject: str, where: float) -> None:
        for watcher in self.watchers[number : number + 1]:
            if subject not in watcher.got:
                watcher.add(subject, round(where * self.log.head.revision))

    async def end(self) -> None:
        await catch_up(self.tailer)
        for watcher in self.watchers:
            while (await watcher.read()).rows:
                pass
            watcher.check(self.log.rows)
            assert watcher.revision == self.log.head.revision, "everybody reaches the end"
            watcher.subscription.close()
        assert not self.tailer._watchers
        assert sum(map(len, self.tailer._by_subject.values())) == len(self.tailer._ring)


subjects = st.sampled_from(SUBJECTS)
numbers = st.integers(0, 2)
actions = st.lists(
    st.one_of(
        st.tuples(st.just(Scene.append), st.lists(subjects, min_size=1, max_size=8)),
        st.tuples(st.just(Scene.step)),
        st.tuples(st.just(Scene.watch), st.sets(subjects, min_size=1), st.floats(0, 1)),
        st.tuples(st.just(Scene.read), numbers),
        st.tuples(st.just(Scene.reconnect), numbers),
        st.tuples(st.just(Scene.add), numbers, subjects, st.floats(0, 1)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(actions, st.integers(1, 6), st.integers(1, 5), st.integers(1, 4))
def test_every_watcher_gets_every_row_of_its_subjects_once_and_in_order(
    actions, ring_rows_max, page_rows, batch_rows_max
):
    async def play() -> None:
        scene = Scene(ring_rows_max, page_rows, batch_rows_max)
        for action, *arguments in actions:
            await action(scene, *arguments)
            assert len(scene.tailer._ring) <= ring_rows_max
            for watcher in scene.watchers:
                watcher.check(scene.log.rows)
        await scene.end()

    asyncio.run(play())


async def test_a_waiting_watcher_is_woken_by_its_subject_alone():
    log = Journal()
    tailer = log.tailer()
    subscription = await tailer.subscribe(["a"], 0, 0)
    waiting = asyncio.ensure_future(subscription.next(LONG))
    log.append("b")
    await tailer.step()
    await asyncio.sleep(0)
    assert not waiting.done()

    log.append("b", "a")
    await tailer.step()
    page = await waiting

    assert [row.revision for row in page.rows] == [3]
    assert page.revision == 3


async def test_one_read_serves_everybody_who_keeps_up():
    log = Journal()
    tailer = log.tailer()
    subscriptions = [await tailer.subscribe(["a"], 0, 0) for _ in range(100)]
    log.append("a")
    await tailer.step()

    assert [await drain(subscription) for subscription in subscriptions] == [[1]] * 100
    assert log.reads == 1


async def test_a_silent_watcher_is_never_behind():
    log = Journal()
    tailer = log.tailer(ring_rows_max=2)
    subscription = await tailer.subscribe(["a"], 0, 0)
    for _ in range(10):
        log.append("b", "b")
        await catch_up(tailer)
    reads = log.reads
    page = await subscription.next(SOON)

    assert (list(page.rows), page.revision) == ([], 20)
    assert log.reads == reads


async def test_a_snapshot_newer_than_the_tailer_is_followed_without_a_gap():
    log = Journal()
    tailer = log.tailer()
    log.append("a", "a")
    subscription = await tailer.subscribe(["a"], 2, 2)
    log.append("a")
    await tailer.step()

    assert await drain(subscription) == [3]


async def test_nothing_is_read_for_nobody():
    log = Journal()
    tailer = log.tailer()
    log.append(*"aaa")
    assert not await tailer.step()
    with await tailer.subscribe(["a"], 3, 3):
        assert tailer.watched
    log.append("a")
    assert not await tailer.step()

    assert not tailer.watched
    assert log.reads == 0


async def test_the_first_watcher_takes_the_tailer_to_the_head():
    """What was written while nobody watched is read neither for the one who has a snapshot nor for others."""
    log = Journal()
    tailer = log.tailer(ring_rows_max=5)
    (await tailer.subscribe(["a"], 0, 0)).close()
    log.append(*"ab" * 50)
    subscription = await tailer.subscribe(["a"], 100, 100)
    assert (tailer.revision, log.reads) == (100, 0)
    log.append("b", "a")
    await tailer.step()

    assert await drain(subscription) == [102]
    assert log.reads == 1


async def test_a_page_on_its_way_does_not_bring_the_tailer_back():
    """The last watcher leaves while a page is read for it, and the next one comes with a newer snapshot."""
    log = Journal()
    tailer = log.tailer(page_rows=1)
    first = await tailer.subscribe(["a"], 0, 0)
    log.append(*"aaa")
    reading = asyncio.ensure_future(tailer.step())
    await asyncio.sleep(0)
    first.close()
    second = await tailer.subscribe(["a"], 3, 3)
    await reading
    log.append("a")
    await catch_up(tailer)

    assert await drain(second) == [4]
    assert tailer.revision == 4


async def test_a_watcher_behind_the_ring_may_be_sent_away():
    log = Journal()
    tailer = Tailer(log.read_after, 0, read_subjects=refuse_behind, ring_rows_max=2)
    subscription = await tailer.subscribe(["a"], 0, 0)
    log.append(*"aaaaaa")
    await catch_up(tailer)

    with pytest.raises(FallenBehind):
        await subscription.next(SOON)


async def test_a_revision_of_the_future_is_an_error_and_not_a_hang():
    log = Journal()
    log.append("a")
    tailer = log.tailer()
    with pytest.raises(RevisionUnknown) as caught:
        await tailer.subscribe(["a"], 2, 1)

    assert caught.value.metadata == {"revision": "2", "current_revision": "1"}


async def test_a_revision_whose_rows_are_gone_is_an_error():
    log = Journal()
    log.append(*"aaaaa")
    log.oldest = 4
    tailer = log.tailer()
    with pytest.raises(RevisionCompacted) as caught:
        await tailer.subscribe(["a"], 2, 5)
    kept = await tailer.subscribe(["a"], 3, 5)

    assert caught.value.metadata == {"revision": "2", "oldest_revision": "4"}
    assert await drain(kept) == [4, 5]


async def test_a_watcher_slower_than_what_is_kept_learns_it():
    log = Journal()
    tailer = log.tailer(ring_rows_max=2)
    subscription = await tailer.subscribe(["a"], 0, 0)
    log.append(*"aaaaaa")
    await catch_up(tailer)
    log.oldest = 4
    with pytest.raises(RevisionCompacted):
        await subscription.next(SOON)


async def test_a_store_may_read_the_past_in_its_own_way():
    log = Journal()
    log.append(*"abab")
    asked = []

    async def read_subjects(subjects: frozenset[str], revision: int, limit: int) -> Page:
        asked.append((subjects, revision, limit))
        return Page([row for row in log.rows if row.subject in subjects and row.revision > revision], 4)

    tailer = Tailer(log.read_after, log.head.revision, read_subjects=read_subjects, page_rows=7)
    subscription = await tailer.subscribe(["a"], 1, 4)

    assert await drain(subscription) == [3]
    assert asked == [(frozenset("a"), 1, 7)]


async def test_a_subject_that_was_removed_is_silent():
    log = Journal()
    tailer = log.tailer()
    with await tailer.subscribe(["a", "b"], 0, 0) as subscription:
        log.append("a", "b")
        await tailer.step()
        subscription.remove("a")
        assert await drain(subscription) == [2]
        subscription.remove("b")
        assert await drain(subscription) == []


def test_a_resume_token_comes_back_as_its_revision():
    assert decode_token(encode_token("an.epoch", 120), "an.epoch", 500) == 120


@pytest.mark.parametrize(
    "token", ["", "epoch", "epoch.", "epoch.-1", "other.3", "epoch.1e3", "epoch.٣", "epoch." + "9" * 99]
)
def test_a_token_that_was_never_given_is_refused(token: str):
    with pytest.raises(RevisionUnknown):
        decode_token(token, "epoch", 500)
