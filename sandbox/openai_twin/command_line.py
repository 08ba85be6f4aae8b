"""The options that a twin of its own and a whole stack share: which faults strike, and who is told of batches' ends."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from sandbox.openai_twin.fault_kinds import KINDS
from sandbox.openai_twin.faults import Json, Script


def add_fault_options(parser: argparse.ArgumentParser) -> None:
    """Adds --fault, --faults, --storm, --help-faults and --webhook-url."""
    parser.add_argument("--fault", action="append", default=[], metavar="NAME|JSON", help="strikes once; repeatable")
    parser.add_argument("--faults", type=Path, metavar="FILE", help="a script of faults, as PUT /twin/faults takes it")
    parser.add_argument("--storm", metavar="SEED:RATE", help="faults at random, as in 7:0.05")
    parser.add_argument("--help-faults", action=_ListFaults, nargs=0, help="list every fault, and exit")
    parser.add_argument("--webhook-url", metavar="URL", help="who is told of batches that end")


def script_of(names: Sequence[str], file: Path | None, storm: str | None) -> Json:
    """A script as JSON: a file's, with these faults at its end, and with this storm. Raises FaultMistake."""
    script: Json = json.loads(file.read_text()) if file else {}
    Script.read(script)
    faults = [json.loads(name) if name.startswith("{") else name for name in names]
    script = {**script, "faults": [*script.get("faults", []), *faults], **({"storm": storm} if storm else {})}
    Script.read(script)
    return script


class _ListFaults(argparse.Action):
    """Prints the vocabulary, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for kind in KINDS.values():
            given = "".join(f" {name}={json.dumps(value)}" for name, value in kind.parameters.items())
            print(f"{kind.name}{given}\n    {kind.does}\n    at {', '.join(kind.operations)}")
        parser.exit()
