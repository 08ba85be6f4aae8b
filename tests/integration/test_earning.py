"""EarningService through a whole wallet, on both databases."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from punchcard.wallet.v1 import earning_pb2, earning_pb2_grpc, wallet_pb2
from services.wallet.economy import Achievement, EarningRules, share_of
from tests.tokens import bearer
from tests.wallets import EVERY_SCOPE, WalletClient, refused, wallet_at

RULES = EarningRules()
SCOPES = f"{EVERY_SCOPE} wallet.earn wallet.admin"


class Earner:
    """A caller who may do everything, on one wallet."""

    def __init__(self, wallet: WalletClient, channel: grpc.aio.Channel) -> None:
        self.wallet = wallet
        self._stub: Any = earning_pb2_grpc.EarningServiceStub(channel)
        self._metadata = bearer("boss", SCOPES, audience="punchcard.wallet")

    async def call(self, method: str, **fields: Any) -> Any:
        """The answer of a method of EarningService."""
        kind = getattr(earning_pb2, f"{method}Request")
        return await getattr(self._stub, method)(kind(**fields), metadata=self._metadata)

    async def open(self, *account_ids: str) -> None:
        for account_id in account_ids:
            await self.wallet.call("OpenAccount", wallet_pb2.OpenAccountRequest(account_id=account_id))

    async def intact(self) -> bool:
        request = wallet_pb2.VerifyLedgerRequest()
        metadata = bearer("boss", SCOPES, audience="punchcard.wallet")
        answers = [answer async for answer in self.wallet.stub.VerifyLedger(request, metadata=metadata)]
        return bool(answers[-1].result.intact)


@pytest.fixture
async def earner(database_url: str, tmp_path: Path) -> Any:
    async with (
        wallet_at(database_url, tmp_path) as (wallet, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Earner(wallet, channel)


async def test_a_day_is_claimed_once_whatever_the_key_and_a_repeat_answers_as_before(earner):
    await earner.open("alice")

    first = await earner.call("ClaimDailyBonus", account_id="alice", claim_id="c1")
    again = await earner.call("ClaimDailyBonus", account_id="alice", claim_id="c1")
    code, reason, metadata = await refused(earner.call("ClaimDailyBonus", account_id="alice", claim_id="c2"))

    assert (first.earning.tokens, first.streak.days, first.purse.tokens) == (RULES.daily_bonus, 1, 12)
    assert again.replayed
    assert again.earning == first.earning
    assert (code, reason) == ("FAILED_PRECONDITION", "DAILY_BONUS_CLAIMED")
    assert metadata["resets_at"].endswith("T00:00:00Z")
    assert await earner.intact()


async def test_a_hundred_claims_at_once_pay_once(earner):
    await earner.open("alice")

    claims = [earner.call("ClaimDailyBonus", account_id="alice", claim_id=f"c{number}") for number in range(100)]
    outcomes = await asyncio.gather(*claims, return_exceptions=True)

    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert await earner.wallet.balance("alice") == (12, 0)


async def test_points_become_tokens_as_many_a_day_as_the_rules_say(earner):
    await earner.open("alice")
    rules = json.dumps({"activities": {"invite": {"points": 1_000, "per_day": 1}}})
    await earner.call("PutEarningRules", version="generous", rules_json=rules)
    await earner.call("RecordActivity", account_id="alice", activity="invite", activity_id="i1")

    got = await earner.call("ConvertPoints", account_id="alice", conversion_id="v1", tokens=3)
    again = await earner.call("ConvertPoints", account_id="alice", conversion_id="v1", tokens=3)
    too_much = await refused(earner.call("ConvertPoints", account_id="alice", conversion_id="v2", tokens=3))
    other = await refused(earner.call("ConvertPoints", account_id="alice", conversion_id="v1", tokens=2))

    assert (got.earning.tokens, got.earning.points, got.purse.tokens, got.purse.points) == (3, -300, 13, 700)
    assert got.earning.rules_version == "generous"
    assert again.replayed
    assert again.purse == got.purse
    assert too_much[1] == "LIMIT_REACHED"
    assert {name: too_much[2][name] for name in ("limited", "requested", "used", "limit")} == {
        "limited": "convert",
        "requested": "3",
        "used": "3",
        "limit": "5",
    }
    assert other[1:] == ("IDEMPOTENCY_MISMATCH", {"field": "tokens", "stored": "3", "received": "2"})
    assert await earner.intact()


async def test_points_that_are_not_there_become_nothing(earner):
    await earner.open("alice")
    assert await refused(earner.call("ConvertPoints", account_id="alice", conversion_id="v1", tokens=1)) == (
        "FAILED_PRECONDITION",
        "INSUFFICIENT_POINTS",
        {"account_id": "alice", "requested": "100", "available": "0"},
    )


async def test_an_activity_counts_so_often_a_day_and_an_unknown_one_is_named(earner):
    await earner.open("alice")
    share = RULES.activities["share"]

    for number in range(share.per_day):
        await earner.call("RecordActivity", account_id="alice", activity="share", activity_id=f"s{number}")
    over = await refused(earner.call("RecordActivity", account_id="alice", activity="share", activity_id="more"))
    unknown = await refused(earner.call("RecordActivity", account_id="alice", activity="nap", activity_id="n"))
    standing = await earner.call("GetEarnings", account_id="alice")

    assert over[1] == "LIMIT_REACHED"
    assert unknown == ("NOT_FOUND", "RULE_NOT_FOUND", {"kind": "activity", "name": "nap"})
    assert standing.purse.points == share.points * share.per_day
    usage = {each.limited: (each.used, each.limit) for each in standing.usages}
    assert usage["activity:share"] == (share.per_day, share.per_day)
    assert usage["convert"] == (0, RULES.tokens_per_day)


async def test_an_achievement_is_paid_once_and_the_wallets_own_can_not_be_reported(earner):
    await earner.open("alice")

    first = await earner.call("GrantAchievement", account_id="alice", achievement="profile_complete")
    again = await earner.call("GrantAchievement", account_id="alice", achievement="profile_complete")
    own = await refused(earner.call("GrantAchievement", account_id="alice", achievement="streak_7"))

    assert first.earning.points == RULES.achievements["profile_complete"].points
    assert again.replayed
    assert again.purse == first.purse
    assert own[1] == "RULE_NOT_FOUND"


async def test_the_first_committed_job_is_an_achievement_and_the_second_is_none(earner):
    await earner.open("alice")
    for number in range(2):
        await earner.wallet.call(
            "Reserve",
            wallet_pb2.ReserveRequest(
                account_id="alice", reservation_id=f"r{number}", amount=1, hold_duration=Duration(seconds=60)
            ),
        )
        await earner.wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id=f"r{number}"))

    standing = await earner.call("GetEarnings", account_id="alice")

    assert list(standing.achievements) == ["first_job"]
    assert standing.purse.points == RULES.achievements["first_job"].points
    assert await earner.intact()


async def test_a_first_job_that_a_backend_has_reported_before_is_committed_and_not_paid_again(earner):
    """The rules may leave it to the backend for a while: then a Commit finds the achievement paid."""
    await earner.open("alice")
    reported = {"first_job": Achievement(0, 70, False)._asdict()}
    await earner.call("PutEarningRules", version="by-hand", rules_json=json.dumps({"achievements": reported}))
    await earner.call("GrantAchievement", account_id="alice", achievement="first_job")
    await earner.call("PutEarningRules", version="by-wallet", rules_json="{}")

    reserve = wallet_pb2.ReserveRequest(
        account_id="alice", reservation_id="r", amount=1, hold_duration=Duration(seconds=60)
    )
    await earner.wallet.call("Reserve", reserve)
    await earner.wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="r"))

    standing = await earner.call("GetEarnings", account_id="alice")
    assert (standing.purse.tokens, standing.purse.points) == (9, 70)
    assert await earner.intact()


async def test_a_first_job_that_the_rules_leave_to_a_backend_is_not_paid_by_the_wallet(earner):
    await earner.open("alice")
    reported = {"first_job": Achievement(0, 70, False)._asdict()}
    await earner.call("PutEarningRules", version="by-hand", rules_json=json.dumps({"achievements": reported}))
    reserve = wallet_pb2.ReserveRequest(
        account_id="alice", reservation_id="r", amount=1, hold_duration=Duration(seconds=60)
    )
    await earner.wallet.call("Reserve", reserve)
    await earner.wallet.call("Commit", wallet_pb2.CommitRequest(reservation_id="r"))

    assert list((await earner.call("GetEarnings", account_id="alice")).achievements) == []


async def test_a_version_of_the_rules_is_tried_on_a_share_and_an_account_always_sees_the_same(earner):
    accounts = [f"user-{number}" for number in range(30)]
    await earner.open(*accounts)
    answer = await earner.call(
        "PutEarningRules", version="trial", rules_json='{"daily_bonus": 9}', rollout_percent=50, cohort="spring"
    )
    again = await earner.call(
        "PutEarningRules", version="trial", rules_json='{"daily_bonus": 9}', rollout_percent=50, cohort="spring"
    )
    other = await refused(earner.call("PutEarningRules", version="trial", rules_json='{"daily_bonus": 8}'))

    got = {
        account_id: (await earner.call("ClaimDailyBonus", account_id=account_id, claim_id=account_id)).earning.tokens
        for account_id in accounts
    }

    assert (answer.rules.put_by, answer.replayed, again.replayed) == ("boss", False, True)
    assert other[1] == "IDEMPOTENCY_MISMATCH"
    assert got == {each: 9 if share_of("spring", each) < 5_000 else 2 for each in accounts}
    assert set(got.values()) == {2, 9}
    assert [each.version for each in (await earner.call("ListEarningRules")).rules] == ["trial"]
    assert await earner.intact()


async def test_the_welcome_bonus_of_a_version_is_given_to_those_who_come_after_it(earner):
    await earner.open("early")
    await earner.call("PutEarningRules", version="rich", rules_json='{"welcome_bonus": 40}')
    await earner.open("late")

    reserve = wallet_pb2.ReserveRequest(
        account_id="new", reservation_id="r", amount=40, hold_duration=Duration(seconds=60)
    )
    await earner.wallet.call("Reserve", reserve)

    assert [await earner.wallet.balance(each) for each in ("early", "late", "new")] == [(10, 0), (40, 0), (40, 40)]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{", "is no JSON"),
        ('{"daily": 3}', "has no rule 'daily'"),
        ('{"daily_bonus": -1}', "daily_bonus must be a whole number"),
        ('{"streak_bonuses": {"x": 1}}', "streak_bonuses must be by days"),
        ('{"achievements": {"fame": {"tokens": 1, "points": 0, "by_wallet": true}}}', "the wallet sees first_job"),
        ('{"achievements": {"fame": {"tokens": 1, "points": 1, "by_wallet": false}}}', "tokens or points"),
        ('{"points_per_token": 0}', "points_per_token must be at least 1"),
    ],
)
async def test_rules_that_can_not_be_are_refused_with_what_is_wrong(earner, document, problem):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await earner.call("PutEarningRules", version="v", rules_json=document)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert problem in str(caught.value)


async def test_a_streak_earns_its_achievement_in_the_claim_that_reaches_it(earner):
    await earner.open("alice")
    rules = json.dumps({"achievements": {"streak_1": Achievement(7, 0, True)._asdict()}})
    await earner.call("PutEarningRules", version="easy", rules_json=rules)

    claim = await earner.call("ClaimDailyBonus", account_id="alice", claim_id="c")
    standing = await earner.call("GetEarnings", account_id="alice")

    assert (claim.purse.tokens, list(standing.achievements)) == (10 + 2 + 7, ["streak_1"])
    assert await earner.intact()
