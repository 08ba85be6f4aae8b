"""The script of faults of a running twin, what has struck, and what is held back; on disk, so that a kill forgets none.

    faults.json     the script as it stands, and the one that the command line gave
    strikes.jsonl   every strike that had an effect

A hold ends with its time, with its fault's removal, or with the process. A twin that starts again with the command line
that it had before goes on with the script as it stands, so that a fault that was to strike once does not strike again.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sandbox.openai_twin.faults import STORM_ID, Fault, Json, Script, Strike

EVERYTHING: Final[Json] = {}
_log = logging.getLogger(__name__)


class FaultBook:
    """Draws faults and writes down those that struck. One process owns a folder."""

    def __init__(self, folder: Path, given: Json | None = None, clock: Callable[[], float] = time.time) -> None:
        """`given` is a script as JSON, from the command line. Raises FaultMistake."""
        self._script_path = folder / "faults.json"
        self._strikes_path = folder / "strikes.jsonl"
        self._clock = clock
        self._holds: dict[str, asyncio.Event] = {}
        self._given = given or EVERYTHING
        Script.read(self._given)
        kept = json.loads(self._script_path.read_text()) if self._script_path.exists() else {}
        self._script = Script.read(kept["script"] if kept.get("given") == self._given else self._given)
        if self._script.storm is not None:
            _log.warning("a storm of faults: --storm %s:%s", self._script.storm.seed, self._script.storm.rate)

    def to_json(self) -> Json:
        """The script as it stands."""
        return self._script.to_json()

    def replace(self, asked: object) -> None:
        """Puts another script in place; raises FaultMistake and changes nothing."""
        script = Script.read(asked)
        script.made = max(script.made, self._script.made)
        self._script = script
        self._save()
        for fault_id in list(self._holds):
            self._release(fault_id)

    def add(self, asked: object) -> Fault:
        """Adds a fault at the end; raises FaultMistake."""
        fault = self._script.add(asked)
        self._save()
        return fault

    def remove(self, fault_id: str) -> bool:
        """Takes a fault away, or the storm, and lets go of what it holds back; False if there is none."""
        removed = self._script.remove(fault_id)
        if fault_id == STORM_ID and self._script.storm is not None:
            self._script.storm, removed = None, True
        if removed:
            self._save()
        self._release(fault_id)
        return removed

    def draw(self, operation: str, *, model: str | None = None, objects: Sequence[str] = ()) -> list[Strike]:
        """What strikes at this occurrence of an operation."""
        strikes = self._script.draw(operation, model, objects)
        if strikes:
            self._save()
        return strikes

    def note(self, strike: Strike, objects: Sequence[str]) -> None:
        """Writes down that a fault struck, and whom."""
        _log.warning("fault %s (%s) at %s: %s", strike.name, strike.fault_id, strike.operation, ", ".join(objects))
        record = {
            "struck_at": self._clock(),
            "fault_id": strike.fault_id,
            "name": strike.name,
            "operation": strike.operation,
            "objects": list(objects),
        }
        with self._strikes_path.open("a") as strikes:
            strikes.write(json.dumps(record) + "\n")

    def strikes(self) -> list[Json]:
        """All that was written down, the oldest first."""
        if not self._strikes_path.exists():
            return []
        content = self._strikes_path.read_text()
        return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]

    async def hold(self, strike: Strike) -> None:
        """Returns after the strike's late_seconds, or when its fault is taken away; at once if it was already."""
        if not self._is_there(strike.fault_id):
            return
        released = self._holds.setdefault(strike.fault_id, asyncio.Event())
        try:
            await asyncio.wait_for(released.wait(), strike.parameters["late_seconds"])
        except TimeoutError:
            return

    def _is_there(self, fault_id: str) -> bool:
        if fault_id == STORM_ID:
            return self._script.storm is not None
        return any(fault.id == fault_id for fault in self._script.faults)

    def _release(self, fault_id: str) -> None:
        if (held := self._holds.pop(fault_id, None)) is not None:
            held.set()

    def _save(self) -> None:
        new = self._script_path.with_suffix(".new")
        new.write_text(json.dumps({"given": self._given, "script": self.to_json()}))
        new.replace(self._script_path)
