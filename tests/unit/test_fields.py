"""services.chassis.fields"""

import pytest
from google.protobuf.duration_pb2 import Duration

from services.chassis.errors import InvalidField
from services.chassis.fields import AMOUNT_MAX, VIOLATIONS_MAX, Checks


def problems(check):
    """What `check`, given fresh Checks, complains about."""
    checks = Checks()
    check(checks)
    return [violation.problem for violation in checks.violations]


@pytest.mark.parametrize("value", ["a", "0198-uuid", "job:1.2_3", "A" * 128])
def test_an_id_of_the_pattern_passes(value):
    assert problems(lambda checks: checks.id("id", value)) == []


@pytest.mark.parametrize("value", ["", "@issue", "a b", "a\n", "é", "A" * 129, "a\0", "-a"])
def test_any_other_id_is_refused(value):
    assert len(problems(lambda checks: checks.id("id", value))) == 1


def test_an_optional_id_may_be_absent_but_not_wrong():
    assert problems(lambda checks: checks.optional_id("id", "")) == []
    assert len(problems(lambda checks: checks.optional_id("id", "@"))) == 1


@pytest.mark.parametrize(("value", "count"), [("", 1), ("a", 0), ("aaaa", 1), ("a\0", 1)])
def test_text_has_bounds_and_no_nul(value, count):
    assert len(problems(lambda checks: checks.text("text", value, 3, min_chars=1))) == count


@pytest.mark.parametrize(("value", "count"), [(0, 1), (1, 0), (AMOUNT_MAX, 0), (AMOUNT_MAX + 1, 1), (-1, 1)])
def test_an_amount_is_1_to_10_to_the_15(value, count):
    assert len(problems(lambda checks: checks.amount("amount", value))) == count


@pytest.mark.parametrize(("items", "count"), [(0, 1), (1, 0), (2, 0), (3, 1)])
def test_a_list_has_bounds(items, count):
    assert len(problems(lambda checks: checks.count("items", [1] * items, 2))) == count


def test_an_enum_must_be_chosen():
    assert problems(lambda checks: checks.choice("lane", 0, "lane")) == ["must name a lane"]


@pytest.mark.parametrize(
    ("duration", "expected", "count"),
    [
        (Duration(seconds=1, nanos=500_000), 1_000_500, 0),
        (Duration(), 0, 1),
        (Duration(seconds=11), 11_000_000, 1),
        (Duration(seconds=2**62), 0, 1),
        (Duration(seconds=5, nanos=2_000_000_000), 0, 1),
    ],
)
def test_a_duration_has_bounds_and_becomes_microseconds(duration, expected, count):
    checks = Checks()

    assert checks.duration_us("hold", duration, 1, 10) == expected
    assert len(checks.violations) == count


def test_all_broken_fields_are_told_at_once_with_their_place():
    checks = Checks("items[3].")
    checks.id("id", "")
    checks.amount("amount", 0)

    with pytest.raises(InvalidField) as caught:
        checks.done()

    assert [violation.field for violation in caught.value.violations] == ["items[3].id", "items[3].amount"]


def test_values_are_cut_and_their_number_is_bounded():
    checks = Checks()
    for _ in range(VIOLATIONS_MAX + 5):
        checks.id("id", "@" * 500)

    assert len(checks.violations) == VIOLATIONS_MAX
    assert {len(violation.value) for violation in checks.violations} == {64}


def test_a_sound_request_passes():
    Checks().done()
