"""The wallet, as the batcher's loops use it: many commands a call, a definite answer for each or none at all.

    Held, Settled       it is done, now or before
    Refused             it is not done and never will be by itself, with the wallet's reason and numbers
    WalletUnavailable   nobody knows: ask again with the same key, which makes that safe

A mistake of ours (a token that ran out, a scope that is missing) is WalletUnavailable too: no job is to blame for it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import error_reason_pb2, wallet_pb2, wallet_pb2_grpc
from punchcard_client import connect, reason_of

ITEMS_MAX = 1_000

# All other statuses leave open whether the command was done, or say that we, not the job, are at fault.
_DEFINITE = frozenset(
    status.value[0]
    for status in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
    )
)


class WalletUnavailable(Exception):
    """What became of the command is not known. reason: an ErrorReason of the wallet, or the status of the call."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"the wallet gave no answer: {reason}: {message}")
        self.reason = reason


class Reserve(NamedTuple):
    """Holds tokens. A retry must name the same duration: it is part of what the key stands for."""

    reservation_id: str
    account_id: str
    payer_account_id: str
    amount: int
    hold_duration_us: int
    price_version: str = ""
    reference: str = ""


class Commit(NamedTuple):
    """Takes held tokens; None takes all. Late: also when the hold has run out, from what the account has."""

    reservation_id: str
    amount: int | None = None
    allow_late: bool = True


class Release(NamedTuple):
    """Gives a hold back, or blocks its id before it is used. grace: whether the work failed on our side."""

    reservation_id: str
    grace: bool = False


class Amend(NamedTuple):
    """Lowers a hold, or makes it last this long from now. amend_id: the key of this change."""

    reservation_id: str
    amend_id: str
    amount: int | None = None
    hold_duration_us: int | None = None


class GiveBack(NamedTuple):
    """Returns all that was committed and not returned yet. refund_id: the key of this."""

    reservation_id: str
    refund_id: str
    grace: bool = False


class Held(NamedTuple):
    """The tokens are held until then."""

    expire_time_us: int
    replayed: bool


class Settled(NamedTuple):
    """The command is done; where the reservation stands now, in the words of the wallet's ReservationState."""

    state: str
    committed: int
    expire_time_us: int
    replayed: bool


class Refused(NamedTuple):
    """A definite no. reason and metadata as in the wallet's ErrorReason."""

    reason: str
    message: str
    metadata: dict[str, str]


Settle: TypeAlias = Commit | Release | Amend | GiveBack
Item = TypeVar("Item")


class TokenFile:
    """A bearer token in a file, read again whenever the file changes: tokens are rotated under running processes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def token(self) -> str:
        """The token of now; empty without a file. Raises OSError while there is none to be read and was none before."""
        if self._path is None:
            return ""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                self._token, self._seen = self._path.read_text("ascii").strip(), seen
        except (OSError, ValueError):
            # A file that is just being replaced is there again at the next call; the former token may still do.
            if not self._token:
                raise
        return self._token


class WalletClient:
    """A client of the wallet; it connects when it is first used.

    ca_file: certificates that the wallet's own is checked by; without it the channel is not encrypted.
    """

    def __init__(
        self, address: str, token_file: Path | None, timeout_seconds: float, *, ca_file: Path | None = None
    ) -> None:
        tls = grpc.ssl_channel_credentials(ca_file.read_bytes()) if ca_file else None
        self._token = TokenFile(token_file)
        self._channel = connect(address, lambda: self._now, tls=tls)
        self._now = ""
        self._stub = wallet_pb2_grpc.WalletServiceStub(self._channel)
        self._timeout_seconds = timeout_seconds

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def reserve_many(self, commands: Sequence[Reserve]) -> list[Held | Refused | WalletUnavailable]:
        """Up to 1,000 in one call; an answer for each, in order. Raises WalletUnavailable when there is none at all."""
        request = wallet_pb2.BatchReserveRequest(items=[_reserve_item(command) for command in _bounded(commands)])
        self._read_token()
        try:
            response = await self._stub.BatchReserve(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        return [_held(result) for result in _complete(response.results, len(commands))]

    async def settle_many(self, commands: Sequence[Settle]) -> list[Settled | Refused | WalletUnavailable]:
        """Up to 1,000 in one call; an answer for each, in order. Raises WalletUnavailable when there is none at all."""
        request = wallet_pb2.BatchSettleRequest(items=[_settle_item(command) for command in _bounded(commands)])
        self._read_token()
        try:
            response = await self._stub.BatchSettle(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        return [_settled(result) for result in _complete(response.results, len(commands))]

    def _read_token(self) -> None:
        """Takes the token of now for the calls to come. Raises WalletUnavailable where there is none to be read."""
        try:
            self._now = self._token.token()
        except (OSError, ValueError) as error:
            raise WalletUnavailable("TOKEN_MISSING", f"the token file can't be read: {error}") from error


def _bounded(commands: Sequence[Item]) -> Sequence[Item]:
    if not 0 < len(commands) <= ITEMS_MAX:
        raise ValueError(f"a call has 1 to {ITEMS_MAX} items, not {len(commands)}")
    return commands


def _complete(results: Sequence[Item], items: int) -> Sequence[Item]:
    if len(results) != items:
        raise WalletUnavailable("INTERNAL", f"{len(results)} results for {items} items")
    return results


def _unavailable(error: grpc.aio.AioRpcError) -> WalletUnavailable:
    """Names the wallet's own reason where the status has one, or else the status."""
    reason = reason_of(error)
    return WalletUnavailable(reason.name if reason else error.code().name, error.details() or "")


