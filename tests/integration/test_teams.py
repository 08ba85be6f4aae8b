"""TeamService and holds that a team pays for, through a whole wallet, on both databases."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import teams_pb2, teams_pb2_grpc, wallet_pb2
from tests.tokens import bearer
from tests.wallets import EVERY_SCOPE, WalletClient, refused, wallet_at

SCOPES = f"{EVERY_SCOPE} wallet.team wallet.admin"
OWNER, MANAGER, MEMBER = teams_pb2.TEAM_ROLE_OWNER, teams_pb2.TEAM_ROLE_MANAGER, teams_pb2.TEAM_ROLE_MEMBER


class Teams:
    """A caller who may act for everybody, on one wallet with a team of 100 tokens whose owner is alice."""

    def __init__(self, wallet: WalletClient, channel: grpc.aio.Channel) -> None:
        self.wallet = wallet
        self._stub: Any = teams_pb2_grpc.TeamServiceStub(channel)
        self._numbers = iter(range(1_000_000))

    async def call(self, method: str, **fields: Any) -> Any:
        """The answer of a method of TeamService."""
        metadata = bearer("batcher", SCOPES, audience="punchcard.wallet")
        return await getattr(self._stub, method)(getattr(teams_pb2, f"{method}Request")(**fields), metadata=metadata)

    async def take_in(self, member: str, role: int = MEMBER, acting: str = "alice", **limits: int) -> Any:
        change_id = f"change-{next(self._numbers)}"
        return await self.call(
            "SetMember",
            team_id="team",
            change_id=change_id,
            acting_account_id=acting,
            member_account_id=member,
            role=role,
            **limits,
        )

    async def remove(self, member: str, acting: str = "alice") -> Any:
        change_id = f"change-{next(self._numbers)}"
        return await self.call(
            "RemoveMember", team_id="team", change_id=change_id, acting_account_id=acting, member_account_id=member
        )

    async def reserve(self, member: str, amount: int, key: str, payer: str = "team") -> Any:
        request = wallet_pb2.ReserveRequest(
            account_id=member,
            payer_account_id=payer,
            reservation_id=key,
            amount=amount,
            hold_duration=Duration(seconds=600),
        )
        return await self.wallet.call("Reserve", request)

    async def spent(self, member: str) -> tuple[int, int]:
        """What a member has spent today and this month."""
        answer = await self.call("GetSpending", team_id="team", acting_account_id="alice", member_account_id=member)
        return answer.spending.day.used, answer.spending.month.used

    async def intact(self) -> bool:
        metadata = bearer("boss", SCOPES, audience="punchcard.wallet")
        stream = self.wallet.stub.VerifyLedger(wallet_pb2.VerifyLedgerRequest(), metadata=metadata)
        return bool([answer async for answer in stream][-1].result.intact)


@pytest.fixture
async def teams(database_url: str, tmp_path: Path) -> AsyncIterator[Teams]:
    async with (
        wallet_at(database_url, tmp_path) as (wallet, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        made = Teams(wallet, channel)
        await made.call("OpenTeam", team_id="team", owner_account_id="alice")
        await wallet.call("Grant", wallet_pb2.GrantRequest(account_id="team", grant_id="g", amount=100))
        yield made


async def test_a_team_pays_for_its_members_within_their_limits_and_for_nobody_else(teams):
    await teams.take_in("bob", day_limit=5, month_limit=7)

    await teams.reserve("bob", 4, "r1")
    over = await refused(teams.reserve("bob", 2, "r2"))
    stranger = await refused(teams.reserve("mallory", 1, "r3"))
    itself = await refused(teams.reserve("team", 1, "r4"))

    assert over[:2] == ("FAILED_PRECONDITION", "LIMIT_REACHED")
    assert {name: over[2][name] for name in ("limited", "requested", "used", "limit")} == {
        "limited": "spend:bob",
        "requested": "2",
        "used": "4",
        "limit": "5",
    }
    assert over[2]["resets_at"].endswith("T00:00:00Z")
    assert stranger[1:] == ("NOT_A_MEMBER", {"team_id": "team", "account_id": "mallory"})
    assert itself[1] == "NOT_A_MEMBER"
    assert await teams.wallet.balance("team") == (100, 4)
    assert await teams.spent("bob") == (4, 4)
    assert await teams.intact()


async def test_what_a_hold_gives_back_may_be_spent_again_and_a_refund_gives_nothing_back(teams):
    await teams.take_in("bob", day_limit=10)
    await teams.reserve("bob", 6, "released")
    await teams.wallet.call("Refund", wallet_pb2.RefundRequest(reservation_id="released"))
    after_release = await teams.spent("bob")
    await teams.reserve("bob", 6, "partly")
    await teams.wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="partly", amount=4))
    after_commit = await teams.spent("bob")
    refund = wallet_pb2.RefundRequest(reservation_id="partly", refund_id="complaint", amount=4)
    await teams.wallet.call("Refund", refund)
    after_refund = await teams.spent("bob")
    await teams.reserve("bob", 6, "again")
    amend = wallet_pb2.AmendRequest(reservation_id="again", amend_id="a", amount=1)
    await teams.wallet.call("Amend", amend)

    assert (after_release, after_commit, after_refund) == ((0, 0), (4, 4), (4, 4))
    assert await teams.spent("bob") == (5, 5)
    assert await teams.wallet.balance("team") == (100, 1)
    assert await teams.intact()


async def test_a_removed_member_gets_nothing_more_and_what_it_holds_can_still_be_taken(teams):
    await teams.take_in("bob")
    await teams.reserve("bob", 3, "r1")

    await teams.remove("bob")
    refusal = await refused(teams.reserve("bob", 1, "r2"))
    await teams.wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="r1"))

    assert refusal[1] == "NOT_A_MEMBER"
    assert await teams.wallet.balance("team") == (97, 0)
    assert await teams.intact()


async def test_roles_say_who_may_change_whom_and_strangers_find_no_team(teams):
    await teams.take_in("mia", MANAGER)
    await teams.take_in("bob", acting="mia")

    by_member = await refused(teams.take_in("carl", acting="bob"))
    above = await refused(teams.take_in("carl", MANAGER, acting="mia"))
    owner = await refused(teams.remove("alice", acting="mia"))
    stranger = await refused(teams.take_in("carl", acting="mallory"))
    last = await refused(teams.remove("alice"))
    await teams.remove("bob", acting="bob")

    assert by_member[1:] == ("ROLE_TOO_LOW", {"team_id": "team", "account_id": "bob", "role": "MEMBER"})
    assert (above[1], owner[1]) == ("ROLE_TOO_LOW", "ROLE_TOO_LOW")
    assert stranger == ("NOT_FOUND", "TEAM_NOT_FOUND", {"team_id": "team"})
    assert last[1] == "LAST_OWNER"
    listed = await teams.call("ListMembers", team_id="team", acting_account_id="alice")
    assert {each.member.account_id: each.member.role for each in listed.members if each.member.role} == {
        "alice": OWNER,
        "mia": MANAGER,
    }


async def test_a_change_of_members_is_answered_again_and_not_made_again(teams):
    fields = {"team_id": "team", "change_id": "c", "acting_account_id": "alice", "member_account_id": "bob"}
    first = await teams.call("SetMember", role=MEMBER, day_limit=5, **fields)
    again = await teams.call("SetMember", role=MEMBER, day_limit=5, **fields)
    other = await refused(teams.call("SetMember", role=MEMBER, day_limit=6, **fields))

    assert (first.replayed, again.replayed, again.team.members) == (False, True, 2)
    assert other[1:] == ("IDEMPOTENCY_MISMATCH", {"field": "day_limit", "stored": "5", "received": "6"})


async def test_many_holds_at_once_never_pass_a_limit(teams):
    await teams.take_in("bob", day_limit=10)

    tries = [teams.reserve("bob", 3, f"r{number}") for number in range(20)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)

    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 3
    assert await teams.spent("bob") == (9, 9)
    assert await teams.intact()


async def test_who_spent_what_is_in_the_teams_history(teams):
    await teams.take_in("bob")
    await teams.reserve("bob", 3, "r1")
    await teams.wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="r1"))

    history = await teams.wallet.call("ListTransactions", wallet_pb2.ListTransactionsRequest(account_id="team"))

    commit = history.transactions[0]
    assert (commit.kind, commit.peer_account_id, commit.balance_change) == (
        wallet_pb2.TRANSACTION_KIND_COMMIT,
        "bob",
        -3,
    )
