"""How the demo tells what happens: a bar for each photograph on a terminal, a line for each step elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

NAME_CHARS_MAX = 28


class Step(NamedTuple):
    """How far a photograph is: a word, what there is to say about it, 0 to 1 of the way, and who shares all that."""

    stage: str
    detail: str
    fraction: float
    group: str = ""


class Display(Protocol):
    """Where the steps of each photograph are shown."""

    def step(self, at: int, step: Step) -> None:
        """Photograph number `at` has come so far."""


class PlainLines:
    """A line for each step; the same is not told twice, and what a group shares is told once for all of it."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._names = _padded(names)
        self._told: dict[str | int, Step] = {}

    def step(self, at: int, step: Step) -> None:
        """Prints the step."""
        who = step.group or at
        if self._told.get(who) != step:
            self._told[who] = step
            name = step.group.ljust(len(self._names[at])) if step.group else self._names[at]
            say(self._console, f"  {name}  {step.stage:10} {step.detail}".rstrip())


class Bars:
    """A bar for each photograph, drawn in place."""

    def __init__(self, progress: Progress, names: Sequence[str]) -> None:
        self._progress = progress
        self._tasks: list[TaskID] = [
            progress.add_task("", total=1.0, name=name, stage="", detail="") for name in _padded(names)
        ]

    def step(self, at: int, step: Step) -> None:
        """Moves the bar."""
        self._progress.update(self._tasks[at], completed=step.fraction, stage=f"{step.stage:10}", detail=step.detail)


@contextmanager
def showing(console: Console, names: Sequence[str]) -> Iterator[Display]:
    """The display that fits the console, for as long as there are steps to show."""
    if not console.is_terminal:
        yield PlainLines(console, names)
        return
    columns = (
        TextColumn("  {task.fields[name]}", markup=False),
        BarColumn(bar_width=24, complete_style="cyan", finished_style="green", pulse_style="cyan"),
        TextColumn("{task.fields[stage]}", style="bold", markup=False),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress, names)


def say(console: Console, line: str = "", style: str = "") -> None:
    """Prints a line as it is: what looks like markup in a name or an answer is none."""
    console.print(Text(line, style=style), soft_wrap=not console.is_terminal)


def _padded(names: Sequence[str]) -> list[str]:
    """Names of one width, the long ones cut at their beginning, where paths differ least."""
    short = [name if len(name) <= NAME_CHARS_MAX else "…" + name[1 - NAME_CHARS_MAX :] for name in names]
    width = max(map(len, short), default=0)
    return [name.ljust(width) for name in short]