def _duration(microseconds: int) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(microseconds)
    return duration


def _reserve_item(command: Reserve) -> wallet_pb2.ReserveRequest:
    payer = command.payer_account_id
    return wallet_pb2.ReserveRequest(
        account_id=command.account_id,
        payer_account_id="" if payer == command.account_id else payer,
        reservation_id=command.reservation_id,
        amount=command.amount,
        hold_duration=_duration(command.hold_duration_us),
        price_version=command.price_version,
        reference=command.reference,
    )


def _settle_item(command: Settle) -> wallet_pb2.SettleItem:
    if isinstance(command, Commit):
        return wallet_pb2.SettleItem(
            commit=wallet_pb2.CommitRequest(
                reservation_id=command.reservation_id, amount=command.amount, allow_late=command.allow_late
            )
        )
    if isinstance(command, GiveBack):
        return wallet_pb2.SettleItem(
            refund=wallet_pb2.RefundRequest(
                reservation_id=command.reservation_id, refund_id=command.refund_id, grace=command.grace
            )
        )
    if isinstance(command, Release):
        return wallet_pb2.SettleItem(
            refund=wallet_pb2.RefundRequest(reservation_id=command.reservation_id, grace=command.grace)
        )
    return wallet_pb2.SettleItem(
        amend=wallet_pb2.AmendRequest(
            reservation_id=command.reservation_id,
            amend_id=command.amend_id,
            amount=command.amount,
            hold_duration=None if command.hold_duration_us is None else _duration(command.hold_duration_us),
        )
    )


def _held(result: wallet_pb2.BatchReserveResult) -> Held | Refused | WalletUnavailable:
    """Reads the answer to a reserve. One that was made before and has ended holds nothing, so that it is a refusal."""
    if result.HasField("refusal"):
        return _refused(result.refusal)
    if result.state == wallet_pb2.RESERVATION_STATE_HELD:
        return Held(result.expire_time.ToMicroseconds(), result.replayed)
    state = _STATES.get(result.state)
    if state is None:
        return _stateless()
    return Refused(f"RESERVATION_{state}", f"the reservation was made before and is {state} now", {})


def _settled(result: wallet_pb2.BatchSettleResult) -> Settled | Refused | WalletUnavailable:
    if result.HasField("refusal"):
        return _refused(result.refusal)
    state = _STATES.get(result.state)
    if state is None:
        return _stateless()
    return Settled(state, result.committed, result.expire_time.ToMicroseconds(), result.replayed)


def _stateless() -> WalletUnavailable:
    return WalletUnavailable("INTERNAL", "a result has neither a state that we know nor a refusal")


_STATES: dict[int, str] = {
    wallet_pb2.RESERVATION_STATE_HELD: "HELD",
    wallet_pb2.RESERVATION_STATE_COMMITTED: "COMMITTED",
    wallet_pb2.RESERVATION_STATE_RELEASED: "RELEASED",
    wallet_pb2.RESERVATION_STATE_EXPIRED: "EXPIRED",
}


def _refused(refusal: wallet_pb2.Refusal) -> Refused | WalletUnavailable:
    try:
        reason = error_reason_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")
    except ValueError:
        # A newer wallet has reasons that we do not know; the status still says whether it is a definite no.
        reason = f"REASON_{int(refusal.reason)}"
    if refusal.code not in _DEFINITE:
        return WalletUnavailable(reason, refusal.message)
    return Refused(reason, refusal.message, dict(refusal.metadata))
