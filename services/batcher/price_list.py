"""A price list: what it says, what is wrong with one, how it is written down, and whom it has reached. Pure.

A row prices one lane. It may name a model, a tier of customers, and hours of the day; one that names no tier and no
hours is the plain price, and each lane has one. Which row counts for a job is decided in `pricing`.

A list reaches accounts by percent: an account's place among a hundred is a hash of the list's version and the account,
so that it never changes while the list grows from 10 to 20 percent and to all.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo
from typing import Final, NamedTuple

from services.batcher.job import Lane

AMOUNT_MAX: Final = 10**15
ROWS_MAX: Final = 200
NAME_CHARS_MAX: Final = 128
TIER_CHARS_MAX: Final = 64
MINUTES_OF_HOUR: Final = 60

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_CLOCK: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


class Hours(NamedTuple):
    """A part of each day by the list's clocks, in minutes since midnight. The end is outside; one before the start is
    on the next day.
    """

    start_minute: int
    end_minute: int

    def contain(self, minute: int) -> bool:
        """Whether a minute of the day is within."""
        if self.start_minute < self.end_minute:
            return self.start_minute <= minute < self.end_minute
        return minute >= self.start_minute or minute < self.end_minute


class PriceRow(NamedTuple):
    """What a lane costs, in the asset's smallest unit. Empty and None: whichever model, tier, hour."""

    lane: Lane
    amount: int
    model: str = ""
    tier: str = ""
    hours: Hours | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it holds for every tier at every hour."""
        return not self.tier and self.hours is None


class Content(NamedTuple):
    """What somebody asked to be a price list: what its version stands for, for ever.

    effective_time_us: 0 for as soon as may be. time_zone: an IANA name, whose clocks its hours are read by.
    rollout_percent: for how many of a hundred accounts it begins.
    """

    version: str
    effective_time_us: int
    time_zone: str
    rows: tuple[PriceRow, ...]
    rollout_percent: int = 100


class Rollout(NamedTuple):
    """From when on a list is in force for so many of a hundred accounts."""

    percent: int
    start_time_us: int


class PriceList(NamedTuple):
    """A list as it is kept. withdraw_time_us: 0 unless it was withdrawn before it began. rollouts: they grow."""

    content: Content
    zone: tzinfo
    effective_time_us: int
    create_time_us: int
    withdraw_time_us: int
    actor: str
    put_revision: int
    last_revision: int
    rollouts: tuple[Rollout, ...]

    @property
    def place(self) -> tuple[int, int]:
        """Its place among all lists: the later one stands before the earlier."""
        return self.effective_time_us, self.put_revision

    def percent_at(self, now_us: int) -> int:
        """For how many of a hundred accounts it is in force; 0 before it is, and when it was withdrawn."""
        if self.withdraw_time_us or now_us < self.effective_time_us:
            return 0
        return max((step.percent for step in self.rollouts if step.start_time_us <= now_us), default=0)


class Problem(NamedTuple):
    """A field that breaks its rule, with its value."""

    field: str
    value: object
    problem: str


class Difference(NamedTuple):
    """The first field in which two contents differ."""

    field: str
    stored: object
    received: object


def standing(version: str, account_id: str) -> int:
    """An account's place among a hundred, 0 to 99, in the roll-out of a version."""
    digest = hashlib.sha256(f"{version}\0{account_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100


def problems(content: Content) -> Iterator[Problem]:
    """Everything that is wrong with a list, in the order of its fields."""
    if not _is_name(content.version, NAME_CHARS_MAX):
        yield Problem("version", content.version, f"must match {_NAME.pattern}, up to {NAME_CHARS_MAX} characters")
    if not 1 <= len(content.rows) <= ROWS_MAX:
        yield Problem("rows", f"{len(content.rows)} items", f"must have 1 to {ROWS_MAX} items")
    if not 1 <= content.rollout_percent <= 100:
        yield Problem("rollout_percent", content.rollout_percent, "must be 1 to 100")
    plain = {(row.lane, row.model): row.amount for row in content.rows if row.is_plain}
    for lane in Lane:
        if (lane, "") not in plain:
            yield Problem("rows", lane.value, "must hold a row of this lane without model, tier and hours")
    seen: set[tuple[object, ...]] = set()
    for place, row in enumerate(content.rows):
        key = (row.lane, row.model, row.tier, row.hours)
        yield from (found._replace(field=f"rows[{place}].{found.field}") for found in _row_problems(row, plain))
        if key in seen:
            yield Problem(
                f"rows[{place}]", row.lane.value, "must differ from the rows before it in more than the amount"
            )
        seen.add(key)


def _row_problems(row: PriceRow, plain: Mapping[tuple[Lane, str], int]) -> Iterator[Problem]:
    if not 1 <= row.amount <= AMOUNT_MAX:
        yield Problem("amount", row.amount, f"must be 1 to {AMOUNT_MAX}")
    if len(row.model) > NAME_CHARS_MAX or "\0" in row.model:
        yield Problem("model", row.model, f"must have at most {NAME_CHARS_MAX} characters, and no NUL")
    if row.tier and not _is_name(row.tier, TIER_CHARS_MAX):
        yield Problem("tier", row.tier, f"must match {_NAME.pattern}, up to {TIER_CHARS_MAX} characters")
    if row.hours and row.hours.start_minute == row.hours.end_minute:
        yield Problem("end", text_of(row.hours.end_minute), "must be another time than the start")
    if not row.is_plain:
        normal = plain.get((row.lane, row.model))
        if normal is None:
            yield Problem("model", row.model, "must also have a row of the same lane without tier and hours")
        elif row.amount >= normal:
            # A tier or an hour can only be cheaper, so that nobody pays more for having one.
            yield Problem("amount", row.amount, f"must be less than {normal}, the price without tier and hours")


def _is_name(text: str, chars_max: int) -> bool:
    return len(text) <= chars_max and _NAME.fullmatch(text) is not None


def minute_of(text: str) -> int:
    """The minute of the day that HH:MM names. ValueError: it names none."""
    found = _CLOCK.fullmatch(text)
    if found is None:
        raise ValueError(f"not a time of day as HH:MM: {text!r}")
    return int(found[1]) * MINUTES_OF_HOUR + int(found[2])


def text_of(minute: int) -> str:
    """A minute of the day as HH:MM."""
    return f"{minute // MINUTES_OF_HOUR:02}:{minute % MINUTES_OF_HOUR:02}"


def encode(content: Content) -> str:
    """The content as JSON, in ASCII."""
    return json.dumps(content._asdict(), separators=(",", ":"))


def decode(text: str) -> Content:
    """The content of a stored text."""
    fields = json.loads(text)
    rows = (
        PriceRow(Lane(lane), amount, model, tier, None if hours is None else Hours(*hours))
        for lane, amount, model, tier, hours in fields["rows"]
    )
    return Content(**{**fields, "rows": tuple(rows)})


def first_difference(stored: Content, received: Content) -> Difference | None:
    """Where two contents differ, or None."""
    for field, old, new in zip(Content._fields, stored, received, strict=True):
        if old == new:
            continue
        if field != "rows" or len(stored.rows) != len(received.rows):
            return Difference(field.removesuffix("_us"), _said(old), _said(new))
        return next(
            Difference(f"rows[{place}].{name}", _said(before), _said(after))
            for place, rows in enumerate(zip(stored.rows, received.rows, strict=True))
            for name, before, after in zip(PriceRow._fields, *rows, strict=True)
            if before != after
        )
    return None


def _said(value: object) -> object:
    if isinstance(value, Hours):
        return f"{text_of(value.start_minute)}-{text_of(value.end_minute)}"
    return f"{len(value)} rows" if isinstance(value, tuple) else value


def read_prices(document: Sequence[Mapping[str, object]]) -> tuple[Content, ...]:
    """Reads price lists as the configuration writes them.

    [{"version": "2", "effective_time_us": 0, "lanes": {"BATCH": 1, "INSTANT": 5}, "models": {"gpt-x": {"BATCH": 2}}}]
    ValueError: a lane that is not one or is left out, an amount that is not a positive whole number, a version twice.
    """
    contents = tuple(_read_list(entry) for entry in document)
    versions = [content.version for content in contents]
    if len(set(versions)) != len(versions):
        raise ValueError(f"a price list's version must be its own, and these are not: {versions}")
    for content in contents:
        for found in problems(content):
            raise ValueError(
                f"{found.field} of the price list {content.version!r} {found.problem}, not {found.value!r}"
            )
    return contents


def plain_list(version: str, amounts: Mapping[Lane, int]) -> Content:
    """A list of one price for each lane, for everybody and as soon as may be."""
    return Content(version, 0, "UTC", tuple(PriceRow(lane, amount) for lane, amount in amounts.items()))


def _read_list(entry: Mapping[str, object]) -> Content:
    models = entry.get("models", {})
    effective = entry.get("effective_time_us", 0)
    if not isinstance(models, Mapping) or not isinstance(effective, int) or effective < 0:
        raise ValueError(f"models must be an object and effective_time_us a whole number, in {dict(entry)}")
    rows = [*_read_amounts(entry.get("lanes", {}), "")]
    for model, amounts in models.items():
        rows += _read_amounts(amounts, str(model))
    return Content(str(entry.get("version", "")), effective, "UTC", tuple(rows))


def _read_amounts(amounts: object, model: str) -> Iterator[PriceRow]:
    if not isinstance(amounts, Mapping):
        raise ValueError(f"prices must be an object of lane and amount, not {amounts!r}")  # noqa: TRY004 - a mistake in a setting
    for lane, amount in amounts.items():
        if not isinstance(amount, int) or isinstance(amount, bool) or amount <= 0:
            raise ValueError(f"the price of {lane} must be a positive whole number, not {amount!r}")
        yield PriceRow(Lane(lane), amount, model)
