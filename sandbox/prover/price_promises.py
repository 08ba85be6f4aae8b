"""What the prices declare, held against what customers were told and what the wallet has written.

Written from the declarations, not from the code: which list an account is in is never computed here, only that it
stays the same one until something is declared to have changed, and that what everybody has is not left behind.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from sandbox.prover.shop import FIRST, Answered, Event, FellBack, Put, Quoted, RolledOut, Submitted, Withdrawn
from services.batcher.job import Lane
from services.batcher.price_list import Content
from services.wallet.holdings import Entry


@dataclass
class _List:
    """A list, its place among all, and how many accounts it reaches from when on."""

    content: Content
    place: tuple[int, int]
    steps: list[tuple[int, int]]
    withdrawn: bool = False
    left_out: dict[str, int] = field(default_factory=dict)
    """The accounts that were seen outside of it, and how many steps it had made then."""

    @property
    def begin_us(self) -> int:
        return self.place[0]

    def steps_at(self, now_us: int) -> int:
        return sum(start_us <= now_us for _, start_us in self.steps)

    def is_for_all(self, now_us: int) -> bool:
        return not self.withdrawn and any(percent == 100 and start_us <= now_us for percent, start_us in self.steps)


@dataclass
class _Job:
    """What a job pays: by the list that it was submitted by."""

    price: int
    fallback_price: int
    version: str
    answered: bool = False


class PricePromises:
    """Watches one shop."""

    def __init__(self) -> None:
        self._lists = {FIRST.version: _List(FIRST, (0, 0), [(100, 0)])}
        self._quotes: dict[str, Quoted] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._jobs: dict[str, _Job] = {}

    def of_event(self, event: Event, now_us: int) -> Iterator[str]:
        """What is broken by something that a customer or the journal was told."""
        match event:
            case Put(content, begin_us):
                steps = [(content.rollout_percent, begin_us)]
                self._lists[content.version] = _List(content, (begin_us, len(self._lists)), steps)
            case RolledOut(version, step):
                self._lists[version].steps.append((step.percent, step.start_time_us))
            case Withdrawn(version):
                self._lists[version].withdrawn = True
            case Quoted():
                self._quotes[event.quote_id] = event
                yield from self._of_list(event.payer_id, event.version, now_us)
                yield from self._of_amounts(event, event.batch, event.instant, now_us)
            case Submitted():
                yield from self._of_submission(event, now_us)
            case Answered(uid):
                self._jobs[uid].answered = True
            case FellBack(uid):
                self._jobs[uid].price = self._jobs[uid].fallback_price

    def _of_list(self, payer_id: str, version: str, now_us: int) -> Iterator[str]:
        """The list is in force, and the payer's: never an older one than before, nor one that it was left out of."""
        found, before = self._lists[version], self._last.get(payer_id, (0, 0))
        if found.withdrawn or now_us < found.begin_us:
            yield f"{payer_id} pays by {version}, which is not in force"
        for_all = max(each.place for each in self._lists.values() if each.is_for_all(now_us))
        if found.place < max(before, for_all):
            newer = next(name for name, each in self._lists.items() if each.place == max(before, for_all))
            yield f"{payer_id} pays by {version} although {newer} is in force for it"
        if found.left_out.get(payer_id) == found.steps_at(now_us):
            yield f"{payer_id} pays by {version}, which it was left out of, and which has not grown since"
        self._last[payer_id] = found.place
        for each in self._lists.values():
            if each.place > found.place and each.begin_us <= now_us and not each.withdrawn:
                each.left_out[payer_id] = each.steps_at(now_us)

    def _of_amounts(self, event: Quoted | Submitted, batch: int, instant: int, now_us: int) -> Iterator[str]:
        content = self._lists[event.version].content
        for lane, price in ((Lane.BATCH, batch), (Lane.INSTANT, instant)):
            declared = _price(content, lane, event.tiers, now_us)
            if price != declared:
                yield f"{event.payer_id} pays {price} for {lane.value}, and {event.version} says {declared}"

    def _of_submission(self, event: Submitted, now_us: int) -> Iterator[str]:
        quoted = self._quotes.get(event.quote_id)
        offered = None if quoted is None else quoted.batch if event.lane == Lane.BATCH else quoted.instant
        theirs = quoted is not None and (quoted.payer_id, quoted.tiers) == (event.payer_id, event.tiers)
        if (
            theirs
            and quoted
            and now_us < quoted.expire_us
            and (event.price, event.version) != (offered, quoted.version)
        ):
            yield f"{event.quote_id} of {offered} by {quoted.version} was not kept in its time"
        if event.price is None:
            return
        if quoted is not None and offered is not None and (event.price > offered or event.version != quoted.version):
            yield f"{event.payer_id} pays {event.price} by {event.version} for a quote of {offered} by {quoted.version}"
        yield from self._of_list(event.payer_id, event.version, now_us)
        content = self._lists[event.version].content
        batch, instant = (_price(content, lane, event.tiers, now_us) for lane in (Lane.BATCH, Lane.INSTANT))
        declared = batch if event.lane == Lane.BATCH else instant
        if event.price != declared:
            yield f"{event.payer_id} pays {event.price} for {event.lane}, and {event.version} says {declared}"
        self._jobs[event.uid] = _Job(event.price, min(batch, event.price), event.version)

    def of_row(self, entry: Entry) -> Iterator[str]:
        """What is broken by a row about a job's tokens: it holds and pays what its version said, and for an answer."""
        job = self._jobs.get(entry.reservation_id)
        if job is None:
            return
        if entry.kind == "reserve" and (entry.held_change, entry.facts["price_version"]) != (job.price, job.version):
            yield f"{entry.held_change} were held for {entry.reservation_id}, which costs {job.price} by {job.version}"
        if entry.kind == "commit" and not job.answered:
            yield f"{entry.reservation_id} paid without an answer"
        if entry.kind == "commit" and -entry.balance_change != job.price:
            yield f"{entry.reservation_id} paid {-entry.balance_change}, and costs {job.price} by {job.version}"


def _price(content: Content, lane: Lane, tiers: frozenset[str], now_us: int) -> int:
    """The cheapest row that holds for these tiers at this hour."""
    clock = datetime.fromtimestamp(now_us / 1_000_000, UTC).astimezone(ZoneInfo(content.time_zone))
    minute = clock.hour * 60 + clock.minute
    fitting = []
    for row in content.rows:
        start, end = (row.hours.start_minute, row.hours.end_minute) if row.hours else (0, 24 * 60)
        within = start <= minute < end if start < end else minute >= start or minute < end
        if row.lane is lane and within and (not row.tier or row.tier in tiers):
            fitting.append(row.amount)
    return min(fitting)
