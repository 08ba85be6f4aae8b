"""Streams as cursors over the journal: one reader for everybody, and no queue per watcher.

    transaction ──wake──► Tailer.step reads once ──► ring of recent rows, by subject ──► Subscription.next
                                                       a cursor behind the ring reads the database instead

A watcher is told everything, or told that it cannot be: rows come in order, once and without gaps, and it can go on
from any revision that it has seen. A slow watcher costs nothing but its cursor. These are etcd's guarantees for a
watch: ordered, unique, reliable, resumable, bookmarkable. While nobody watches, nothing is read: the first watcher to
come takes the tailer along to the head of the journal.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import takewhile
from operator import attrgetter
from typing import Final, NamedTuple, Self

from services.chassis import journal
from services.chassis.database import Database
from services.chassis.errors import ServiceError
from services.chassis.journal import Row

RING_ROWS_MAX: Final = 20_000
PAGE_ROWS: Final = 1_000
BATCH_ROWS_MAX: Final = 500
BEHIND_READERS_MAX: Final = 4

ReadAfter = Callable[[int, int], Awaitable[Sequence[Row]]]
ReadSubjects = Callable[[frozenset[str], int, int], Awaitable["Page"]]


class RevisionUnknown(ServiceError):
    """A revision of the future, or of another life of this database: watch again without a resume token."""

    def __init__(self, revision: str, current_revision: int) -> None:
        super().__init__(
            f"revision {revision} is not known here: the newest is {current_revision}",
            {"revision": revision, "current_revision": str(current_revision)},
        )


class RevisionCompacted(ServiceError):
    """The rows after a revision are no longer kept: watch again without a resume token."""

    def __init__(self, revision: int, oldest_revision: int) -> None:
        super().__init__(
            f"the events after revision {revision} are no longer kept: the oldest is {oldest_revision}",
            {"revision": str(revision), "oldest_revision": str(oldest_revision)},
        )


class FallenBehind(Exception):
    """A watcher needs rows that the ring has forgotten; see `refuse_behind`."""


class Page(NamedTuple):
    """Rows of some subjects in order; there are no others of theirs up to `revision`."""

    rows: Sequence[Row]
    revision: int


def encode_token(epoch: str, revision: int) -> str:
    """A resume token: go on behind this revision of this life of the database."""
    return f"{epoch}.{revision}"


def decode_token(token: str, epoch: str, current_revision: int) -> int:
    """The revision to go on behind; raises RevisionUnknown for a token that this database never gave."""
    token_epoch, _, revision = token.rpartition(".")
    if token_epoch != epoch or not (revision.isascii() and revision.isdigit()) or len(revision) > 18:
        raise RevisionUnknown(revision[:64], current_revision)
    return int(revision)


def reader(database: Database) -> ReadAfter:
    """Reads the journal of a database, for a Tailer."""

    async def read_after(revision: int, limit: int) -> Sequence[Row]:
        async with database.reading() as tx:
            return await journal.read_after(tx, revision, limit)

    return read_after


async def refuse_behind(subjects: frozenset[str], revision: int, limit: int) -> Page:  # noqa: ARG001
    """A `read_subjects` for whoever knows a better way to the past: it raises FallenBehind, which ends the cursor."""
    raise FallenBehind


class Tailer:
    """Follows the journal from `revision` on. Run `step` as a loop, wake that loop after each transaction.

    `read_after(revision, limit)` reads the journal. `read_subjects(subjects, revision, limit)` is asked when a watcher
    is behind the ring; by default it filters what `read_after` gives.
    """

    def __init__(
        self,
        read_after: ReadAfter,
        revision: int,
        *,
        read_subjects: ReadSubjects | None = None,
        ring_rows_max: int = RING_ROWS_MAX,
        page_rows: int = PAGE_ROWS,
        batch_rows_max: int = BATCH_ROWS_MAX,
    ) -> None:
        self._read_after = read_after
        self._read_subjects = read_subjects or self._filtered
        self._revision = revision
        self._ring_rows_max = ring_rows_max
        self._page_rows = page_rows
        self._ring: deque[Row] = deque()
        self._by_subject: defaultdict[str, deque[Row]] = defaultdict(deque)
        self._watchers: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._one_reader = asyncio.Lock()
        self._behind_readers = asyncio.Semaphore(BEHIND_READERS_MAX)
        self.batch_rows_max = batch_rows_max

    @property
    def revision(self) -> int:
        """The newest revision that was read."""
        return self._revision

    @property
    def ring_revision(self) -> int:
        """The newest revision that is not in the ring any more."""
        return self._revision - len(self._ring)

    @property
    def watched(self) -> bool:
        """Whether anybody would be told of a new row: a loop need not be woken for nobody."""
        return bool(self._watchers)

    async def step(self) -> bool:
        """Reads a page of new rows for all watchers, or nothing for nobody; True when there may be more."""
        return self.watched and await self._read_page()

    async def _read_page(self) -> bool:
        async with self._one_reader:
            rows = await self._read_after(self._revision, self._page_rows)
            if rows and rows[0].revision != self._revision + 1:
                raise RevisionCompacted(self._revision, rows[0].revision)
            for row in rows:
                self._take(row)
        return len(rows) == self._page_rows

    async def subscribe(self, subjects: Iterable[str], after_revision: int, head_revision: int) -> Subscription:
        """Watches subjects from behind a revision on: that of a snapshot, or of a resume token.

        `head_revision` is that of the journal as the caller has seen it: the first watcher after a time without any
        goes on from there. Raises RevisionUnknown when the revision does not exist yet, RevisionCompacted when the rows
        after it are gone.
        """
        await self._skip_to(head_revision)
        more = after_revision > self._revision
        while more:
            more = await self._read_page() and after_revision > self._revision
        if after_revision > self._revision:
            raise RevisionUnknown(str(after_revision), self._revision)
        if after_revision < self.ring_revision:
            await self.check_kept(after_revision)
        subscription = Subscription(self)
        for subject in subjects:
            subscription.add(subject, after_revision)
        return subscription

    async def check_kept(self, revision: int) -> None:
        """Raises RevisionCompacted when the rows after a revision, which is not the newest, are no longer kept."""
        rows = await self._read_after(revision, 1)
        if not rows or rows[0].revision != revision + 1:
            raise RevisionCompacted(revision, rows[0].revision if rows else self._revision + 1)

    async def read_behind(self, subjects: frozenset[str], revision: int) -> Page:
        """A page for a watcher that is behind the ring, never ahead of what `step` has read."""
        async with self._behind_readers:
            page = await self._read_subjects(subjects, revision, self._page_rows)
        return Page([row for row in page.rows if row.revision <= self._revision], min(page.revision, self._revision))

    def recent(self, subject: str, after_revision: int) -> list[Row]:
        """A subject's rows in the ring behind a revision, oldest first; costs no more than it returns."""
        rows = self._by_subject.get(subject, ())
        return list(takewhile(lambda row: row.revision > after_revision, reversed(rows)))[::-1]

    def attach(self, subject: str, subscription: Subscription) -> None:
        """Tells a subscription of this subject's rows from now on."""
        self._watchers[subject].add(subscription)

    def detach(self, subject: str, subscription: Subscription) -> None:
        """Undoes `attach`."""
        watchers = self._watchers[subject]
        watchers.discard(subscription)
        if not watchers:
            del self._watchers[subject]

    async def _skip_to(self, revision: int) -> None:
        if self._watchers:
            return
        # Under the lock, because a page that is being read would otherwise bring the tailer back.
        async with self._one_reader:
            if not self._watchers and revision > self._revision:
                self._ring.clear()
                self._by_subject.clear()
                self._revision = revision

    def _take(self, row: Row) -> None:
        self._revision = row.revision
        self._ring.append(row)
        self._by_subject[row.subject].append(row)
        if len(self._ring) > self._ring_rows_max:
            subject = self._ring.popleft().subject
            rows = self._by_subject[subject]
            rows.popleft()
            if not rows:
                del self._by_subject[subject]
        for subscription in self._watchers.get(row.subject, ()):
            subscription.notice(row)

    async def _filtered(self, subjects: frozenset[str], revision: int, limit: int) -> Page:
        rows = await self._read_after(revision, limit)
        if not rows or rows[0].revision != revision + 1:
            raise RevisionCompacted(revision, rows[0].revision if rows else self._revision + 1)
        return Page([row for row in rows if row.subject in subjects], rows[-1].revision)


