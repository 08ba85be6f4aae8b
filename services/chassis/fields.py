"""The checks of request fields that both services share: all broken fields of a request are told at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.errors import VIOLATION_VALUE_MAX, InvalidField, Violation

ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
AMOUNT_MAX: Final = 10**15
VIOLATIONS_MAX: Final = 20

_DURATION_SECONDS_MAX: Final = 315_576_000_000
_TIMESTAMP_SECONDS_MAX: Final = 253_402_300_799


class Checks:
    """Collects what is wrong with one request; each check gives its value back, so that it reads as an assignment.

        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        amount = checks.amount("amount", request.amount)
        checks.done()

    `prefix` names the place of nested fields: Checks("items[3].") calls its fields items[3].amount.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.violations: list[Violation] = []

    def fail(self, field: str, value: object, problem: str) -> None:
        """Note that `field` is wrong; beyond 20 the list would only be noise."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(self.prefix + field, str(value)[:VIOLATION_VALUE_MAX], problem))

    def done(self) -> None:
        """Raise InvalidField if anything was wrong."""
        if self.violations:
            raise InvalidField(self.violations)

    def id(self, field: str, value: str) -> str:
        """An id that a caller chose."""
        if ID_PATTERN.fullmatch(value) is None:
            self.fail(field, value, f"must match {ID_PATTERN.pattern}" if value else "is required")
        return value

    def optional_id(self, field: str, value: str) -> str:
        """An id, or nothing."""
        return self.id(field, value) if value else value

    def text(self, field: str, value: str, max_chars: int, min_chars: int = 0) -> str:
        """Free text without NUL: PostgreSQL refuses it and SQLite's JSON functions cut at it."""
        if len(value) > max_chars:
            self.fail(field, value, f"must have at most {max_chars} characters and has {len(value)}")
        elif len(value) < min_chars:
            self.fail(field, value, f"must have at least {min_chars} characters" if value else "is required")
        elif "\0" in value:
            self.fail(field, value, "must not contain NUL")
        return value

    def amount(self, field: str, value: int, minimum: int = 1) -> int:
        """An amount in the asset's smallest unit."""
        return self.number(field, value, minimum, AMOUNT_MAX)

    def number(self, field: str, value: int, minimum: int, maximum: int) -> int:
        """A whole number within bounds, both included."""
        if not minimum <= value <= maximum:
            self.fail(field, value, f"must be {minimum} to {maximum}")
        return value

    def choice(self, field: str, value: int, name: str) -> int:
        """An enum's value; 0 is the UNSPECIFIED one of every enum."""
        if value == 0:
            self.fail(field, value, f"must name a {name}")
        return value

    def count(self, field: str, values: Sequence[object], max_items: int, min_items: int = 1) -> None:
        """A list within bounds, both included."""
        if not min_items <= len(values) <= max_items:
            self.fail(field, f"{len(values)} items", f"must have {min_items} to {max_items} items")

    def duration_us(self, field: str, value: Duration, min_seconds: float, max_seconds: float) -> int:
        """A duration within bounds, both included, in microseconds; 0 if it is none at all."""
        if abs(value.seconds) > _DURATION_SECONDS_MAX or not -1_000_000_000 < value.nanos < 1_000_000_000:
            self.fail(field, f"{value.seconds}s {value.nanos}ns", "is not a duration")
            return 0
        microseconds = value.seconds * 1_000_000 + value.nanos // 1_000
        if not min_seconds <= microseconds / 1_000_000 <= max_seconds:
            # No `g`: 45 days would be said as 3.888e+06s.
            said = f"{Decimal(microseconds) / 1_000_000:f}s"
            self.fail(field, said, f"must be {Decimal(str(min_seconds)):f}s to {Decimal(str(max_seconds)):f}s")
        return microseconds

    def time_us(self, field: str, value: Timestamp | None) -> int:
        """An instant of the years 1970 to 9999, in microseconds since 1970; 0 if it is none at all."""
        if value is None:
            self.fail(field, "", "is required")
            return 0
        if not 0 <= value.seconds <= _TIMESTAMP_SECONDS_MAX or not 0 <= value.nanos < 1_000_000_000:
            self.fail(field, f"{value.seconds}s {value.nanos}ns", "must be an instant of the years 1970 to 9999")
            return 0
        return value.seconds * 1_000_000 + value.nanos // 1_000
