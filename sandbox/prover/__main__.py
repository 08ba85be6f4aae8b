"""`python -m sandbox.prover`: looks for tokens from nothing in the rules of the configuration, or shows a year of them.

search   [--seeds N] [--seed S] [--hole NAME]   stories of a few users; exits with 1 and the shortest bad one
rings    [--users N] [--days N] [--seed S] [--hole NAME]   thousands who bring all they get to one each; as above
year     [--users N] [--days N] [--seed S]      a line for each day: supply, faucets and sinks, in tokens
holes                                           the rules that --hole can leave out
"""

import argparse
import sys
from collections.abc import Sequence
from zoneinfo import ZoneInfo

from sandbox.prover import rings
from sandbox.prover.hole import Hole
from sandbox.prover.holes import HOLES
from sandbox.prover.search import search, told
from sandbox.prover.story import MOVES
from sandbox.prover.year import BrokenPromise, Day, year
from services.wallet.economy import Rules
from services.wallet.settings import WalletSettings

SEEDS = 200


def main(arguments: Sequence[str]) -> int:
    """Runs one of the commands; its exit code."""
    asked = _parser().parse_args(arguments)
    rules = WalletSettings.load().rules()
    if asked.command == "holes":
        print("\n".join(f"{name:13} {hole.about}" for name, hole in HOLES.items()))
        return 0
    return {"search": _search, "rings": _rings, "year": _year}[asked.command](asked, rules)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox.prover", description=(__doc__ or "").partition(":")[2])
    commands = parser.add_subparsers(dest="command", required=True)
    searching = commands.add_parser("search", help="look for a story that makes tokens from nothing")
    searching.add_argument("--seeds", type=int, default=SEEDS, help=f"how many stories (default {SEEDS})")
    searching.add_argument("--seed", type=int, default=1, help="the first one's seed (default 1)")
    searching.add_argument("--hole", choices=sorted(HOLES), help="leave a rule out, to see it missed")
    farming = commands.add_parser("rings", help="look for a ring of accounts that brings more to one than is declared")
    farming.add_argument("--users", type=int, default=2_000, help="how many users (default 2,000)")
    farming.add_argument("--days", type=int, default=35, help="how many days (default 35)")
    farming.add_argument("--seed", type=int, default=1, help="of the rings (default 1)")
    farming.add_argument("--hole", choices=sorted(HOLES), help="leave a rule out, to see it missed")
    living = commands.add_parser("year", help="show what the rules come to")
    living.add_argument("--users", type=int, default=1_000, help="how many users (default 1,000)")
    living.add_argument("--days", type=int, default=365, help="how many days (default 365)")
    living.add_argument("--seed", type=int, default=1, help="of their habits (default 1)")
    commands.add_parser("holes", help="list the rules that can be left out")
    return parser


def _search(asked: argparse.Namespace, rules: Rules) -> int:
    hole = HOLES[asked.hole] if asked.hole else Hole("")
    seeds = range(asked.seed, asked.seed + asked.seeds)
    with hole.plant():
        finding = search(rules, seeds, ZoneInfo(rules.zone), hole.zone_of)
    if finding is None:
        print(f"{asked.seeds} stories of {MOVES} moves (seeds {seeds[0]} to {seeds[-1]}): every promise was kept")
        return 0
    print(told(finding))
    again = f" --hole {asked.hole}" if asked.hole else ""
    print(f"again: python -m sandbox.prover search --seed {finding.seed} --seeds 1{again}")
    return 1


def _rings(asked: argparse.Namespace, rules: Rules) -> int:
    hole = HOLES[asked.hole] if asked.hole else Hole("")
    with hole.plant():
        came = rings.run(rules, asked.users, asked.days, asked.seed, ZoneInfo(rules.zone), hole.zone_of)
    if came.finding is not None:
        print(told(came.finding))
        again = f"--users {asked.users} --days {asked.days}" + (f" --hole {asked.hole}" if asked.hole else "")
        print(f"again: python -m sandbox.prover rings --seed {asked.seed} {again}")
        return 1
    near = came.nearest
    print(
        f"{came.accounts} accounts in {came.rings} rings, {asked.days} days, {came.moves} moves (seed {asked.seed}): "
        f"nobody was brought more than is declared\n"
        f"nearest: {near.account_id} was brought {near.brought} of at most {near.cap} tokens by {near.others} others "
        f"in {near.days} days"
    )
    return 0


def _year(asked: argparse.Namespace, rules: Rules) -> int:
    titles = [*Day._fields, "made", "net"]
    print(" ".join(f"{title:>11}" for title in titles))
    try:
        for day in year(rules, asked.users, asked.days, asked.seed, ZoneInfo(rules.zone)):
            print(" ".join(f"{value:>11}" for value in [*day, day.made, day.made - day.spent]))
    except BrokenPromise as broken:
        print(f"a promise was broken: {broken}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