class Subscription:
    """One watcher's cursor over a set of subjects that may change while it watches. One task at a time calls `next`.

    Rows come in order, except that those of a subject that is added late may be older than rows that have come already.
    """

    __slots__ = ("_behind", "_seen", "_tailer", "_unread", "_waiter")

    def __init__(self, tailer: Tailer) -> None:
        self._tailer = tailer
        # By subject, the revision up to which its rows have been returned.
        self._seen: dict[str, int] = {}
        # By subject, the first revision that is in the ring, or was, and has not been returned.
        self._unread: dict[str, int] = {}
        # Where to read the database from, when the ring begins too late.
        self._behind: int | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, subject: str, after_revision: int) -> None:
        """Watches one more subject, from behind the revision of its snapshot on; one already watched stays as it is."""
        if subject in self._seen:
            return
        self._seen[subject] = after_revision
        self._tailer.attach(subject, self)
        if after_revision < self._tailer.ring_revision:
            self._behind = after_revision if self._behind is None else min(self._behind, after_revision)
        else:
            self._find_unread(subject, after_revision)
        self._wake()

    def remove(self, subject: str) -> None:
        """Watches a subject no longer."""
        if self._seen.pop(subject, None) is not None:
            self._unread.pop(subject, None)
            self._tailer.detach(subject, self)
        if not self._seen:
            self._behind = None

    def close(self) -> None:
        """Watches nothing any more."""
        for subject in list(self._seen):
            self.remove(subject)

    def notice(self, row: Row) -> None:
        """The tailer has read this row."""
        if row.revision > self._seen[row.subject]:
            self._unread.setdefault(row.subject, row.revision)
            self._wake()

    async def next(self, timeout_seconds: float) -> Page:
        """The next rows, waiting for some at most so long; none is a bookmark.

        After it, everything up to `Page.revision` has been returned: that is where a resume token points. Raises
        RevisionCompacted when the watcher was so slow that the rows it needs are gone.
        """
        page = await self._ready()
        if page.rows:
            return page
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._waiter
        except TimeoutError:
            return Page((), self._complete_revision())
        finally:
            self._waiter = None
        return await self._ready()

    async def _ready(self) -> Page:
        """What can be had without waiting for something to happen."""
        while True:
            complete = self._complete_revision()
            if complete < self._tailer.ring_revision:
                self._behind = complete
            if self._behind is None:
                return self._from_ring()
            rows = await self._from_database(self._behind)
            if rows:
                return Page(rows, self._complete_revision())

    def _from_ring(self) -> Page:
        rows = [row for subject, first in self._unread.items() for row in self._tailer.recent(subject, first - 1)]
        rows.sort(key=attrgetter("revision"))
        kept, rest = rows[: self._tailer.batch_rows_max], rows[self._tailer.batch_rows_max :]
        self._unread.clear()
        for row in reversed(rest):
            self._unread[row.subject] = row.revision
        for row in kept:
            self._seen[row.subject] = row.revision
        return Page(kept, self._complete_revision())

    async def _from_database(self, revision: int) -> list[Row]:
        page = await self._tailer.read_behind(frozenset(self._seen), revision)
        rows = [row for row in page.rows if row.revision > self._seen.get(row.subject, row.revision)]
        for row in rows:
            self._seen[row.subject] = row.revision
        if self._behind == revision:  # unless a subject was added meanwhile whose cursor lies further back
            self._behind = None if page.revision >= self._tailer.ring_revision else page.revision
        if self._behind is None:
            self._unread.clear()
            for subject, seen in self._seen.items():
                self._find_unread(subject, max(seen, page.revision))
        return rows

    def _complete_revision(self) -> int:
        if self._behind is not None:
            return self._behind
        return min(self._unread.values(), default=self._tailer.revision + 1) - 1

    def _find_unread(self, subject: str, after_revision: int) -> None:
        rows = self._tailer.recent(subject, after_revision)
        if rows:
            self._unread[subject] = rows[0].revision

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
