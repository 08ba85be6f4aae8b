"""For a wallet that is sent anything: a raw connection, an eye on its database, and a world to collide with."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

import asyncpg
import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from punchcard.wallet.v1 import (
    earning_pb2,
    error_reason_pb2,
    giving_pb2,
    market_pb2,
    spending_pb2,
    teams_pb2,
    wallet_pb2,
)
from tests.tokens import bearer
from tests.wallet_audit import EVERYTHING, Row
from tests.wallet_mix import MAKER
from tests.wallets import EVERY_SCOPE

METHODS: Final = {
    name: method
    for file in (wallet_pb2, earning_pb2, teams_pb2, giving_pb2, market_pb2, spending_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for name, method in service.methods_by_name.items()
}
METADATA: Final = bearer(
    MAKER,
    f"{EVERY_SCOPE} wallet.earn wallet.give wallet.trade wallet.team wallet.limit wallet.admin",
    audience="punchcard.wallet",
)
CALL_TIMEOUT_SECONDS: Final = 20.0
DETAILS: Final = "grpc-status-details-bin"


class Refused(NamedTuple):
    """A refusal, of a call or of an item of a batch."""

    code: str
    reason: str
    metadata: Mapping[str, str]


class Answer(NamedTuple):
    """What came back: a refusal, or the (first) message; None for a stream that ended without any."""

    refused: Refused | None
    message: Message | None
    status: status_pb2.Status | None = None

    @property
    def retry_seconds(self) -> float:
        """After how long the refusal asks to be tried again."""
        info = error_details_pb2.RetryInfo()
        assert self.status is not None
        assert any(detail.Unpack(info) for detail in self.status.details)
        return float(info.retry_delay.ToMilliseconds()) / 1_000

    @property
    def items(self) -> Sequence[Any]:
        """The results of a batch."""
        return getattr(self.message, "results", ())

    @property
    def item_refusals(self) -> list[Refused]:
        """How items of a batch were refused."""
        return [_of_item(item.refusal) for item in self.items if item.HasField("refusal")]

    @property
    def did_nothing(self) -> bool:
        """Whether the answer says that nothing new was done."""
        if self.message is None or getattr(self.message, "replayed", False):
            return True
        return bool(self.items) and all(item.replayed or item.HasField("refusal") for item in self.items)


def _of_item(refusal: wallet_pb2.Refusal) -> Refused:
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    name = error_reason_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")
    return Refused(codes[refusal.code], name, dict(refusal.metadata))


class Wire:
    """Sends any bytes to any method."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def send(self, method: str, raw: bytes) -> Answer:
        """The answer; of a stream its first message, behind which it is cancelled."""
        descriptor = METHODS[method]
        path = f"/{descriptor.containing_service.full_name}/{method}"
        parse = GetMessageClass(descriptor.output_type).FromString
        try:
            if not descriptor.server_streaming:
                call: Any = self._channel.unary_unary(path, None, parse)
                return Answer(None, call(raw, metadata=METADATA, timeout=CALL_TIMEOUT_SECONDS))
            streaming: Any = self._channel.unary_stream(path, None, parse)
            stream = streaming(raw, metadata=METADATA, timeout=CALL_TIMEOUT_SECONDS)
            first = next(stream, None)
            stream.cancel()
            return Answer(None, first)
        except grpc.RpcError as error:
            return _refused(error)


