"""One rule that is left out, and how to leave it out for a while."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

from sandbox.prover.search import ZoneOf, operators_zone
from services.wallet import ledger
from services.wallet.commands import Moment, Outcome
from services.wallet.holdings import State

Plant = Callable[[], AbstractContextManager[Any]]


class Hole(NamedTuple):
    """What is left out, in words. plant: leaves it out for a while."""

    about: str
    plant: Plant = nullcontext
    zone_of: ZoneOf = operators_zone


def decided(command: type, decide: Callable[[State, Any, Moment], Outcome]) -> Plant:
    """Lets a command be decided otherwise."""
    return lambda: patch.dict(ledger._DECISIONS, {command: decide})  # noqa: SLF001 - a hole is made where no door is


def replaced(place: object, name: str, other: object) -> Plant:
    """Lets a name of a module or class stand for something else."""
    return lambda: patch.object(place, name, other)


def both(one: Plant, other: Plant) -> Plant:
    """Two replacements that are one hole."""

    def plant() -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(one())
        stack.enter_context(other())
        return stack

    return plant
