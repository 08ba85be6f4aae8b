"""Run benchmarks, all by default, and print one JSON line for each: `python -m benchmarks --scale 0.1 chassis_echo`."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.databases import DATABASES
from benchmarks.registry import load, names, takes_database


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="name", help=", ".join(names()))
    parser.add_argument("--scale", type=float, default=1.0, help="1 takes about half a minute each; the tests use 0.01")
    parser.add_argument(
        "--database", choices=DATABASES, default="sqlite", help="where the wallet keeps its ledger, where that is asked"
    )
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names()))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names())}")
    elsewhere = [] if arguments.database == "sqlite" else [arguments.database]
    if elsewhere and (fixed := [name for name in arguments.names if not takes_database(name)]):
        parser.error(f"these take no --database: {', '.join(fixed)}")
    for name in arguments.names or [name for name in names() if not elsewhere or takes_database(name)]:
        print(asyncio.run(load(name)(arguments.scale, *elsewhere)).line(), flush=True)


if __name__ == "__main__":
    main()
