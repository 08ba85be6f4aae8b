"""What the demo tells at its end: the answers, and where the tokens went."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console

from punchcard.wallet.v1 import wallet_pb2
from sandbox.account_check import Totals
from sandbox.display import say
from sandbox.photograph import Photograph

# What the batcher charges for an answer at once, unless it is told otherwise.
INSTANT_PRICE: Final = 5


def tell_answers(console: Console, photographs: Sequence[Photograph]) -> None:
    """Each photograph's answer, or why it has none."""
    say(console)
    say(console, "Answers", style="bold")
    for each in photographs:
        say(console, f"  {each.path.name}", style="cyan")
        said = f"none: {each.problem}" if each.problem else each.answer.text
        say(console, f"      {said}")


def tell_money(
    console: Console, totals: Totals, before: int, after: wallet_pb2.Balance, photographs: Sequence[Photograph]
) -> None:
    """The balance before and after, what lies between, and what the batch has saved."""
    charged = sum(1 for each in photographs if each.settlement.charged)
    rows = [
        ("before", before, _sources(totals)),
        ("taken", -totals.committed, f"for {charged} answer{'' if charged == 1 else 's'}, as a batch"),
        ("given back", totals.refunded, ""),
        ("after", after.balance, f"{after.held} held, {len(totals.open_reservations)} reservations open"),
    ]
    say(console)
    say(console, "Tokens", style="bold")
    for name, amount, remark in rows:
        if name != "given back" or amount:
            say(console, f"  {name:10} {amount:6}   {remark}".rstrip())
    instant = charged * INSTANT_PRICE
    saved = instant - totals.committed
    if saved > 0:
        say(
            console,
            f"  saved      {saved:6}   {saved / instant:.0%} of the {instant} that the same answers cost at once",
        )


def _sources(totals: Totals) -> str:
    welcome = f"{totals.welcome} as welcome bonus"
    return f"{welcome}, {totals.granted} granted" if totals.granted else welcome
