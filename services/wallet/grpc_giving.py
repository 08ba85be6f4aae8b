"""Gifts on the wire: decode, hand to the ledger, encode."""

from collections.abc import Mapping
from typing import Any, Final

from punchcard.wallet.v1 import giving_pb2, giving_pb2_grpc
from services.chassis.auth import current_principal
from services.chassis.fields import Checks
from services.chassis.group_commit import GroupCommitter
from services.wallet.commands import Command, Outcome
from services.wallet.grpc_messages import REFERENCE_CHARS_MAX, check_account
from services.wallet.sharing_commands import Give

SERVICE: Final = "punchcard.wallet.v1.GivingService"

SCOPES: Final[Mapping[str, str]] = {f"/{SERVICE}/Give": "wallet.give"}
"""Which scope a method asks for. A method that is not here is open to nobody."""


class GivingApi(giving_pb2_grpc.GivingServiceServicer):
    """The methods by which accounts give."""

    def __init__(self, committer: GroupCommitter[Command, Outcome]) -> None:
        self._committer = committer

    async def Give(self, request: giving_pb2.GiveRequest, context: Any) -> giving_pb2.GiveResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        receiver_id = checks.id("receiver_account_id", request.receiver_account_id)
        if receiver_id and receiver_id == account_id:
            checks.fail("receiver_account_id", receiver_id, "must be another account than the giver's")
        gift_id = checks.id("gift_id", request.gift_id)
        amount = checks.amount("amount", request.amount)
        reference = checks.text("reference", request.reference, REFERENCE_CHARS_MAX)
        checks.done()
        principal = current_principal()
        check_account(principal, account_id)
        outcome = await self._committer.submit(
            Give(principal.subject, account_id, receiver_id, gift_id, amount, reference)
        )
        if outcome.account is None or outcome.gift is None:
            raise ValueError("a Give came to no gift")
        return giving_pb2.GiveResponse(
            tokens=outcome.account.balance, revision=outcome.gift.revision, replayed=outcome.replayed
        )
