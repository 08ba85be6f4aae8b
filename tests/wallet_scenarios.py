"""Every command of the wallet, each with what has to be there before it and what it adds to the journal."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from punchcard.wallet.v1 import wallet_pb2 as pb

Call = tuple[str, Message]


class Scenario(NamedTuple):
    """A command: `before` are the calls that make it possible, `rows` how many rows of the journal it makes."""

    name: str
    before: list[Call]
    method: str
    request: Message
    rows: int


def scenarios(prefix: str) -> list[Scenario]:
    """All of them, on accounts and under keys that begin with this prefix: each prefix is a world of its own."""
    return [*_on_accounts(prefix), *_on_reservations(prefix), *_in_batches(prefix)]


def is_replayed(answer: Any) -> bool:
    """Whether the command, or each item of a batch that was not refused, had been done before."""
    if hasattr(answer, "results"):
        return all(result.replayed for result in answer.results if not result.HasField("refusal"))
    return bool(answer.replayed)


def said(answer: Any) -> Any:
    """The answer without that."""
    bare = type(answer)()
    bare.CopyFrom(answer)
    for part in bare.results if hasattr(bare, "results") else [bare]:
        part.ClearField("replayed")
    return bare


def _on_accounts(prefix: str) -> list[Scenario]:
    def opened(name: str) -> Call:
        return "OpenAccount", pb.OpenAccountRequest(account_id=f"{prefix}-{name}")

    def about(name: str, key: str = "change_id", number: int = 1) -> dict[str, Any]:
        return {"account_id": f"{prefix}-{name}", key: f"{prefix}-{name}-{number}"}

    grant = pb.GrantRequest(**about("grant", "grant_id"), amount=7, reference="thanks")
    of_a_life = pb.GrantRequest(**about("revoke", "grant_id"), amount=7, lifetime=_duration(900))
    revoke = pb.RevokeGrantRequest(**about("revoke", "grant_id"))
    freeze = pb.FreezeAccountRequest(**about("freeze"))
    frozen = ("FreezeAccount", pb.FreezeAccountRequest(**about("unfreeze")))
    unfreeze = pb.UnfreezeAccountRequest(**about("unfreeze", number=2))
    close = pb.CloseAccountRequest(**about("close"), forfeit_balance=True)
    return [
        Scenario("open", [], *opened("open"), 2),
        Scenario("grant", [opened("grant")], "Grant", grant, 1),
        Scenario("revoke", [opened("revoke"), ("Grant", of_a_life)], "RevokeGrant", revoke, 1),
        Scenario("freeze", [opened("freeze")], "FreezeAccount", freeze, 1),
        Scenario("unfreeze", [opened("unfreeze"), frozen], "UnfreezeAccount", unfreeze, 1),
        Scenario("close", [opened("close")], "CloseAccount", close, 1),
    ]


def _on_reservations(prefix: str) -> list[Scenario]:
    def held(name: str) -> Call:
        return "Reserve", _reserve(prefix, name, 1, 2)

    def key(name: str) -> str:
        return f"{prefix}-{name}-1"

    commit = pb.CommitRequest(reservation_id=key("commit"), amount=1)
    release = pb.RefundRequest(reservation_id=key("release"), grace=True)
    tombstone = pb.RefundRequest(reservation_id=key("tombstone"))
    taken = ("Commit", pb.CommitRequest(reservation_id=key("refund")))
    refund = pb.RefundRequest(reservation_id=key("refund"), refund_id="f", amount=1)
    amend = pb.AmendRequest(reservation_id=key("amend"), amend_id="a", amount=1, hold_duration=_duration(900))
    return [
        Scenario("reserve and open", [], "Reserve", _reserve(prefix, "new", 1), 3),
        Scenario("reserve", [held("again")], "Reserve", _reserve(prefix, "again", 2), 1),
        Scenario("commit", [held("commit")], "Commit", commit, 1),
        Scenario("release", [held("release")], "Refund", release, 1),
        Scenario("tombstone", [], "Refund", tombstone, 1),
        Scenario("refund", [held("refund"), taken], "Refund", refund, 1),
        Scenario("amend", [held("amend")], "Amend", amend, 1),
    ]


def _in_batches(prefix: str) -> list[Scenario]:
    """What is refused comes last or never changes: a refusal is not stored, but made anew from what is there then."""
    held: list[Call] = [("Reserve", _reserve(prefix, "settle", number, 2)) for number in (1, 2, 3, 4)]
    taken: Call = ("Commit", pb.CommitRequest(reservation_id=f"{prefix}-settle-4"))
    commands: list[Message] = [
        pb.CommitRequest(reservation_id=f"{prefix}-settle-1", amount=1),
        pb.RefundRequest(reservation_id=f"{prefix}-settle-2"),
        pb.AmendRequest(reservation_id=f"{prefix}-settle-3", amend_id="a", amount=1),
        pb.CommitRequest(reservation_id="never-made"),
        pb.RefundRequest(reservation_id=f"{prefix}-settle-4", refund_id="f", amount=1),
    ]
    kinds = [command.DESCRIPTOR.name.removesuffix("Request").lower() for command in commands]
    items = [pb.SettleItem(**{kind: command}) for kind, command in zip(kinds, commands, strict=True)]  # type: ignore[arg-type]
    many = [_reserve(prefix, "many", 1), _reserve(prefix, "many", 2), _reserve(prefix, "many", 3, 99)]
    return [
        Scenario("batch reserve", [], "BatchReserve", pb.BatchReserveRequest(items=many), 4),
        Scenario("batch settle", [*held, taken], "BatchSettle", pb.BatchSettleRequest(items=items), 4),
    ]


def _reserve(prefix: str, name: str, number: int, amount: int = 4) -> pb.ReserveRequest:
    return pb.ReserveRequest(
        account_id=f"{prefix}-{name}",
        reservation_id=f"{prefix}-{name}-{number}",
        amount=amount,
        hold_duration=_duration(600),
        price_version="v1",
        reference="work",
    )


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message
