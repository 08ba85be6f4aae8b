"""docs/economy.md shows every rule of the economy with the number that the code has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from services.batcher.settings import BatcherSettings
from services.wallet.economy import EarningRules, write_rules

PAGE = (Path(__file__).parents[2] / "docs" / "economy.md").read_text()
RULES = EarningRules()
ROW = re.compile(r"^\| .* \| (.*) \| `([\w.]+)` \|$", re.MULTILINE)


def documented() -> dict[str, list[int]]:
    """The numbers of each rule in the page's tables, by its name."""
    return {name: [int(number) for number in re.findall(r"\d+", numbers)] for numbers, name in ROW.findall(PAGE)}


def declared() -> Iterator[tuple[str, list[int]]]:
    """The same of the code."""
    for lane in ("BATCH", "INSTANT"):
        yield lane, [BatcherSettings.model_fields[f"price_{lane.lower()}"].default]
    for rule, value in json.loads(write_rules(RULES)).items():
        if isinstance(value, int):
            yield rule, [value]
            continue
        for name, part in value.items():
            numbers = list(part.values()) if isinstance(part, dict) else [part]
            yield f"{rule}.{name}", [number for number in numbers if number and not isinstance(number, bool)]


def test_each_rule_and_price_is_in_a_table_with_its_number() -> None:
    assert {name: sorted(numbers) for name, numbers in documented().items()} == {
        name: sorted(numbers) for name, numbers in declared()
    }


def test_the_most_that_a_day_can_give_is_what_the_page_says() -> None:
    daily, converted = RULES.daily(max(RULES.streak_bonuses)), RULES.tokens_per_day
    points = sum(activity.points * activity.per_day for activity in RULES.activities.values())
    text = " ".join(PAGE.split())
    assert f"is {daily + converted} tokens: {daily} by claiming on the {max(RULES.streak_bonuses)}th day" in text
    assert f"and {converted} by converting points, of which a day's activities give {points}" in text
