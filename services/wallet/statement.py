"""An account's statement as text: a line for each row of its history, as JSON or CSV, with the same columns.

In CSV (RFC 4180, UTF-8, with a header) a text that begins with one of = + - @ ' or with a tab or line break has an
apostrophe put in front: a spreadsheet would take it for a formula, and a caller chooses the reference. Whoever reads
the file takes one leading apostrophe away. Numbers stay as they are, negative ones too.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

FORMATS: Final = ("jsonl", "csv")

_GUARDED: Final = ("=", "+", "-", "@", "'", "\t", "\r", "\n")
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)")
_json: Final = json.JSONEncoder(ensure_ascii=False).encode
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Line(NamedTuple):
    """One row of the history; the fields are the columns, in order."""

    revision: int
    time: str
    kind: str
    balance_change: int
    held_change: int
    balance: int
    """Afterwards, like held."""
    held: int
    counterparty: str
    actor: str
    reservation_id: str
    created_by: str
    key: str
    reference: str
    lot_id: int | None
    peer_account_id: str
    offer_id: str


def heading(form: str) -> str:
    """What stands before the first line."""
    return _csv([Line._fields]) if form == "csv" else ""


def text_of(lines: Iterable[Line], form: str) -> str:
    """The lines of a page in one of FORMATS, the last one ended too."""
    if form == "csv":
        return _csv([_guarded(cell) for cell in line] for line in lines)
    return "".join(f"{_json(dict(zip(Line._fields, line, strict=True)))}\n" for line in lines)


def time_of(time_us: int) -> str:
    """Microseconds since the epoch as RFC 3339 in UTC, always with six digits, so that texts sort like times."""
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_time(text: str) -> int:
    """The microseconds since the epoch of an RFC 3339 time; raises ValueError for anything else."""
    if _RFC3339.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no time such as 2026-11-25T00:00:00Z")
    return (datetime.fromisoformat(text.upper()) - _EPOCH) // timedelta(microseconds=1)


def _guarded(cell: str | int | None) -> str | int | None:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_GUARDED) else cell


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()
