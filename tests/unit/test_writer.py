"""writer: commands and outcomes come out of the other process as they went in, and by the fast way."""

from services.wallet import ledger
from services.wallet.commands import (
    Amend,
    Award,
    ChangeAccount,
    ClaimDaily,
    Command,
    Commit,
    Convert,
    Grant,
    Moment,
    OpenAccount,
    Outcome,
    Preview,
    PutRules,
    RecordActivity,
    Refund,
    Release,
    Reserve,
    Revoke,
    Sweep,
)
from services.wallet.economy import EarningRules, Rules, write_rules
from services.wallet.errors import InsufficientFunds
from services.wallet.holdings import State
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.sharing import Role
from services.wallet.sharing_commands import Give, OpenTeam, RemoveMember, SetLimits, SetMember
from services.wallet.writer import CODEC, COMMANDS

NOW = Moment(1_000_000, Rules(earning=EarningRules()))
RESERVE = Reserve("batcher", "alice", "alice", "r", 5, 60_000_000, "v1", "", True)
EVERY: list[Command] = [
    OpenAccount("alice", "alice"),
    Grant("boss", "alice", "g", 7, "promo", 3_600_000_000, 10),
    RESERVE,
    Preview(RESERVE._replace(reservation_id="p")),
    Amend("batcher", "batcher", "r", "a", 4, None),
    Commit("batcher", "batcher", "r", 3, False),
    Refund("batcher", "batcher", "r", "f", 1, True),
    Release("batcher", "batcher", "unused"),
    Revoke("boss", "alice", "boss", "g", ""),
    ChangeAccount("boss", "alice", "c", "freeze", False, ""),
    Sweep("alice"),
    ChangeAccount("boss", "alice", "c2", "unfreeze", False, ""),
    ClaimDaily("alice", "alice", "day-1"),
    RecordActivity("boss", "alice", "invite", "i1"),
    Convert("alice", "alice", "v1", 1),
    Award("boss", "alice", "profile_complete"),
    PutRules("boss", "2", None, 10, "2", write_rules(EarningRules())),
    OpenTeam("boss", "team", "alice"),
    SetMember("boss", "team", "m1", "alice", "bob", int(Role.MEMBER), 5, None),
    RemoveMember("boss", "team", "m2", "alice", "bob"),
    Grant("boss", "alice", "g2", 30, ""),
    OpenAccount("bob", "bob"),
    Give("boss", "alice", "bob", "gift", 3, "thanks"),
    CreateOffer("boss", "alice", "offer", 5, 10, None, "cheap"),
    Award("boss", "bob", "profile_complete"),
    TakeOffer("boss", "bob", "take", "alice", "offer", 2),
    CancelOffer("boss", "alice", "offer"),
    SetLimits("boss", "alice", "l1", 5, None, "rent", False, 7, ((739_000, 3),)),
]


def outcomes() -> list[Outcome | Exception]:
    """What the ledger makes of each command."""
    state = State()
    return [ledger.decide(state, command, NOW) for command in EVERY]


def test_every_command_travels():
    assert {type(command) for command in EVERY} == set(COMMANDS)
    assert CODEC.unpack_commands(CODEC.pack_commands(EVERY)) == EVERY


def test_every_outcome_travels_with_its_types():
    back = CODEC.unpack_results(CODEC.pack_results(outcomes()))
    assert back == outcomes()
    assert [type(outcome.account) for outcome in back if isinstance(outcome, Outcome)] == [
        type(outcome.account) for outcome in outcomes() if isinstance(outcome, Outcome)
    ]


def test_no_outcome_needs_pickle_and_of_the_commands_only_a_preview():
    assert all(CODEC.pack_results([outcome]).startswith(b"m") for outcome in outcomes())
    slow = {type(command) for command in EVERY if not CODEC.pack_commands([command]).startswith(b"m")}
    assert slow == {Preview}


def test_a_refusal_travels_with_its_numbers():
    (back,) = CODEC.unpack_results(CODEC.pack_results([InsufficientFunds("alice", 5, 4, 1)]))
    assert isinstance(back, InsufficientFunds)
    assert str(back) == str(InsufficientFunds("alice", 5, 4, 1))
    assert back.metadata == {"account_id": "alice", "requested": "5", "available": "4", "held": "1"}
