"""Rings of thousands bring no more to one account than the rules declare, and a rule that is left out is found."""

import random
import re
from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from sandbox.prover.holes import HOLES
from sandbox.prover.ring_promises import RingPromises, pot
from sandbox.prover.rings import Ring, live_in, run, tell, watch
from sandbox.prover.search import operators_zone, told
from sandbox.prover.story import BEGIN_US
from sandbox.prover.world import World
from services.wallet.economy import EarningRules, Rules

RULES = Rules(earning=EarningRules())
EARNING = RULES.first_version
PAGE = (Path(__file__).parents[2] / "docs" / "economy.md").read_text()
SHORT = 200
"""Whoever gives away more than a day allows has got it of others, whose days are in the story too."""


@pytest.mark.parametrize(("users", "days", "zone"), [(2_000, 3, "UTC"), (150, 34, "Europe/Berlin")])
def test_no_ring_brings_more_to_one_account_than_is_declared(users, days, zone):
    came = run(RULES, users, days, 1, ZoneInfo(zone))

    again = f"WALLET_ECONOMY_ZONE={zone} python -m sandbox.prover rings --seed 1 --users {users} --days {days}"
    assert came.finding is None, f"{told(came.finding)}\n{again}"
    assert came.accounts > 0.9 * users


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_no_ring_of_thousands_does_in_forty_days(seed):
    came = run(RULES, 2_000, 40, seed)

    again = f"python -m sandbox.prover rings --seed {seed} --users 2000 --days 40"
    assert came.finding is None, f"{told(came.finding)}\n{again}"


@pytest.mark.parametrize("name", ["welcome", "gifts", "fresh_offers", "limits", "awards", "claims", "points"])
def test_a_rule_that_is_left_out_is_found_among_hundreds(name):
    with HOLES[name].plant():
        finding = run(RULES, 400, 4, 1).finding

        assert finding is not None
        assert len(finding.moves) <= SHORT, told(finding)
    assert tell(RULES, finding.moves, UTC, operators_zone) is None


@pytest.mark.parametrize(
    ("way", "least"),
    [
        ("direct", 0.95 * pot(EARNING, 23, 5)),
        # What reaches a team after it has given waits there for the next day.
        ("shells", 0.8 * pot(EARNING, 23, 5)),
        # One door alone leads to the collector, on all days but the first, on which it has little.
        ("funnel", 4 * EARNING.gifts_per_day),
        ("chain", 4 * EARNING.gifts_per_day),
        # As much as the collector's own points buy at the lowest price.
        ("market", 4 * 190 // EARNING.offer_price_min),
    ],
)
def test_a_ring_that_misses_nothing_comes_near_to_what_is_declared(way, least):
    world, judge = World(RULES, BEGIN_US), RingPromises(EARNING, UTC)
    ring = Ring(way, [f"user-{number}" for number in range(24)], [0] * 24)

    assert watch(world, judge, live_in(world, [ring], 5, random.Random(1))) is None

    brought = max(each.brought for each in judge.brought() if each.account_id == "user-0")
    assert least <= brought <= pot(EARNING, 23, 5)


def test_the_page_says_what_the_rules_declare():
    rows = re.findall(r"^\| ([\d,]+) \| (\d+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)

    assert len(rows) >= 4
    for accounts, days, tokens in rows:
        assert pot(EARNING, int(accounts.replace(",", "")), int(days)) == int(tokens.replace(",", ""))
