"""The rules of the ledger: what a command does to accounts and reservations, or why it is refused.

                Reserve             Commit(amount <= held)
    (nothing) ----------> HELD ---------------------------> COMMITTED -- Refund(refund_id, amount) --> refunded += n
       |                   | +-- Refund ------------------> RELEASED
       |                   | +-- hold_duration passes ----> EXPIRED -- Commit(allow_late) --> COMMITTED
       |                   +---- Amend -------------------> HELD, smaller or for longer
       +-- Refund of an unused id by its would-be owner --> RELEASED (a tombstone: a late Reserve is refused)

Always reserved = committed + released + expired once it has ended, and refunded <= committed.
"""

from collections.abc import Callable
from typing import Any

from services.wallet import account, earning, gift, grant, hold, offer, reservation, spending, sweep, team
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
from services.wallet.holdings import State
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.sharing_commands import Give, OpenTeam, RemoveMember, SetLimits, SetMember


def decide(state: State, command: Command, moment: Moment) -> Outcome:
    """Carries a command out on the state, or raises the `Refusal` that says why not."""
    return _DECISIONS[type(command)](state, command, moment)


_DECISIONS: dict[type, Callable[[State, Any, Moment], Outcome]] = {
    OpenAccount: account.open_account,
    ChangeAccount: account.change_account,
    Grant: grant.grant,
    Revoke: grant.revoke,
    Reserve: hold.reserve,
    Preview: hold.preview,
    Commit: reservation.commit,
    Release: reservation.release,
    Refund: reservation.refund,
    Amend: reservation.amend,
    Sweep: sweep.sweep,
    ClaimDaily: earning.claim_daily,
    RecordActivity: earning.record_activity,
    Convert: earning.convert,
    Award: earning.award,
    PutRules: earning.put_rules,
    OpenTeam: team.open_team,
    SetMember: team.set_member,
    RemoveMember: team.remove_member,
    Give: gift.give,
    CreateOffer: offer.create_offer,
    TakeOffer: offer.take_offer,
    CancelOffer: offer.cancel_offer,
    SetLimits: spending.set_limits,
}
