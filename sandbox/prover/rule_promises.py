"""What versions of the earning rules declare, held against the rows that name them. Written from the declarations.

Who is in a trial is never computed here, only that it stays so: an account that was in a trial at some share of all
accounts is in at every larger one of the same cohort, and what everybody has is not left behind.
"""

from collections.abc import Iterator
from typing import NamedTuple

from services.wallet.economy import EarningRules, read_rules
from services.wallet.holdings import POINT, Entry


class _Version(NamedTuple):
    """A version, its place among all, and for whom it is."""

    name: str
    rules: EarningRules
    place: tuple[int, int]
    percent: int
    cohort: str


class RulePromises:
    """Watches the versions of one world."""

    def __init__(self, first: EarningRules) -> None:
        self._versions = {"": _Version("", first, (0, 0), 100, "")}
        self._inside: dict[tuple[str, str], int] = {}
        self._outside: dict[tuple[str, str], int] = {}

    def of_row(self, entry: Entry, now_us: int) -> Iterator[str]:
        """What one row breaks."""
        facts = entry.facts
        if entry.kind == "rules":
            place = facts["effective_time_us"], len(self._versions)
            rules = read_rules(facts["document"])
            self._versions[entry.key] = _Version(entry.key, rules, place, facts["percent"], facts["cohort"])
        elif entry.kind == "earn" or (entry.kind == "convert" and entry.asset != POINT):
            yield from self._of_version(entry.account_id, self._versions[facts.get("rules", "")], now_us)

    def _of_version(self, account_id: str, version: _Version, now_us: int) -> Iterator[str]:
        if version.place[0] > now_us:
            yield f"{account_id} earned by {version.name!r} before it began"
        key = account_id, version.cohort
        self._inside[key] = min(version.percent, self._inside.get(key, 100))
        for each in self._begun(now_us):
            if each.place <= version.place:
                continue
            if each.percent == 100:
                yield f"{account_id} earned by {version.name!r} although {each.name!r} is for all"
            other = account_id, each.cohort
            self._outside[other] = max(each.percent, self._outside.get(other, 0))
        for other, percent in self._outside.items():
            if other[0] == account_id and percent >= self._inside.get(other, 101):
                yield f"{account_id} is in {self._inside[other]} % of {other[1]!r}, and was left out of {percent} %"

    def _begun(self, now_us: int) -> list[_Version]:
        return [each for each in self._versions.values() if each.place[0] <= now_us]

    def named(self, entry: Entry) -> EarningRules:
        """The rules by which a row says that something was earned."""
        return self._versions[entry.facts.get("rules", "")].rules

    def most(self, name: str, now_us: int) -> int:
        """The largest number of a rule that any version has: a row that names none is held against this."""
        return max(int(getattr(each.rules, name)) for each in self._begun(now_us))

    def least(self, name: str, now_us: int) -> int:
        """The smallest, likewise."""
        return min(int(getattr(each.rules, name)) for each in self._begun(now_us))
