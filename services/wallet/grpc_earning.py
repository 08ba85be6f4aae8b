"""What accounts earn, on the wire: decode, hand to the ledger, encode."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from punchcard.wallet.v1 import earning_pb2, earning_pb2_grpc
from services.chassis.auth import current_principal
from services.chassis.fields import Checks
from services.chassis.group_commit import GroupCommitter
from services.wallet import calendar_day, gift, market
from services.wallet.commands import Award, ClaimDaily, Command, Convert, Outcome, PutRules, RecordActivity
from services.wallet.earning import CONVERT, EVER, achievement_counter, activity_counter, next_streak
from services.wallet.economy import read_rules, write_rules
from services.wallet.errors import AccountNotFound
from services.wallet.grpc_messages import check_account, timestamp
from services.wallet.holdings import Account, Earning, RuleSetRecord, Streak
from services.wallet.store_economy import EconomyReads, Standing

SERVICE: Final = "punchcard.wallet.v1.EarningService"
NAME_CHARS_MAX: Final = 64
RULES_CHARS_MAX: Final = 65_536

SCOPES: Final[Mapping[str, str]] = {
    f"/{SERVICE}/ClaimDailyBonus": "wallet.earn",
    f"/{SERVICE}/RecordActivity": "wallet.grant",
    f"/{SERVICE}/ConvertPoints": "wallet.earn",
    f"/{SERVICE}/GrantAchievement": "wallet.grant",
    f"/{SERVICE}/GetEarnings": "wallet.read",
    f"/{SERVICE}/PutEarningRules": "wallet.admin",
    f"/{SERVICE}/ListEarningRules": "wallet.admin",
}
"""Which scope a method asks for. A method that is not here is open to nobody."""

_KINDS: Final[Mapping[str, earning_pb2.EarningKind.ValueType]] = MappingProxyType(
    {
        "daily": earning_pb2.EARNING_KIND_DAILY,
        "activity": earning_pb2.EARNING_KIND_ACTIVITY,
        "convert": earning_pb2.EARNING_KIND_CONVERSION,
        "achievement": earning_pb2.EARNING_KIND_ACHIEVEMENT,
    }
)


class EarningApi(earning_pb2_grpc.EarningServiceServicer):
    """The methods by which accounts earn."""

    def __init__(self, committer: GroupCommitter[Command, Outcome], reads: EconomyReads) -> None:
        self._committer = committer
        self._reads = reads

    async def ClaimDailyBonus(
        self, request: earning_pb2.ClaimDailyBonusRequest, context: Any
    ) -> earning_pb2.ClaimDailyBonusResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        claim_id = checks.id("claim_id", request.claim_id)
        checks.done()
        principal = current_principal()
        check_account(principal, account_id)
        outcome = await self._committer.submit(ClaimDaily(principal.subject, account_id, claim_id))
        return earning_pb2.ClaimDailyBonusResponse(
            earning=_earning(outcome),
            streak=streak_message(outcome.streak, goes_on=True),
            purse=_purse(outcome.account, outcome.points),
            replayed=outcome.replayed,
        )

    async def RecordActivity(
        self, request: earning_pb2.RecordActivityRequest, context: Any
    ) -> earning_pb2.RecordActivityResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        activity = checks.text("activity", request.activity, NAME_CHARS_MAX, 1)
        activity_id = checks.id("activity_id", request.activity_id)
        checks.done()
        principal = current_principal()
        check_account(principal, account_id)
        outcome = await self._committer.submit(RecordActivity(principal.subject, account_id, activity, activity_id))
        return earning_pb2.RecordActivityResponse(**_earned(outcome))

    async def ConvertPoints(
        self, request: earning_pb2.ConvertPointsRequest, context: Any
    ) -> earning_pb2.ConvertPointsResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        conversion_id = checks.id("conversion_id", request.conversion_id)
        tokens = checks.amount("tokens", request.tokens)
        checks.done()
        principal = current_principal()
        check_account(principal, account_id)
        outcome = await self._committer.submit(Convert(principal.subject, account_id, conversion_id, tokens))
        return earning_pb2.ConvertPointsResponse(**_earned(outcome))

    async def GrantAchievement(
        self, request: earning_pb2.GrantAchievementRequest, context: Any
    ) -> earning_pb2.GrantAchievementResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        achievement = checks.text("achievement", request.achievement, NAME_CHARS_MAX, 1)
        checks.done()
        principal = current_principal()
        check_account(principal, account_id)
        outcome = await self._committer.submit(Award(principal.subject, account_id, achievement))
        return earning_pb2.GrantAchievementResponse(**_earned(outcome))

    async def GetEarnings(
        self, request: earning_pb2.GetEarningsRequest, context: Any
    ) -> earning_pb2.GetEarningsResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        checks.done()
        check_account(current_principal(), account_id)
        standing = await self._reads.standing(account_id)
        if standing is None:
            raise AccountNotFound(account_id)
        return standing_message(standing)

    async def PutEarningRules(
        self, request: earning_pb2.PutEarningRulesRequest, context: Any
    ) -> earning_pb2.PutEarningRulesResponse:
        checks = Checks()
        version = checks.id("version", request.version)
        cohort = checks.optional_id("cohort", request.cohort)
        percent = request.rollout_percent if request.HasField("rollout_percent") else 100
        checks.number("rollout_percent", percent, 1, 100)
        document = _document(checks, request.rules_json)
        effective_us = None
        if request.HasField("effective_time"):
            effective_us = checks.time_us("effective_time", request.effective_time)
        checks.done()
        actor = current_principal().subject
        outcome = await self._committer.submit(
            PutRules(actor, version, effective_us, percent, cohort or version, document)
        )
        if outcome.rule_set is None:
            raise ValueError("a PutRules came to no version")
        return earning_pb2.PutEarningRulesResponse(rules=_rules(outcome.rule_set), replayed=outcome.replayed)

    async def ListEarningRules(
        self, request: earning_pb2.ListEarningRulesRequest, context: Any
    ) -> earning_pb2.ListEarningRulesResponse:
        return earning_pb2.ListEarningRulesResponse(rules=[_rules(each) for each in await self._reads.rule_sets()])


def standing_message(standing: Standing) -> earning_pb2.GetEarningsResponse:
    """What an account has earned and may still earn."""
    version, rules = standing.in_force
    day, zone, streak = standing.moment.day, standing.moment.zone, standing.streak
    claim_day = max(day, streak.day + 1) if streak else day
    account_id = standing.account.account_id
    resets_at = timestamp(calendar_day.start_us(day + 1, zone))
    counted = {(each.counter, each.day): each.amount for each in standing.counters}
    limits = {CONVERT: rules.tokens_per_day}
    limits |= {gift.COUNTER: rules.gifts_per_day, market.COUNTER: rules.offers_per_day}
    limits |= {activity_counter(name): each.per_day for name, each in rules.activities.items()}
    next_days = next_streak(streak, account_id, claim_day, rules.grace_days).days
    return earning_pb2.GetEarningsResponse(
        purse=_purse(standing.account, standing.points),
        streak=streak_message(streak, goes_on=next_days > 1),
        next_bonus=rules.daily(next_days),
        next_claim_time=timestamp(calendar_day.start_us(claim_day, zone)),
        usages=[
            earning_pb2.Usage(limited=name, used=counted.get((name, day), 0), limit=limit, resets_at=resets_at)
            for name, limit in sorted(limits.items())
        ],
        achievements=sorted(
            counter.removeprefix(achievement_counter("")) for counter, counted_day in counted if counted_day == EVER
        ),
        rules_version=version,
        rules_json=write_rules(rules),
    )


def streak_message(streak: Streak | None, *, goes_on: bool) -> earning_pb2.Streak:
    """A streak; goes_on: whether a claim may still make it longer."""
    if streak is None:
        return earning_pb2.Streak()
    return earning_pb2.Streak(
        days=streak.days if goes_on else 0,
        best_days=streak.best_days,
        last_day=calendar_day.text_of(streak.day),
        forgiven_day=calendar_day.text_of(streak.grace_day) if streak.grace_day else "",
    )


def _document(checks: Checks, text: str) -> str:
    """The rules as they are stored: whole, so that another version of the code reads the same from them."""
    checks.text("rules_json", text, RULES_CHARS_MAX, 1)
    try:
        return write_rules(read_rules(text))
    except ValueError as error:
        checks.fail("rules_json", text, str(error))
        return ""


def _earned(outcome: Outcome) -> dict[str, Any]:
    return {
        "earning": _earning(outcome),
        "purse": _purse(outcome.account, outcome.points),
        "replayed": outcome.replayed,
    }


def _earning(outcome: Outcome) -> earning_pb2.Earning:
    earning: Earning | None = outcome.earning
    if earning is None:
        raise ValueError("a command that earns came to nothing earned")
    return earning_pb2.Earning(
        earning_id=earning.earning_id,
        kind=_KINDS[earning.kind],
        name=earning.name,
        tokens=earning.tokens,
        points=earning.points,
        day=calendar_day.text_of(earning.day),
        rules_version=earning.rules,
        revision=earning.revision,
    )


def _purse(account: Account | None, points: Account | None) -> earning_pb2.Purse:
    return earning_pb2.Purse(tokens=account.balance if account else 0, points=points.balance if points else 0)


def _rules(each: RuleSetRecord) -> earning_pb2.EarningRules:
    return earning_pb2.EarningRules(
        version=each.version,
        rules_json=each.document,
        effective_time=timestamp(each.effective_time_us),
        rollout_percent=each.rollout_percent,
        cohort=each.cohort,
        put_by=each.actor,
        revision=each.revision,
    )
