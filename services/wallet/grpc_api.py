"""The wallet on the wire: decode, hand to the ledger, encode. No rule lives here."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc

from punchcard.wallet.v1 import wallet_pb2, wallet_pb2_grpc
from services.chassis.auth import Principal, current_principal
from services.chassis.errors import ErrorTable, InvalidField, Row, ServerBusy
from services.chassis.fields import Checks
from services.chassis.group_commit import GroupCommitter
from services.chassis.interceptors import log_cause
from services.chassis.watch import RevisionCompacted, RevisionUnknown
from services.wallet import errors, grpc_audit, grpc_history, grpc_messages, grpc_pages, market_errors, sharing_errors
from services.wallet.commands import Command, Outcome
from services.wallet.grpc_watch import Watches
from services.wallet.store import Store
from services.wallet.store_audit import Audit
from services.wallet.store_reads import Place

SERVICE: Final = "punchcard.wallet.v1.WalletService"
ITEMS_MAX: Final = 1_000

SCOPES: Final[Mapping[str, str]] = {
    f"/{SERVICE}/OpenAccount": "account.open",
    f"/{SERVICE}/Grant": "wallet.grant",
    f"/{SERVICE}/RevokeGrant": "wallet.grant",
    f"/{SERVICE}/Reserve": "wallet.reserve",
    f"/{SERVICE}/PreviewReserve": "wallet.reserve",
    f"/{SERVICE}/Commit": "wallet.settle",
    f"/{SERVICE}/Refund": "wallet.settle",
    f"/{SERVICE}/Amend": "wallet.settle",
    f"/{SERVICE}/BatchReserve": "wallet.reserve",
    f"/{SERVICE}/BatchSettle": "wallet.settle",
    f"/{SERVICE}/GetAccount": "wallet.read",
    f"/{SERVICE}/GetReservation": "wallet.read",
    f"/{SERVICE}/ListReservations": "wallet.read",
    f"/{SERVICE}/ListTransactions": "wallet.read",
    f"/{SERVICE}/ListDaySummaries": "wallet.read",
    f"/{SERVICE}/GetBalanceAt": "wallet.read",
    f"/{SERVICE}/FreezeAccount": "wallet.admin",
    f"/{SERVICE}/UnfreezeAccount": "wallet.admin",
    f"/{SERVICE}/CloseAccount": "wallet.admin",
    f"/{SERVICE}/VerifyLedger": "wallet.admin",
    f"/{SERVICE}/WatchBalance": "wallet.read",
}
"""Which scope a method asks for. A method that is not here is open to nobody."""

_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

ERRORS: Final = ErrorTable(
    "wallet.punchcard",
    {
        errors.AccountNotFound: Row(_NOT_FOUND, "ACCOUNT_NOT_FOUND"),
        errors.ReservationNotFound: Row(_NOT_FOUND, "RESERVATION_NOT_FOUND"),
        errors.GrantNotFound: Row(_NOT_FOUND, "GRANT_NOT_FOUND"),
        errors.RuleNotFound: Row(_NOT_FOUND, "RULE_NOT_FOUND"),
        sharing_errors.TeamNotFound: Row(_NOT_FOUND, "TEAM_NOT_FOUND"),
        market_errors.OfferNotFound: Row(_NOT_FOUND, "OFFER_NOT_FOUND"),
        errors.IdempotencyMismatch: Row(grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_MISMATCH"),
        errors.ReservationCommitted: Row(_PRECONDITION, "RESERVATION_COMMITTED"),
        errors.ReservationReleased: Row(_PRECONDITION, "RESERVATION_RELEASED"),
        errors.ReservationExpired: Row(_PRECONDITION, "RESERVATION_EXPIRED"),
        errors.ReservationNotCommitted: Row(_PRECONDITION, "RESERVATION_NOT_COMMITTED"),
        errors.CommitExceedsReservation: Row(_PRECONDITION, "COMMIT_EXCEEDS_RESERVATION"),
        errors.RefundExceedsCommitted: Row(_PRECONDITION, "REFUND_EXCEEDS_COMMITTED"),
        errors.AmendNotAllowed: Row(_PRECONDITION, "AMEND_NOT_ALLOWED"),
        sharing_errors.RoleTooLow: Row(grpc.StatusCode.PERMISSION_DENIED, "ROLE_TOO_LOW"),
        sharing_errors.LimitRaiseNotAllowed: Row(grpc.StatusCode.PERMISSION_DENIED, "LIMIT_RAISE_NOT_ALLOWED"),
        errors.AccountClosed: Row(_PRECONDITION, "ACCOUNT_CLOSED"),
        errors.AccountFrozen: Row(_PRECONDITION, "ACCOUNT_FROZEN"),
        errors.AccountNotEmpty: Row(_PRECONDITION, "ACCOUNT_NOT_EMPTY"),
        errors.LotLimit: Row(_PRECONDITION, "LOT_LIMIT"),
        sharing_errors.NotAMember: Row(_PRECONDITION, "NOT_A_MEMBER"),
        sharing_errors.LastOwner: Row(_PRECONDITION, "LAST_OWNER"),
        sharing_errors.MemberLimit: Row(_PRECONDITION, "MEMBER_LIMIT"),
        market_errors.OfferEnded: Row(_PRECONDITION, "OFFER_ENDED"),
        market_errors.OfferExceeded: Row(_PRECONDITION, "OFFER_EXCEEDED"),
        market_errors.OfferLimit: Row(_PRECONDITION, "OFFER_LIMIT"),
        market_errors.OfferTerms: Row(_PRECONDITION, "OFFER_TERMS"),
        errors.DailyBonusClaimed: Row(_PRECONDITION, "DAILY_BONUS_CLAIMED"),
        errors.LimitReached: Row(_PRECONDITION, "LIMIT_REACHED"),
        errors.RulesLimit: Row(_PRECONDITION, "RULES_LIMIT"),
        errors.InsufficientPoints: Row(_PRECONDITION, "INSUFFICIENT_POINTS"),
        errors.InsufficientFunds: Row(_PRECONDITION, "INSUFFICIENT_FUNDS"),
        sharing_errors.WelcomeLocked: Row(_PRECONDITION, "WELCOME_LOCKED"),
        errors.BalanceLimit: Row(_PRECONDITION, "BALANCE_LIMIT"),
        RevisionUnknown: Row(grpc.StatusCode.OUT_OF_RANGE, "REVISION_UNKNOWN"),
        RevisionCompacted: Row(grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED"),
    },
)
"""How each refusal looks on the wire."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class WalletApi(wallet_pb2_grpc.WalletServiceServicer):
    """The methods of the wallet."""

    def __init__(
        self,
        store: Store,
        committer: GroupCommitter[Command, Outcome],
        audit: Audit,
        watches: Watches,
        token_scale: int,
    ) -> None:
        self._store = store
        self._audit = audit
        self._auditing = False
        self._committer = committer
        self._scale = token_scale
        self._watches = watches

    async def OpenAccount(self, request: wallet_pb2.OpenAccountRequest, context: Any) -> wallet_pb2.OpenAccountResponse:
        outcome = await self._do(grpc_messages.open_account_command(request, current_principal()))
        return wallet_pb2.OpenAccountResponse(account=self._account(outcome), replayed=outcome.replayed)

    async def Grant(self, request: wallet_pb2.GrantRequest, context: Any) -> wallet_pb2.GrantResponse:
        outcome = await self._do(grpc_messages.grant_command(request, current_principal()))
        return wallet_pb2.GrantResponse(account=self._account(outcome), replayed=outcome.replayed)

    async def RevokeGrant(self, request: wallet_pb2.RevokeGrantRequest, context: Any) -> wallet_pb2.RevokeGrantResponse:
        outcome = await self._do(grpc_messages.revoke_command(request, current_principal()))
        return wallet_pb2.RevokeGrantResponse(
            account=self._account(outcome), revoked=outcome.revoked, replayed=outcome.replayed
        )

    async def PreviewReserve(
        self, request: wallet_pb2.PreviewReserveRequest, context: Any
    ) -> wallet_pb2.PreviewReserveResponse:
        outcome = await self._do(grpc_messages.preview_command(request, current_principal()))
        answer = wallet_pb2.PreviewReserveResponse(
            lots=[grpc_messages.lot_message(lot) for lot in outcome.lots], replayed=outcome.replayed
        )
        if outcome.account is not None:
            answer.balance.CopyFrom(grpc_messages.balance_message(outcome.account, self._scale))
        if outcome.reservation is not None:
            answer.pins.extend(grpc_messages.pin_messages(outcome.reservation.pins))
        return answer

    async def FreezeAccount(
        self, request: wallet_pb2.FreezeAccountRequest, context: Any
    ) -> wallet_pb2.FreezeAccountResponse:
        outcome = await self._do(grpc_messages.change_command(request, current_principal(), "freeze"))
        return wallet_pb2.FreezeAccountResponse(account=self._account(outcome), replayed=outcome.replayed)

    async def UnfreezeAccount(
        self, request: wallet_pb2.UnfreezeAccountRequest, context: Any
    ) -> wallet_pb2.UnfreezeAccountResponse:
        outcome = await self._do(grpc_messages.change_command(request, current_principal(), "unfreeze"))
        return wallet_pb2.UnfreezeAccountResponse(account=self._account(outcome), replayed=outcome.replayed)

    async def CloseAccount(
        self, request: wallet_pb2.CloseAccountRequest, context: Any
    ) -> wallet_pb2.CloseAccountResponse:
        outcome = await self._do(grpc_messages.change_command(request, current_principal(), "close"))
        return wallet_pb2.CloseAccountResponse(account=self._account(outcome), replayed=outcome.replayed)

    async def Reserve(self, request: wallet_pb2.ReserveRequest, context: Any) -> wallet_pb2.ReserveResponse:
        outcome = await self._do(grpc_messages.reserve_command(request, current_principal()))
        return wallet_pb2.ReserveResponse(**self._ended(outcome))

    async def Commit(self, request: wallet_pb2.CommitRequest, context: Any) -> wallet_pb2.CommitResponse:
        outcome = await self._do(grpc_messages.commit_command(request, current_principal()))
        return wallet_pb2.CommitResponse(**self._ended(outcome))

    async def Refund(self, request: wallet_pb2.RefundRequest, context: Any) -> wallet_pb2.RefundResponse:
        outcome = await self._do(grpc_messages.refund_command(request, current_principal()))
        return wallet_pb2.RefundResponse(**self._ended(outcome))

    async def Amend(self, request: wallet_pb2.AmendRequest, context: Any) -> wallet_pb2.AmendResponse:
        outcome = await self._do(grpc_messages.amend_command(request, current_principal()))
        return wallet_pb2.AmendResponse(**self._ended(outcome))

    async def BatchReserve(
        self, request: wallet_pb2.BatchReserveRequest, context: Any
    ) -> wallet_pb2.BatchReserveResponse:
        outcomes = await self._do_many(request.items, grpc_messages.reserve_command)
        return wallet_pb2.BatchReserveResponse(results=[_reserve_result(outcome) for outcome in outcomes])

    async def BatchSettle(self, request: wallet_pb2.BatchSettleRequest, context: Any) -> wallet_pb2.BatchSettleResponse:
        outcomes = await self._do_many(request.items, grpc_messages.settle_command)
        return wallet_pb2.BatchSettleResponse(results=[_settle_result(outcome) for outcome in outcomes])

    async def GetAccount(self, request: wallet_pb2.GetAccountRequest, context: Any) -> wallet_pb2.GetAccountResponse:
        account_id = _readable_account(request.account_id)
        found = await self._store.holdings(account_id)
        if found is None:
            raise errors.AccountNotFound(account_id)
        account = grpc_messages.account_message(found.account, self._scale, found.lots)
        return wallet_pb2.GetAccountResponse(account=account)

    async def GetReservation(
        self, request: wallet_pb2.GetReservationRequest, context: Any
    ) -> wallet_pb2.GetReservationResponse:
        checks = Checks()
        reservation_id = checks.id("reservation_id", request.reservation_id)
        created_by = checks.optional_id("created_by", request.created_by)
        checks.done()
        created_by = grpc_messages.maker(current_principal(), created_by, reservation_id)
        found = await self._store.reservation(created_by, reservation_id)
        if found is None:
            raise errors.ReservationNotFound(reservation_id)
        return wallet_pb2.GetReservationResponse(reservation=grpc_messages.reservation_message(found))

    async def ListReservations(
        self, request: wallet_pb2.ListReservationsRequest, context: Any
    ) -> wallet_pb2.ListReservationsResponse:
        size = grpc_pages.page_size(request.page_size)
        account_id = _readable_account(request.account_id)
        after = grpc_pages.reservations_place(request.page_token, account_id)
        found = await self._store.open_reservations(account_id, after, size)
        if found is None:
            raise errors.AccountNotFound(account_id)
        token = ""
        if len(found) == size:
            last = found[-1]
            place = Place(last.expire_time_us, last.created_by, last.reservation_id)
            token = grpc_pages.reservations_token(account_id, place)
        return wallet_pb2.ListReservationsResponse(
            reservations=[grpc_messages.reservation_message(each) for each in found], next_page_token=token
        )

    async def ListTransactions(
        self, request: wallet_pb2.ListTransactionsRequest, context: Any
    ) -> wallet_pb2.ListTransactionsResponse:
        return await grpc_history.list_transactions(self._store, request, _readable_account(request.account_id))

    async def ListDaySummaries(
        self, request: wallet_pb2.ListDaySummariesRequest, context: Any
    ) -> wallet_pb2.ListDaySummariesResponse:
        return await grpc_history.list_days(self._store, request, _readable_account(request.account_id))

    async def GetBalanceAt(
        self, request: wallet_pb2.GetBalanceAtRequest, context: Any
    ) -> wallet_pb2.GetBalanceAtResponse:
        checks = Checks()
        time_us = checks.time_us("time", request.time if request.HasField("time") else None)
        if time_us > await self._store.now_us():
            checks.fail("time", request.time.ToJsonString(), "must not be in the future")
        checks.done()
        account_id = _readable_account(request.account_id)
        row = await self._store.row_at(account_id, time_us)
        if row is None:
            raise errors.AccountNotFound(account_id)
        return grpc_messages.balance_at_message(row, self._scale)

    async def VerifyLedger(
        self, request: wallet_pb2.VerifyLedgerRequest, context: Any
    ) -> AsyncGenerator[wallet_pb2.VerifyLedgerResponse, None]:
        checks = Checks()
        newest = await self._store.revision()
        if not 0 <= request.up_to_revision <= newest:
            checks.fail("up_to_revision", request.up_to_revision, f"must be 0 to {newest}, the newest")
        checks.done()
        if self._auditing:
            raise ServerBusy(1)
        self._auditing = True
        try:
            async with aclosing(self._audit.run(request.up_to_revision)) as events:
                async for event in events:
                    yield grpc_audit.audit_message(event)
        finally:
            self._auditing = False

    async def WatchBalance(
        self, request: wallet_pb2.WatchBalanceRequest, context: Any
    ) -> AsyncGenerator[wallet_pb2.WatchBalanceResponse, None]:
        account_id = _readable_account(request.account_id)
        async with aclosing(self._watches.watch(account_id, request.resume_token, current_principal())) as messages:
            async for message in messages:
                yield message

    async def _do(self, command: Command) -> Outcome:
        return await self._committer.submit(command)

    async def _do_many(
        self, items: Sequence[Item], decode: Callable[[Item, Principal, str], Command]
    ) -> list[Outcome | wallet_pb2.Refusal]:
        """Decides a batch in order; what can't be decoded is refused in its place."""
        checks = Checks()
        checks.count("items", items, ITEMS_MAX)
        checks.done()
        principal = current_principal()
        results: list[Outcome | Exception | None] = [None] * len(items)
        commands: list[Command] = []
        places: list[int] = []
        for place, item in enumerate(items):
            try:
                commands.append(decode(item, principal, f"items[{place}]."))
                places.append(place)
            except (InvalidField, errors.Refusal) as refusal:
                results[place] = refusal
        for place, outcome in zip(places, await self._committer.submit_many(commands), strict=True):
            results[place] = outcome
        return _with_refusals([result for result in results if result is not None])

    def _account(self, outcome: Outcome) -> wallet_pb2.Account:
        if outcome.account is None:
            raise ValueError("a command on an account came to no account")
        return grpc_messages.account_message(outcome.account, self._scale)

    def _ended(self, outcome: Outcome) -> dict[str, Any]:
        if outcome.reservation is None:
            raise ValueError("a command on a reservation came to no reservation")
        fields: dict[str, Any] = {
            "reservation": grpc_messages.reservation_message(outcome.reservation),
            "replayed": outcome.replayed,
        }
        if outcome.account is not None:
            fields["balance"] = grpc_messages.balance_message(outcome.account, self._scale)
        return fields


