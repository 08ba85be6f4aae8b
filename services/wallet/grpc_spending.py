"""Spending limits on the wire: decode, hand to the ledger, encode."""

from collections.abc import Mapping
from typing import Any, Final

from punchcard.wallet.v1 import spending_pb2, spending_pb2_grpc
from services.chassis.auth import current_principal
from services.chassis.fields import Checks
from services.chassis.group_commit import GroupCommitter
from services.wallet import calendar_day
from services.wallet.commands import Command, Outcome
from services.wallet.errors import AccountNotFound
from services.wallet.grpc_messages import ADMIN_SCOPE, REFERENCE_CHARS_MAX, check_account, spending_message
from services.wallet.sharing import SpendingLimits
from services.wallet.sharing_commands import SetLimits
from services.wallet.store_spending import SpendingReads, Standing

SERVICE: Final = "punchcard.wallet.v1.SpendingService"

SCOPES: Final[Mapping[str, str]] = {
    f"/{SERVICE}/SetSpendingLimits": "wallet.limit",
    f"/{SERVICE}/GetSpendingLimits": "wallet.read",
}
"""Which scope a method asks for. A method that is not here is open to nobody."""


class SpendingApi(spending_pb2_grpc.SpendingServiceServicer):
    """The methods of spending limits."""

    def __init__(self, committer: GroupCommitter[Command, Outcome], reads: SpendingReads) -> None:
        self._committer = committer
        self._reads = reads

    async def SetSpendingLimits(
        self, request: spending_pb2.SetSpendingLimitsRequest, context: Any
    ) -> spending_pb2.SetSpendingLimitsResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        change_id = checks.id("change_id", request.change_id)
        day_limit = month_limit = None
        if request.HasField("day_limit"):
            day_limit = checks.amount("day_limit", request.day_limit, 0)
        if request.HasField("month_limit"):
            month_limit = checks.amount("month_limit", request.month_limit, 0)
        reference = checks.text("reference", request.reference, REFERENCE_CHARS_MAX)
        checks.done()
        principal = current_principal()
        check_account(principal, account_id)
        counted_to, counted = await self._reads.counted(account_id)
        may_raise = principal.may(ADMIN_SCOPE)
        outcome = await self._committer.submit(
            SetLimits(
                principal.subject,
                account_id,
                change_id,
                day_limit,
                month_limit,
                reference,
                may_raise,
                counted_to,
                counted,
            )
        )
        if outcome.limits is None:
            raise ValueError("a SetLimits came to no limits")
        return spending_pb2.SetSpendingLimitsResponse(limits=_limits(outcome.limits), replayed=outcome.replayed)

    async def GetSpendingLimits(
        self, request: spending_pb2.GetSpendingLimitsRequest, context: Any
    ) -> spending_pb2.GetSpendingLimitsResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        checks.done()
        check_account(current_principal(), account_id)
        standing = await self._reads.standing(account_id)
        if standing is None:
            raise AccountNotFound(account_id)
        return standing_message(standing)


def standing_message(standing: Standing) -> spending_pb2.GetSpendingLimitsResponse:
    """What an account has spent and may spend."""
    limits, day, zone = standing.limits, standing.day, standing.zone
    answer = spending_pb2.GetSpendingLimitsResponse(limits=_limits(limits))
    if limits.day_limit is not None or limits.month_limit is not None:
        next_day_us = calendar_day.start_us(day + 1, zone)
        next_month_us = calendar_day.start_us(calendar_day.next_month(day), zone)
        answer.day.CopyFrom(spending_message(standing.day_used, limits.day_limit, next_day_us))
        answer.month.CopyFrom(spending_message(standing.month_used, limits.month_limit, next_month_us))
    return answer


def _limits(limits: SpendingLimits) -> spending_pb2.SpendingLimits:
    return spending_pb2.SpendingLimits(
        account_id=limits.account_id,
        day_limit=limits.day_limit,
        month_limit=limits.month_limit,
        revision=limits.revision,
    )
