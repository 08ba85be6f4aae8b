"""The daily bonus and the streak at the edges of a calendar: midnight, leap days, changed clocks, missed days."""

from datetime import UTC, date, datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest

from services.wallet import ledger
from services.wallet.calendar_day import start_us
from services.wallet.commands import ClaimDaily, Convert, Moment, OpenAccount, Outcome, RecordActivity
from services.wallet.economy import Activity, EarningRules, Rules
from services.wallet.errors import DailyBonusClaimed, LimitReached, rfc3339
from services.wallet.holdings import TOKEN, State

BERLIN = ZoneInfo("Europe/Berlin")
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
RULES = Rules(
    welcome_bonus=0,
    earning=EarningRules(
        streak_bonuses={}, achievements={}, points_per_token=1, activities={"share": Activity(points=9, per_day=1)}
    ),
)


def us(*parts: int, zone: tzinfo = UTC) -> int:
    return round(datetime(*parts, tzinfo=zone).timestamp() * SECOND_US)  # type: ignore[misc,arg-type]


class Claimant:
    """An account, at the instants that a test chooses."""

    def __init__(self, zone: tzinfo = UTC) -> None:
        self.state, self.zone, self._claims = State(), zone, 0
        ledger.decide(self.state, OpenAccount("boss", "alice"), self._at(0))

    def _at(self, now_us: int) -> Moment:
        return Moment(now_us, RULES, self.zone)

    def claim(self, now_us: int, claim_id: str = "") -> Outcome:
        """Claims at an instant, under a key of its own unless one is named."""
        self._claims += 1
        command = ClaimDaily("app", "alice", claim_id or f"claim-{self._claims}")
        return ledger.decide(self.state, command, self._at(now_us))

    def streak(self, now_us: int) -> int:
        """Claims, and says how long the streak has become."""
        streak = self.claim(now_us).streak
        assert streak is not None
        return streak.days

    def resets_at(self, now_us: int) -> str:
        """When the refusal of a claim says that the next one is paid."""
        with pytest.raises(DailyBonusClaimed) as caught:
            self.claim(now_us)
        return str(caught.value.metadata["resets_at"])

    @property
    def balance(self) -> int:
        return self.state.accounts["alice", TOKEN].balance


def test_the_last_microsecond_of_a_day_and_the_first_of_the_next_are_two_bonuses() -> None:
    alice, midnight_us = Claimant(), us(2026, 11, 26)
    assert alice.streak(midnight_us - 1) == 1
    assert alice.resets_at(midnight_us - 1) == rfc3339(midnight_us)
    assert alice.streak(midnight_us) == 2
    assert alice.balance == 4


def test_a_claim_that_was_under_way_at_midnight_is_paid_once() -> None:
    """Its repeat after midnight is a repeat, and the new day's bonus is another claim's."""
    alice, midnight_us = Claimant(), us(2026, 11, 26)
    assert not alice.claim(midnight_us - 1, "in-flight").replayed
    assert alice.claim(midnight_us + 1, "in-flight").replayed
    assert alice.balance == 2
    assert not alice.claim(midnight_us + 2, "next").replayed
    assert alice.balance == 4


def test_a_claim_that_is_decided_after_midnight_is_of_the_new_day_whenever_it_was_sent() -> None:
    alice, midnight_us = Claimant(), us(2026, 11, 26)
    alice.claim(midnight_us, "sent-before")
    assert alice.resets_at(midnight_us + 1) == rfc3339(us(2026, 11, 27))


@pytest.mark.parametrize(
    "days", [((2028, 2, 28), (2028, 2, 29), (2028, 3, 1)), ((2027, 2, 28), (2027, 3, 1))], ids=["leap", "common"]
)
def test_a_leap_day_is_a_day_of_a_streak_and_where_there_is_none_nothing_is_missed(days) -> None:
    alice = Claimant()
    assert [alice.streak(us(*each, 12)) for each in days] == list(range(1, len(days) + 1))
    assert alice.state.streaks["alice"].grace_day == 0
    assert alice.balance == 2 * len(days)


def test_without_the_leap_day_a_streak_has_used_its_grace() -> None:
    alice = Claimant()
    assert [alice.streak(us(2028, *each, 12)) for each in ((2, 28), (3, 1))] == [1, 2]
    assert alice.state.streaks["alice"].grace_day == date(2028, 2, 29).toordinal()


@pytest.mark.parametrize(
    ("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25)], ids=["clocks-put-forward", "clocks-put-back"]
)
def test_a_day_on_which_clocks_change_has_one_bonus(day: tuple[int, int, int], hours: int) -> None:
    """Also in an hour that is shown twice; the refusal names the midnight that is so many hours away."""
    alice = Claimant(BERLIN)
    begins_us = us(*day, zone=BERLIN)
    assert alice.streak(begins_us) == 1
    for hour in range(1, hours):
        assert alice.resets_at(begins_us + hour * HOUR_US) == rfc3339(begins_us + hours * HOUR_US)
    assert alice.streak(begins_us + hours * HOUR_US) == 2


def test_the_operators_zone_says_which_day_it_is() -> None:
    """Half past eleven in the evening in UTC is the next day in Berlin; nobody's own zone has a part in it."""
    evening_us = us(2026, 11, 25, 23, 30)
    for zone, midnight_us in ((UTC, us(2026, 11, 26)), (BERLIN, us(2026, 11, 27, zone=BERLIN))):
        alice = Claimant(zone)
        alice.claim(evening_us)
        assert alice.resets_at(evening_us) == rfc3339(midnight_us)


def noon(day: int) -> int:
    return start_us(date(2026, 11, 1).toordinal() + day, UTC) + 12 * HOUR_US


@pytest.mark.parametrize(
    ("days", "streaks"),
    [
        pytest.param([0, 1, 3], [1, 2, 3], id="one missed day is forgiven and does not count"),
        pytest.param([0, 1, 4], [1, 2, 1], id="two in a row are not"),
        pytest.param([0, 2, 4], [1, 2, 1], id="nor is a second one soon after"),
        pytest.param([0, 2, 3, 4, 5, 6, 7, 9], [1, 2, 3, 4, 5, 6, 7, 8], id="but one a week later is"),
        pytest.param([0, 2, 3, 4, 5, 6, 8], [1, 2, 3, 4, 5, 6, 1], id="and one a day before that is not"),
        pytest.param([0, 3, 5], [1, 1, 2], id="what broke a streak used no grace"),
    ],
)
def test_a_streak_lives_over_one_missed_day_a_week(days: list[int], streaks: list[int]) -> None:
    alice = Claimant()
    assert [alice.streak(noon(day)) for day in days] == streaks


def test_what_is_limited_by_day_is_free_again_at_midnight_and_not_before() -> None:
    """Conversions and activities alike; the refusals say when."""
    alice, midnight_us = Claimant(BERLIN), us(2026, 10, 26, zone=BERLIN)
    share, convert = RecordActivity("app", "alice", "share", "share-1"), Convert("app", "alice", "convert-1", 5)

    def at(now_us: int) -> Moment:
        return Moment(now_us, RULES, BERLIN)

    for command in (share, convert):
        ledger.decide(alice.state, command, at(midnight_us - 25 * HOUR_US))
    more = (share._replace(activity_id="share-2"), convert._replace(conversion_id="convert-2", tokens=1))
    for command in more:
        with pytest.raises(LimitReached) as caught:
            ledger.decide(alice.state, command, at(midnight_us - 1))
        assert caught.value.metadata["resets_at"] == rfc3339(midnight_us)
    for command in more:
        ledger.decide(alice.state, command, at(midnight_us))
    assert alice.balance == 6