def _with_refusals(outcomes: Sequence[Outcome | Exception]) -> list[Outcome | wallet_pb2.Refusal]:
    """Errors as refusals. Items that share an error, as all do when the store is lost, share its one log line."""
    refusals: dict[Exception, wallet_pb2.Refusal] = {}
    for error in outcomes:
        if isinstance(error, Exception) and error not in refusals:
            judged = ERRORS.outcome(error)
            log_cause(judged, error)
            refusals[error] = grpc_messages.refusal_message(judged)
    return [refusals[outcome] if isinstance(outcome, Exception) else outcome for outcome in outcomes]


def _reserve_result(outcome: Outcome | wallet_pb2.Refusal) -> wallet_pb2.BatchReserveResult:
    if isinstance(outcome, wallet_pb2.Refusal):
        return wallet_pb2.BatchReserveResult(refusal=outcome)
    made = outcome.reservation
    if made is None:
        raise ValueError("a Reserve came to no reservation")
    return wallet_pb2.BatchReserveResult(
        state=grpc_messages.STATES[made.state],
        reserved=made.reserved,
        expire_time=grpc_messages.timestamp(made.expire_time_us),
        revision=made.revision,
        replayed=outcome.replayed,
    )


def _settle_result(outcome: Outcome | wallet_pb2.Refusal) -> wallet_pb2.BatchSettleResult:
    if isinstance(outcome, wallet_pb2.Refusal):
        return wallet_pb2.BatchSettleResult(refusal=outcome)
    ended = outcome.reservation
    if ended is None:
        raise ValueError("a settlement came to no reservation")
    return wallet_pb2.BatchSettleResult(
        state=grpc_messages.STATES[ended.state],
        reserved=ended.reserved,
        committed=ended.committed,
        released=ended.released,
        expired=ended.expired,
        refunded=ended.refunded,
        expire_time=grpc_messages.timestamp(ended.expire_time_us),
        revision=ended.revision,
        replayed=outcome.replayed,
    )


def _readable_account(account_id: str) -> str:
    checks = Checks()
    checks.id("account_id", account_id)
    checks.done()
    grpc_messages.check_account(current_principal(), account_id)
    return account_id
