"""The search finds each rule that is left out, nothing in the shipped rules, and a year keeps its books."""

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from sandbox.prover.__main__ import main
from sandbox.prover.holes import HOLES
from sandbox.prover.rings import run
from sandbox.prover.search import operators_zone, search, tell, told, without
from sandbox.prover.year import year
from services.wallet.economy import EarningRules, Rules

RULES = Rules(earning=EarningRules())
SEEDS_MAX = range(1, 401)
"""Until a hole is found; most are within the first twenty stories."""
SHORT = 18
"""A finding is read by a person: so many moves at most."""


def again(finding, zone):
    """How to see it again."""
    return f"WALLET_ECONOMY_ZONE={zone} python -m sandbox.prover search --seed {finding.seed} --seeds 1"


@pytest.mark.parametrize(("zone", "first"), [("UTC", 1), ("Europe/Berlin", 101), ("America/Havana", 201)])
def test_nothing_is_found_in_the_shipped_rules(zone, first):
    finding = search(RULES, range(first, first + 50), ZoneInfo(zone))
    assert finding is None, f"{told(finding)}\n{again(finding, zone)}"


def test_rules_that_give_nothing_are_searched_as_well():
    nothing = EarningRules(
        welcome_bonus=0, daily_bonus=0, streak_bonuses={}, activities={}, achievements={}, gifts_per_day=0, grace_days=0
    )
    assert search(Rules(welcome_bonus=0, earning=nothing), range(1, 11)) is None
    assert run(Rules(welcome_bonus=0, earning=nothing), 50, 3, 1).finding is None


@pytest.mark.slow
def test_nothing_is_found_in_the_shipped_rules_by_a_long_search():
    finding = search(RULES, range(1_000, 4_000))
    assert finding is None, f"{told(finding)}\n{again(finding, 'UTC')}"


@pytest.mark.parametrize("name", sorted(HOLES))
def test_a_rule_that_is_left_out_is_found_and_the_story_is_short(name):
    hole = HOLES[name]
    with hole.plant():
        finding = search(RULES, SEEDS_MAX, zone_of=hole.zone_of)

        assert finding is not None
        assert len(finding.moves) <= SHORT, told(finding)
        # No move of it can be left out.
        for place in range(len(finding.moves)):
            assert tell(RULES, without(finding.moves, place, 1), UTC, hole.zone_of) is None
    assert tell(RULES, finding.moves, UTC, operators_zone) is None


def test_a_year_keeps_its_promises_and_its_supply_is_what_was_made_and_not_spent():
    days = list(year(RULES, 60, 365, 7))

    assert len(days) == 365
    assert days[-1].users > days[0].users
    supply = 0
    for day in days:
        supply += day.made - day.spent
        assert day.supply == supply
    assert all(min(day[1:]) >= 0 for day in days)


def test_the_same_seed_gives_the_same_year():
    assert list(year(RULES, 20, 30, 3)) == list(year(RULES, 20, 30, 3))


def test_the_command_says_what_it_found_and_how_to_see_it_again(capsys):
    assert main(["search", "--seeds", "5", "--hole", "claims"]) == 1
    out = capsys.readouterr().out
    assert "paid twice for one day" in out
    seed = out.partition("seed ")[2].partition(":")[0]
    assert f"again: python -m sandbox.prover search --seed {seed} --seeds 1 --hole claims" in out


def test_the_command_says_how_near_a_ring_came_or_what_it_found(capsys):
    assert main(["rings", "--users", "40", "--days", "2"]) == 0
    assert "nobody was brought more than is declared" in capsys.readouterr().out
    assert main(["rings", "--users", "40", "--days", "2", "--hole", "welcome"]) == 1
    assert "and may be brought" in capsys.readouterr().out


def test_the_command_prints_a_line_for_each_day(capsys):
    assert main(["year", "--users", "10", "--days", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["day", *(f"2026-01-0{day}" for day in range(1, 5))]
