"""Which benchmarks there are, and what one gives back."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import platform
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import benchmarks

FOLDER: Final = Path(__file__).parent
_NOT_BENCHMARKS: Final = {"__main__", "registry", "processes", "load", "wallets", "stacks", "databases", "ledgers"}


@dataclass(frozen=True, slots=True)
class Result:
    """A number that can be believed: beside it stands what it is measured against, taken in the same run.

    `ratio` is value / baseline; `baseline` says what that is, with its own number.
    """

    name: str
    value: float
    unit: str
    baseline: str
    ratio: float

    def line(self) -> str:
        """The JSON line, with where it was taken."""
        return json.dumps({**asdict(self), "machine": machine(), "commit": commit()})


Run = Callable[..., Coroutine[None, None, Result]]


def names() -> list[str]:
    """Every module of this package that is a benchmark."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in found if name not in _NOT_BENCHMARKS)


def load(name: str) -> Run:
    """The `run(scale)` of one benchmark; `scale` stretches how long or how much it does."""
    run: Run = importlib.import_module(f"benchmarks.{name}").run
    return run


def takes_database(name: str) -> bool:
    """Whether it runs on either database: then `run(scale, "postgres")` is the other."""
    return "database" in inspect.signature(load(name)).parameters


def name_on(name: str, database: str) -> str:
    """How a benchmark is called on a database: SQLite is not mentioned."""
    return name if database == "sqlite" else f"{name}_{database}"


def machine() -> str:
    """Processors and Python, since numbers mean nothing without them."""
    return f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}"


def commit() -> str:
    """The commit that is measured, with + if files differ from it; empty outside of a git repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    return found.stdout.strip()