def _refused(error: Any) -> Answer:
    status = status_pb2.Status()
    details = dict(error.trailing_metadata() or ()).get(DETAILS)
    if details is None:
        return Answer(Refused(error.code().name, "", {}), None)
    status.ParseFromString(details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "wallet.punchcard"
    return Answer(Refused(error.code().name, info.reason, dict(info.metadata)), None, status)


class Eye:
    """Sees what has changed in a wallet's database since it last looked. The journal's rows are known by their hash."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._file: sqlite3.Connection | None = None
        self._server: asyncpg.Connection | None = None
        if url.startswith("sqlite:"):
            self._file = sqlite3.connect(url.removeprefix("sqlite:"), isolation_level=None)
            self._file.row_factory = sqlite3.Row
        else:
            self._server = self._loop.run_until_complete(asyncpg.connect(url))
        self._version = -1
        self._revision = 0
        self._seen: object = None
        self.changed()

    def close(self) -> None:
        """Closes its connection."""
        if self._file is not None:
            self._file.close()
        if self._server is not None:
            self._loop.run_until_complete(self._server.close())
        self._loop.close()

    def changed(self) -> list[str] | None:
        """The kinds of the journal's new rows, or None when nothing at all has changed.

        When something is due next is left out: it is a hint that any command may sharpen.
        """
        if self._file is not None:
            version = self._file.execute("PRAGMA data_version").fetchone()[0]
            if version == self._version:
                return None
            self._version = version
        new = self._rows(f"SELECT revision, kind FROM journal WHERE revision > {self._revision} ORDER BY revision")
        self._revision = new[-1]["revision"] if new else self._revision
        now = {
            name: sorted(map(_but_for_hints, self._rows(sql))) for name, sql in EVERYTHING.items() if name != "journal"
        }
        same, self._seen = now == self._seen, now
        return None if same and not new else [row["kind"] for row in new]

    def _rows(self, sql: str) -> list[Row]:
        if self._file is not None:
            return [dict(row) for row in self._file.execute(sql)]
        assert self._server is not None
        return [dict(row) for row in self._loop.run_until_complete(self._server.fetch(sql))]


def _but_for_hints(row: Row) -> tuple[str, ...]:
    return tuple(repr(value) for name, value in row.items() if name != "due_time_us")


@contextmanager
def watched(url: str) -> Iterator[Eye]:
    """An eye on a database."""
    with closing(Eye(url)) as eye:
        yield eye


def _words_of_earning(name: str) -> dict[str, list[str]]:
    keys = [f"{name}-key-{number}" for number in range(6)]
    return {
        "claim_id": keys,
        "activity_id": keys,
        "conversion_id": keys,
        "activity": ["feedback", "share", "invite", "nap"],
        "achievement": ["profile_complete", "first_job", "streak_7", "nap"],
        "version": [f"{name}-{number}" for number in range(3)],
        "cohort": ["", "trial"],
        "rules_json": ["{}", '{"daily_bonus": 3}', '{"points_per_token": 1}', '{"daily_bonus": -1}', "[]", "{"],
        "asset": ["", "TOKEN", "POINT", "EURO"],
        "first_day": ["", "", "2026-01-01", "2026-02-30"],
        "last_day": ["", "", "9999-12-30", "9999-12-31"],
        "counterparty": ["", "", "@issue", "rich", "@", "a b"],
    }


def _words_of_sharing(name: str) -> dict[str, list[str]]:
    """Few keys for many calls, so that some are repeated; the world's own offers can be taken and cancelled."""
    some = [*ACCOUNTS, "nobody"]
    return {
        "team_id": ["team", "team", "rich", "nobody", f"{name}-team"],
        "member_account_id": some,
        "owner_account_id": some,
        "acting_account_id": ["", "", "rich", "poor", "nobody"],
        "receiver_account_id": some,
        "seller_account_id": ["trader", "trader", *some],
        "gift_id": [f"{name}-gift-{number}" for number in range(4)],
        "offer_id": ["cheap", "dear", "sold", "ended", *(f"{name}-offer-{number}" for number in range(6))],
        "take_id": [f"{name}-take-{number}" for number in range(4)],
    }


HOLDS: Final = ("held", "late", "committed", "released", "small", "pinned")
ACCOUNTS: Final = ("rich", "poor", "lots", "frozen", "closed", "trader")


class World:
    """Accounts, grants and reservations in every state, for messages to collide with."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        for account_id in ACCOUNTS:
            self._do("OpenAccount", account_id=account_id)
        self._do("Grant", account_id="rich", grant_id="wealth", amount=10**15)
        self._begin_market()
        self._do("FreezeAccount", account_id="frozen", change_id="freeze-1")
        self._do("CloseAccount", account_id="closed", change_id="close-1", forfeit_balance=True)
        self._tokens = [token for account_id in ACCOUNTS for token in self._tokens_of(account_id)]

    def _begin_market(self) -> None:
        """Offers of the trader in each state but EXPIRED; rich and poor have points to buy with."""
        self._do("Grant", account_id="trader", grant_id="stock", amount=1_000)
        for account_id in ("rich", "poor"):
            self._do("GrantAchievement", account_id=account_id, achievement="profile_complete")
        for offer_id, tokens, price_points in (
            ("cheap", 10, 10),
            ("dear", 1, 10**9),
            ("sold", 1, 10),
            ("ended", 1, 10),
        ):
            self._do("CreateOffer", account_id="trader", offer_id=offer_id, tokens=tokens, price_points=price_points)
        self._do("TakeOffer", account_id="rich", take_id="t", seller_account_id="trader", offer_id="sold", tokens=1)
        self._do("CancelOffer", account_id="trader", offer_id="ended")
        self._do("OpenTeam", team_id="team", owner_account_id="rich")

    def words(self, name: str) -> dict[str, list[str]]:
        """Plausible strings by the name of a field. Grants and reservations are made anew under each `name`."""
        grants = [f"{name}-plain", f"{name}-lot", f"{name}-short"]
        self._do("Grant", account_id="rich", grant_id=grants[0], amount=9)
        self._do("Grant", account_id="lots", grant_id=grants[1], amount=9, lifetime=Duration(seconds=3600), priority=7)
        self._do("Grant", account_id="lots", grant_id=grants[2], amount=9, lifetime=Duration(seconds=1))
        holds = self._holds(name)
        words = {
            "account_id": [*ACCOUNTS[:3] * 2, *ACCOUNTS, "nobody", f"new-{name}"],
            "reservation_id": [*holds, *(f"{name}-next-{number}" for number in range(6))],
            "grant_id": [*grants, "wealth", "welcome:rich", *(f"{name}-next-{number}" for number in range(8))],
            "refund_id": ["", "", "refund-1", "amend-1", "refund-2"],
            "amend_id": ["amend-1", "refund-1", "amend-2"],
            "change_id": ["freeze-1", "close-1", *(f"{name}-{number}" for number in range(4))],
            "created_by": ["", "", "", "", "", "", MAKER, "somebody"],
            "payer_account_id": ["", "", "", "", "", *ACCOUNTS, "nobody"],
            "reference": ["", "why"],
            "price_version": ["", "v1"],
            **_words_of_earning(name),
            **_words_of_sharing(name),
        }
        everything = sorted({word for some in words.values() for word in some} | set(self._tokens))
        tokens = [""] * 10 + self._tokens
        return {**words, "page_token": tokens, "resume_token": tokens, "": everything}

    def _holds(self, name: str) -> list[str]:
        """Three reservations in each of several states."""
        holds = {state: [f"{name}-{state}-{number}" for number in range(3)] for state in HOLDS}
        reserves, settlements = [], []
        for state, ids in holds.items():
            account_id, amount = {"small": ("poor", 1), "pinned": ("lots", 2)}.get(state, ("rich", 5))
            fields = {"account_id": account_id, "amount": amount}
            duration = Duration(seconds=1 if state == "late" else 3600)
            reserves += [{**fields, "reservation_id": hold, "hold_duration": duration} for hold in ids]
        for committed, released, held in zip(holds["committed"], holds["released"], holds["held"], strict=True):
            settlements += [
                {"commit": {"reservation_id": committed, "amount": 4}},
                {"refund": {"reservation_id": committed, "refund_id": "refund-1", "amount": 1}},
                {"refund": {"reservation_id": released}},
                {"amend": {"reservation_id": held, "amend_id": "amend-1", "amount": 4}},
            ]
        self._do("BatchReserve", items=reserves)
        self._do("BatchSettle", items=settlements)
        return [hold for ids in holds.values() for hold in ids]

    def _do(self, method: str, **fields: Any) -> Answer:
        request = GetMessageClass(METHODS[method].input_type)(**fields)
        return self._wire.send(method, request.SerializeToString())

    def _tokens_of(self, account_id: str) -> Iterator[str]:
        """The tokens that answers about an account carry, to go on from."""
        for method in METHODS.values():
            output = method.output_type.fields_by_name
            if "account_id" not in method.input_type.fields_by_name:
                continue
            if "next_page_token" in output:
                answer = self._do(method.name, account_id=account_id, page_size=1)
            elif "resume_token" in output:
                answer = self._do(method.name, account_id=account_id)
            else:
                continue
            message = answer.message
            if message is not None:
                yield getattr(message, "next_page_token", "") or getattr(message, "resume_token", "") or "none"
