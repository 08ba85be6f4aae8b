"""Which fault strikes when: a script of faults, and storms, both reproducible.

A fault waits, strikes as often as it may, and is spent; each moment at which something can go wrong is an occurrence of
an operation (`fault_kinds`)::

    waiting ── its nth matching occurrence ──► striking ── struck `count` times ──► spent
       └────────────────── taken away: what it holds back goes on at once ───────────┘

At an occurrence the first fault of the script that can strike does, alone; on a batch all that can strike do, together.
What a draw says depends on the seed, the fault and the number of the occurrence, and on nothing else. A storm draws at
each occurrence, after the script, one of all kinds that suit it, with their default parameters.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, Self

from sandbox.openai_twin.fault_kinds import BATCH_OPERATIONS, KINDS, MODEL_OPERATIONS, OPERATIONS, Kind

Json = dict[str, Any]

FAULTS_MAX: Final = 1000
STORM_ID: Final = "storm"
_FILE_NAMES: Final = ("output", "error")


class FaultMistake(ValueError):
    """What somebody asked for is not in the vocabulary, in a sentence that says what is."""


class Strike(NamedTuple):
    """A fault that strikes now: who, what, at which operation, and its parameters, complete."""

    fault_id: str
    name: str
    operation: str
    parameters: Json


@dataclass
class Fault:
    """One entry of a script. count: how often it strikes, None for always. nth: its first, counted in matching ones."""

    name: str
    id: str = ""
    operation: str | None = None
    model: str | None = None
    object: str | None = None
    nth: int = 1
    count: int | None = 1
    probability: float = 1.0
    parameters: Json = field(default_factory=dict)
    seen: int = 0
    struck: int = 0

    def matches(self, operation: str, model: str | None, objects: Sequence[str]) -> bool:
        """Whether an occurrence is one of those that it waits for."""
        operations = KINDS[self.name].operations if self.operation is None else (self.operation,)
        return (
            operation in operations and self.model in (None, model) and (self.object is None or self.object in objects)
        )

    def draw(self, seed: int) -> bool:
        """Counts a matching occurrence, and says whether it strikes at it."""
        self.seen += 1
        if self.seen < self.nth or (self.count is not None and self.struck >= self.count):
            return False
        if self.probability < 1 and _random(seed, self.id, self.seen).random() >= self.probability:
            return False
        self.struck += 1
        return True


@dataclass
class Storm:
    """Faults at random: at each occurrence one strikes with a probability of `rate`. names: of these only."""

    seed: int
    rate: float
    names: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def draw(self, operation: str) -> Strike | None:
        """What strikes at the next occurrence of an operation."""
        self.seen[operation] = self.seen.get(operation, 0) + 1
        drawn = _random(self.seed, operation, self.seen[operation])
        if drawn.random() >= self.rate:
            return None
        kinds = [kind for kind in self._kinds() if operation in kind.operations]
        if not kinds:
            return None
        kind = drawn.choice(kinds)
        return Strike(STORM_ID, kind.name, operation, dict(kind.parameters))

    def _kinds(self) -> list[Kind]:
        return [KINDS[name] for name in self.names] or [kind for kind in KINDS.values() if kind.storm]


@dataclass
class Script:
    """Faults in order, and perhaps a storm. made: how many were ever added, so that an id is never given twice."""

    seed: int = 0
    faults: list[Fault] = field(default_factory=list)
    storm: Storm | None = None
    made: int = 0

    @classmethod
    def read(cls, asked: object) -> Self:
        """A script from its JSON: {"seed", "faults": [...], "storm": {"seed", "rate", "names"}}, all optional."""
        given = _object(asked, ("seed", "faults", "storm", "made"), "a script")
        faults = given.get("faults", [])
        if not isinstance(faults, list):
            raise FaultMistake("faults must be a list")
        script = cls(seed=_whole(given, "seed", 0, at_least=None), storm=read_storm(given.get("storm")))
        for each in faults:
            script.add(each)
        script.made = max(script.made, _whole(given, "made", 0))
        return script

    def add(self, asked: object) -> Fault:
        """Adds a fault from its JSON at the end; raises FaultMistake."""
        if len(self.faults) >= FAULTS_MAX:
            raise FaultMistake(f"a script has at most {FAULTS_MAX} faults")
        fault = read_fault(asked)
        self.made += 1
        fault.id = fault.id or f"fault-{self.made}"
        if fault.id == STORM_ID or any(fault.id == each.id for each in self.faults):
            raise FaultMistake(f"there is a {fault.id} already")
        self.faults.append(fault)
        return fault

    def remove(self, fault_id: str) -> bool:
        """Takes a fault away; False if there is none of that id."""
        kept = [fault for fault in self.faults if fault.id != fault_id]
        removed = len(kept) < len(self.faults)
        self.faults = kept
        return removed

    def draw(self, operation: str, model: str | None, objects: Sequence[str]) -> list[Strike]:
        """What strikes at this occurrence of an operation: one at most, but on a batch all that can."""
        together = operation in BATCH_OPERATIONS
        strikes: list[Strike] = []
        for fault in self.faults:
            if not fault.matches(operation, model, objects):
                continue
            if strikes and not together:
                fault.seen += 1
            elif fault.draw(self.seed):
                parameters = {**KINDS[fault.name].parameters, **fault.parameters}
                strikes.append(Strike(fault.id, fault.name, operation, parameters))
        # The storm counts every occurrence, so that a script beside it does not shift what it draws.
        drawn = self.storm.draw(operation) if self.storm else None
        return strikes or ([drawn] if drawn else [])

    def to_json(self) -> Json:
        """As `read` takes it, with what was seen and struck."""
        return asdict(self)


def read_fault(asked: object) -> Fault:
    """A fault from its JSON, or from its bare name; raises FaultMistake."""
    given = _object({"name": asked} if isinstance(asked, str) else asked, tuple(Fault.__dataclass_fields__), "a fault")
    kind = _kind(given.get("name"))
    operation, model = _text(given, "operation"), _text(given, "model")
    if operation is not None and operation not in kind.operations:
        raise FaultMistake(f"{kind.name} strikes at {', '.join(kind.operations)}, and not at {operation!r}")
    at = kind.operations if operation is None else (operation,)
    if model is not None and not set(at) <= set(MODEL_OPERATIONS):
        raise FaultMistake(f"model is known only at {', '.join(MODEL_OPERATIONS)}")
    count = None if given.get("count", 1) is None else _whole(given, "count", 1, at_least=1)
    return Fault(
        name=kind.name,
        id=_text(given, "id") or "",
        operation=operation,
        model=model,
        object=_text(given, "object"),
        nth=_whole(given, "nth", 1, at_least=1),
        count=count,
        probability=_chance(given, "probability", 1.0),
        parameters=_parameters(kind, given.get("parameters", {})),
        seen=_whole(given, "seen", 0),
        struck=_whole(given, "struck", 0),
    )


def read_storm(asked: object) -> Storm | None:
    """A storm from its JSON, or from SEED:RATE; raises FaultMistake."""
    if asked is None:
        return None
    given = _object(_storm_of(asked) if isinstance(asked, str) else asked, tuple(Storm.__dataclass_fields__), "a storm")
    names = given.get("names", [])
    if not isinstance(names, list):
        raise FaultMistake("the names of a storm must be a list")
    seen = _object(given.get("seen", {}), OPERATIONS, "what a storm has seen")
    return Storm(
        seed=_whole(given, "seed", 0, at_least=None),
        rate=_chance(given, "rate"),
        names=[_kind(name).name for name in names],
        seen={operation: _whole(seen, operation, 0) for operation in seen},
    )


def _storm_of(asked: str) -> Json:
    seed, _, rate = asked.partition(":")
    try:
        return {"seed": int(seed), "rate": float(rate)}
    except ValueError as error:
        raise FaultMistake(f"a storm is SEED:RATE, as in 7:0.05, and not {asked!r}") from error


def _chance(given: Json, name: str, default: float | None = None) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise FaultMistake(f"{name} must be a number more than 0 and at most 1")
    return float(value)


def _kind(name: object) -> Kind:
    if not isinstance(name, str) or name not in KINDS:
        raise FaultMistake(f"no fault is called {name!r}; there are {', '.join(KINDS)}")
    return KINDS[name]


def _parameters(kind: Kind, asked: object) -> Json:
    """Parameters that a kind has, each of the type of its default; times may also be null."""
    given = _object(asked, tuple(kind.parameters), f"the parameters of {kind.name}")
    for name, value in given.items():
        default = kind.parameters[name]
        if name.endswith("_seconds"):
            endless = value is None and name == "late_seconds"
            good = endless or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0)
        elif isinstance(default, float):
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        else:
            good = type(value) is type(default) or (default is None and isinstance(value, str))
        if name == "file":
            good = value in _FILE_NAMES
        if name == "line":
            good = value in KINDS and "batch.line" in KINDS[value].operations and value != "answer_cut"
        if name == "status":
            good = good and 400 <= value <= 599
        if name == "lines":
            good = good and all(isinstance(each, int) for each in value)
        if not good:
            raise FaultMistake(f"{value!r} is no {name} for {kind.name}; the default is {default!r}")
    return given


def _object(asked: object, names: Sequence[str], what: str) -> Json:
    if not isinstance(asked, Mapping):
        raise FaultMistake(f"{what} must be a JSON object")
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise FaultMistake(f"{what} has no {unknown[0]!r}; it has {', '.join(names) or 'none'}")
    return dict(asked)


def _whole(given: Json, name: str, default: int, at_least: int | None = 0) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or (at_least is not None and value < at_least):
        raise FaultMistake(f"{name} must be a whole number" + ("" if at_least is None else f", at least {at_least}"))
    return value


def _text(given: Json, name: str) -> str | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise FaultMistake(f"{name} must be a text that is not empty")
    return value


def _random(seed: int, *what: object) -> random.Random:
    return random.Random(":".join(map(str, (seed, *what))))  # noqa: S311 - a script, not a secret
