"""Every refusal of what is limited by day or month says of what, how much was used, and when that begins anew."""

from datetime import UTC, datetime

import pytest

from services.wallet import ledger
from services.wallet.commands import Award, ClaimDaily, Command, Convert, Grant, Moment, OpenAccount, RecordActivity
from services.wallet.commands import Reserve as ReserveCommand
from services.wallet.economy import Activity, EarningRules, Rules
from services.wallet.errors import DailyBonusClaimed, LimitReached
from services.wallet.holdings import State
from services.wallet.market_commands import CreateOffer
from services.wallet.sharing import Role
from services.wallet.sharing_commands import Give, OpenTeam, SetLimits, SetMember

NOON = Moment(
    round(datetime(2026, 12, 31, 12, tzinfo=UTC).timestamp()) * 1_000_000,
    Rules(
        earning=EarningRules(
            activities={"share": Activity(500, 1)},
            tokens_per_day=1,
            gifts_per_day=1,
            offers_per_day=1,
            offer_price_min=1,
        )
    ),
)
LIMITED: list[tuple[str, list[Command]]] = [
    ("activity:share", [RecordActivity("app", "alice", "share", f"a{number}") for number in range(2)]),
    (
        "convert",
        [Award("app", "alice", "profile_complete"), *(Convert("app", "alice", f"v{number}", 1) for number in range(2))],
    ),
    ("gift", [Give("app", "alice", "bob", f"g{number}", 1, "") for number in range(2)]),
    ("offer", [CreateOffer("app", "alice", f"o{number}", 1, 1, None, "") for number in range(2)]),
    ("spend", [SetLimits("app", "alice", "l", 1, None, "", True), *(
        ReserveCommand("app", "alice", "alice", f"r{number}", 1, 10**9, "", "", False) for number in range(2)
    )]),
    ("spend_month", [SetLimits("app", "alice", "l", 9, 1, "", True), *(
        ReserveCommand("app", "alice", "alice", f"r{number}", 1, 10**9, "", "", False) for number in range(2)
    )]),
    ("spend:bob", [SetMember("app", "team", "m", "alice", "bob", int(Role.MEMBER), 1, None), *(
        ReserveCommand("app", "bob", "team", f"r{number}", 1, 10**9, "", "", False) for number in range(2)
    )]),
    ("spend_month:bob", [SetMember("app", "team", "m", "alice", "bob", int(Role.MEMBER), 9, 1), *(
        ReserveCommand("app", "bob", "team", f"r{number}", 1, 10**9, "", "", False) for number in range(2)
    )]),
]  # fmt: skip


@pytest.fixture
def state() -> State:
    state = State()
    for account_id in ("alice", "bob", "team"):
        ledger.decide(state, OpenAccount("app", account_id), NOON)
        ledger.decide(state, Grant("app", account_id, account_id, 100, ""), NOON)
    ledger.decide(state, OpenTeam("app", "team", "alice"), NOON)
    return state


@pytest.mark.parametrize(("limited", "commands"), LIMITED, ids=[limited for limited, _ in LIMITED])
def test_what_is_limited_is_refused_until_the_next_day_or_month(
    state: State, limited: str, commands: list[Command]
) -> None:
    for command in commands[:-1]:
        ledger.decide(state, command, NOON)
    with pytest.raises(LimitReached) as refused:
        ledger.decide(state, commands[-1], NOON)

    said = {name: refused.value.metadata[name] for name in ("limited", "requested", "used", "limit", "resets_at")}
    assert said == {
        "limited": limited,
        "requested": "1",
        "used": "1",
        "limit": "1",
        "resets_at": "2027-01-01T00:00:00Z",
    }


def test_a_second_claim_of_a_day_is_refused_until_the_next(state: State) -> None:
    ledger.decide(state, ClaimDaily("app", "alice", "c1"), NOON)
    with pytest.raises(DailyBonusClaimed) as refused:
        ledger.decide(state, ClaimDaily("app", "alice", "c2"), NOON)

    assert refused.value.metadata["resets_at"] == "2027-01-01T00:00:00Z"
