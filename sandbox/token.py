"""Prints a bearer token signed by the sandbox's key, for grpcurl: `python -m sandbox.token alice`."""

import argparse
import sys
from collections.abc import Sequence

from sandbox.keys import AUDIENCES, USER_SCOPES, Keys
from sandbox.plan import data_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the token, and nothing else."""
    options = _parser().parse_args(arguments)
    subject = options.sub or options.subject
    token = Keys(data_folder()).sign(subject, AUDIENCES[options.service], options.scope, options.ttl_seconds)
    print(token)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox.token", description=__doc__)
    parser.add_argument("subject", nargs="?", default="alice", help="who calls; a user's is its account (alice)")
    parser.add_argument("--sub", help="the same, by its name in the token")
    parser.add_argument("--service", choices=AUDIENCES, default="both", help="who accepts it (both)")
    parser.add_argument("--scope", default=USER_SCOPES, help=f"what it allows ({USER_SCOPES})")
    parser.add_argument("--ttl-seconds", type=int, default=3600, help="how long it is valid (3600)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
