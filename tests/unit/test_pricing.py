"""What a job costs: whose list is in force when, and which of its rows counts."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher.errors import NoPriceInForce, PriceChanged
from services.batcher.job import Lane
from services.batcher.price_list import Content, Hours, PriceList, PriceRow, Rollout, problems, standing
from services.batcher.pricing import (
    MINUTE_US,
    Prices,
    Terms,
    amount_of,
    base_of,
    in_force,
    minute_at,
    pinned,
    prices_of,
    quote,
)
from tests.batcher_jobs import new_job

NOBODY: frozenset[str] = frozenset()
PLAIN = (PriceRow(Lane.BATCH, 1), PriceRow(Lane.INSTANT, 5))
NIGHT = Hours(22 * 60, 6 * 60)
DISCOUNTS = (
    PriceRow(Lane.BATCH, 10),
    PriceRow(Lane.BATCH, 8, tier="gold"),
    PriceRow(Lane.BATCH, 6, hours=NIGHT),
    PriceRow(Lane.BATCH, 20, model="big"),
    PriceRow(Lane.BATCH, 15, model="big", hours=NIGHT),
    PriceRow(Lane.INSTANT, 50),
)


def price_list(version, effective_us=0, rows=PLAIN, zone="UTC", rollouts=((100, None),), put=0, withdrawn_us=0):
    """A list as it is kept; a roll-out without a time begins with the list."""
    steps = tuple(Rollout(percent, effective_us if time is None else time) for percent, time in rollouts)
    content = Content(version, 0, zone, tuple(rows), steps[0].percent)
    return PriceList(content, ZoneInfo(zone), effective_us, 0, withdrawn_us, "admin", put, put, steps)


def utc_us(*parts):
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1_000_000


def test_the_list_that_came_into_effect_last_counts():
    lists = [price_list("1"), price_list("2", 100, [PriceRow(Lane.BATCH, 2), PriceRow(Lane.INSTANT, 7)])]

    assert prices_of(lists, "alice", "m", NOBODY, 99) == Prices("1", 1, 5)
    assert prices_of(lists, "alice", "m", NOBODY, 100) == Prices("2", 2, 7)
    assert prices_of(lists[::-1], "alice", "m", NOBODY, 100) == Prices("2", 2, 7)


def test_of_two_lists_of_one_time_the_one_that_was_put_later_counts():
    lists = [price_list("b", 5, put=1), price_list("a", 5, put=2)]

    assert prices_of(lists, "alice", "m", NOBODY, 5).version == "a"


def test_a_withdrawn_list_and_one_of_the_future_price_nothing():
    withdrawn = price_list("2", 100, withdrawn_us=50)

    assert prices_of([price_list("1"), withdrawn], "alice", "m", NOBODY, 200).version == "1"
    with pytest.raises(NoPriceInForce):
        in_force([withdrawn, price_list("3", 300)], "alice", 200)


@pytest.mark.parametrize(
    ("model", "tiers", "minute", "amount"),
    [
        ("m", NOBODY, 12 * 60, 10),
        ("m", {"gold"}, 12 * 60, 8),
        ("m", {"silver"}, 12 * 60, 10),
        ("m", NOBODY, 22 * 60, 6),
        ("m", {"gold"}, 5 * 60 + 59, 6),
        ("m", {"gold"}, 6 * 60, 8),
        ("big", {"gold"}, 12 * 60, 20),
        ("big", NOBODY, 0, 15),
    ],
)
def test_the_models_own_rows_count_and_of_them_the_cheapest_that_applies(model, tiers, minute, amount):
    assert amount_of(DISCOUNTS, Lane.BATCH, model, frozenset(tiers), minute) == amount


def test_hours_are_read_by_the_clocks_of_the_lists_zone_also_on_the_days_when_they_change():
    """In Berlin 02:30 came twice on 25 October 2026, an hour apart; on 29 March it did not come at all."""
    berlin = ZoneInfo("Europe/Berlin")

    assert minute_at(utc_us(2026, 7, 1, 12), berlin) == 14 * 60
    assert minute_at(utc_us(2026, 1, 1, 12), berlin) == 13 * 60
    assert [minute_at(utc_us(2026, 10, 25, hour, 30), berlin) for hour in (0, 1)] == [150, 150]
    assert [minute_at(utc_us(2026, 3, 29, 0, 59), berlin), minute_at(utc_us(2026, 3, 29, 1), berlin)] == [119, 180]


def test_a_quote_holds_for_the_notice_and_ends_where_the_price_is_known_to_change():
    lists = [price_list("1"), price_list("2", 10 * MINUTE_US, [PriceRow(Lane.BATCH, 2), PriceRow(Lane.INSTANT, 5)])]

    assert quote(lists, "alice", "m", NOBODY, 0, MINUTE_US).expire_time_us == MINUTE_US
    assert quote(lists, "alice", "m", NOBODY, 9 * MINUTE_US + 1, MINUTE_US).expire_time_us == 10 * MINUTE_US
    assert quote(lists, "alice", "m", NOBODY, 10 * MINUTE_US, MINUTE_US) == (
        Prices("2", 2, 5),
        10 * MINUTE_US,
        11 * MINUTE_US,
    )
    assert quote(lists, "alice", "m", NOBODY, 5, 0).expire_time_us == 5


def test_a_quote_ends_with_the_hours_that_it_was_made_in():
    lists = [price_list("1", rows=DISCOUNTS, zone="Europe/Berlin")]
    asked_us = utc_us(2026, 7, 1, 3, 59, 30)
    quoted = quote(lists, "alice", "m", NOBODY, asked_us, 5 * MINUTE_US)

    assert (quoted.prices.batch, quoted.expire_time_us) == (6, utc_us(2026, 7, 1, 4))
    assert quote(lists, "alice", "m", NOBODY, asked_us + MINUTE_US, 5 * MINUTE_US).prices.batch == 10


def test_a_job_pins_the_price_of_its_lane_and_a_fall_back_by_the_same_list_never_more_than_was_held():
    dear = [PriceRow(Lane.BATCH, 9), PriceRow(Lane.INSTANT, 5)]
    job = new_job("a", lane=Lane.INSTANT).job
    fallen = pinned(job, [price_list("1")], Terms(falls_back=True), 0)

    assert (fallen.price, fallen.price_version, fallen.fallback_price) == (5, "1", 1)
    assert pinned(job, [price_list("1")], Terms(), 0).fallback_price == 0
    assert pinned(job, [price_list("1", rows=dear)], Terms(falls_back=True), 0).fallback_price == 5


def test_it_is_the_payer_whose_list_counts():
    (trial,) = [each for each in map(str, range(100)) if standing(each, "team") < 1 <= standing(each, "alice")][:1]
    lists = [price_list("1"), price_list(trial, rollouts=((1, None),), put=1)]
    job = new_job("a").job

    assert pinned(job, lists, Terms(), 0).price_version == "1"
    assert pinned(job._replace(payer_account_id="team"), lists, Terms(), 0).price_version == trial


@pytest.mark.parametrize(
    ("terms", "metadata"),
    [
        (Terms(max_price=4), {"price": "5", "price_version": "2", "max_price": "4"}),
        (Terms(price_version="1"), {"price": "5", "price_version": "2", "expected_version": "1"}),
        (
            Terms(price_version="1", max_price=5),
            {"price": "5", "price_version": "2", "max_price": "5", "expected_version": "1"},
        ),
    ],
)
def test_a_job_that_would_cost_more_or_by_another_list_is_refused_with_the_numbers(terms, metadata):
    lists = [price_list("1"), price_list("2", 100)]

    with pytest.raises(PriceChanged) as caught:
        pinned(new_job("a", lane=Lane.INSTANT).job, lists, terms, 100)
    assert caught.value.metadata == metadata


def test_terms_that_are_met_are_no_obstacle():
    job = new_job("a", lane=Lane.INSTANT).job

    assert pinned(job, [price_list("1")], Terms(price_version="1", max_price=5), 0).price == 5


accounts = st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True)


@given(account=accounts, version=accounts, small=st.integers(1, 100), large=st.integers(1, 100))
def test_whoever_is_reached_at_10_percent_is_at_20_and_everybody_at_100(account, version, small, large):
    small, large = sorted((small, large))
    lists = [price_list("base"), price_list(version + "!", rollouts=((small, 0), (large, 10), (100, 20)), put=1)]
    seen = [in_force(lists, account, time_us).content.version == version + "!" for time_us in (0, 10, 20)]

    assert seen == sorted(seen)
    assert seen == [standing(version + "!", account) < percent for percent in (small, large, 100)]


def test_a_roll_out_reaches_about_as_many_accounts_as_it_says_and_another_version_others():
    places = [standing("trial", f"account-{number}") for number in range(10_000)]
    others = [standing("other", f"account-{number}") for number in range(10_000)]
    both = sum(a < 10 and b < 10 for a, b in zip(places, others, strict=True))

    assert 900 < sum(place < 10 for place in places) < 1_100
    assert 60 < both < 140


times = st.integers(0, 1_000)


@st.composite
def rows_of_lists(draw):
    rows = []
    for lane in Lane:
        for model in ("", "big"):
            plain = draw(st.integers(3, 30))
            rows.append(PriceRow(lane, plain, model))
            for tier, hours in (
                (draw(st.sampled_from(["", "gold"])), Hours(*draw(st.permutations((0, 600, 1200)))[:2])),
            ):
                rows.append(PriceRow(lane, draw(st.integers(1, plain - 1)), model, tier, hours))
    return tuple(rows)


@given(
    rows=rows_of_lists(),
    lane=st.sampled_from(Lane),
    model=st.sampled_from(["m", "big"]),
    minute=st.integers(0, 1439),
)
def test_a_tier_never_costs_more_and_nothing_costs_more_than_the_plain_price(rows, lane, model, minute):
    plain = next(row.amount for row in rows if row.is_plain and (row.lane, row.model or "m") == (lane, model))
    gold = amount_of(rows, lane, model, frozenset({"gold"}), minute)

    assert list(problems(Content("1", 0, "UTC", rows))) == []
    assert gold <= amount_of(rows, lane, model, NOBODY, minute) <= plain


changes = st.lists(
    st.tuples(st.sampled_from(["put", "extend", "withdraw", "quote"]), st.integers(0, 40), st.integers(1, 100)),
    max_size=25,
)


@given(changes=changes, notice_us=st.integers(0, 50), account=accounts)
def test_what_was_quoted_is_kept_and_the_past_never_changes_whatever_is_changed_meanwhile(changes, notice_us, account):
    """Time goes on by the number of each step; a change begins after its notice, and is taken back before it begins."""
    lists, quotes, now_us = [price_list("0")], [], 0
    past = {}
    for place, (kind, pause_us, percent) in enumerate(changes, 1):
        for time_us in range(now_us, now_us + pause_us):
            past[time_us] = prices_of(lists, account, "m", NOBODY, time_us)
        now_us += pause_us
        if kind == "put":
            rows = [PriceRow(Lane.BATCH, place), PriceRow(Lane.INSTANT, place)]
            lists.append(
                price_list(str(place), now_us + notice_us + pause_us, rows, rollouts=((percent, None),), put=place)
            )
        elif kind == "quote":
            quotes.append(quote(lists, account, "m", NOBODY, now_us, notice_us))
        elif kind == "extend":
            lists[-1] = _extended(lists[-1], percent, now_us + notice_us)
        elif now_us < lists[-1].effective_time_us:
            lists[-1] = lists[-1]._replace(withdraw_time_us=max(now_us, 1))

    for prices, from_us, until_us in quotes:
        assert {prices_of(lists, account, "m", NOBODY, time_us) for time_us in range(from_us, until_us)} <= {prices}
    assert past == {time_us: prices_of(lists, account, "m", NOBODY, time_us) for time_us in past}
    base = base_of(lists, now_us)
    alive = [each for each in lists if each.place >= base.place]
    assert in_force(alive, account, now_us) == in_force(lists, account, now_us)


def _extended(extended, percent, time_us):
    if percent <= extended.rollouts[-1].percent:
        return extended
    step = Rollout(percent, max(time_us, extended.effective_time_us))
    return extended._replace(rollouts=(*extended.rollouts, step))
