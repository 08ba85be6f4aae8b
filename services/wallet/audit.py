"""What an audit of the ledger looks for, and how it says what it found.

The journal is read from its first row; each row must follow from those before it. What it comes to is then held against
what is stored. A row of a projection carries the revision that last touched it, so that rows which have changed since
the audited revision are known, and left to the next audit.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from services.wallet.holdings import Entry, State
from services.wallet.journal_entry import apply

REMEDY = (
    "stop every wallet that uses this database, keep a copy of it, and restore the newest backup that passes this "
    "check; "
    "see 'When the ledger is damaged' in the README"
)


class FaultKind(IntEnum):
    """What can be broken; the numbers are those of the proto."""

    DATABASE = 1
    JOURNAL = 2
    BALANCE = 3
    HOLD = 4
    LOT = 5
    KEY = 6
    SUM = 7


class Fault(NamedTuple):
    """Something that is not as it must be. `revision` is where in the journal to look; 0 for nowhere."""

    kind: FaultKind
    subject: str
    revision: int
    expected: str
    found: str
    problem: str

    @property
    def message(self) -> str:
        """A sentence for people: what is wrong, and what to do."""
        return f"{self.problem}: {REMEDY}"


class Progress(NamedTuple):
    """How many rows of a step are done; `total` is 0 when nobody knows."""

    step: str
    done: int
    total: int


class Report(NamedTuple):
    """How an audit ended. `counts` says how many rows of each projection were compared."""

    revision: int
    hash: str
    fault: Fault | None
    counts: Mapping[str, int]


class Replayed(NamedTuple):
    """One row of the journal, read back."""

    revision: int
    time_us: int
    entry: Entry


def replay(state: State, rows: Iterable[Replayed]) -> Fault | None:
    """Applies rows to the state; the first that does not follow from it is a fault, and the state is then of no use."""
    for revision, time_us, entry in rows:
        account = state.accounts.get((entry.account_id, entry.asset))
        previous = account.revision if account else 0
        if entry.account_id and entry.previous != previous:
            problem = f"revision {revision} follows revision {entry.previous} of account {entry.account_id!r}"
            return Fault(FaultKind.JOURNAL, entry.account_id, revision, str(previous), str(entry.previous), problem)
        if entry.kind == "open" and account is not None:
            problem = f"revision {revision} opens account {entry.account_id!r} again"
            return Fault(FaultKind.JOURNAL, entry.account_id, revision, "", entry.kind, problem)
        state.revision = revision - 1
        try:
            apply(state, entry, time_us)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"revision {revision} ({entry.kind}) does not follow from the rows before it: {error}"
            return Fault(FaultKind.JOURNAL, entry.account_id, revision, "", entry.kind, problem)
        state.entries.clear()
    return None


def difference(
    kind: FaultKind, subject: str, columns: Sequence[str], expected: Sequence[Any] | None, found: Sequence[Any] | None
) -> Fault:
    """A row that is stored otherwise than the journal says; None where there is no row."""
    names = [name for place, name in enumerate(columns) if expected and found and expected[place] != found[place]]
    revision = max((row[columns.index("revision")] for row in (expected, found) if row), default=0)
    what = f"{kind.name.lower()} {subject!r}"
    if expected is None:
        return Fault(kind, subject, revision, "nothing", _said(columns, found, columns), f"no journal row made {what}")
    if found is None:
        return Fault(kind, subject, revision, _said(columns, expected, columns), "nothing", f"{what} is missing")
    problem = f"{what} is not what the journal says"
    return Fault(kind, subject, revision, _said(columns, expected, names), _said(columns, found, names), problem)


def _said(columns: Sequence[str], row: Sequence[Any] | None, names: Sequence[str]) -> str:
    return ", ".join(f"{name}={row[columns.index(name)]!r}" for name in names) if row else "nothing"
