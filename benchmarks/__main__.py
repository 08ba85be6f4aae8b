"""`python -m benchmarks [--scale 1.0] [names]` runs benchmarks, all by default, and prints one JSON line for each."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.registry import load, names


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=[], metavar="name", help=", ".join(names()))
    parser.add_argument("--scale", type=float, default=1.0, help="1 takes about half a minute each; the tests use 0.01")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names()))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names())}")
    for name in arguments.names or names():
        print(asyncio.run(load(name)(arguments.scale)).line(), flush=True)


if __name__ == "__main__":
    main()
