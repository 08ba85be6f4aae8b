"""What callers ask of the ledger. Plain values: durations and amounts as the client sent them, never resolved ones.

A command is its own fingerprint: a repeat is recognised by comparing what is stored with what was sent.
"""

from datetime import UTC, tzinfo
from typing import NamedTuple

from services.wallet.calendar_day import day_of, start_us
from services.wallet.economy import Rules
from services.wallet.holdings import Account, Earning, Lot, Reservation, RuleSetRecord, Streak
from services.wallet.market import Offer, Take
from services.wallet.market_commands import CancelOffer, CreateOffer, TakeOffer
from services.wallet.sharing import Gift, Member, SpendingLimits, Team
from services.wallet.sharing_commands import Give, OpenTeam, RemoveMember, SetLimits, SetMember


class OpenAccount(NamedTuple):
    """Open an account; its id is the key."""

    actor: str
    account_id: str


class Grant(NamedTuple):
    """Give new tokens; (actor, grant_id) is the key."""

    actor: str
    account_id: str
    grant_id: str
    amount: int
    reference: str
    lifetime_us: int | None = None
    priority: int | None = None


class Revoke(NamedTuple):
    """Take back what is left of a grant; (created_by, grant_id) is the key, and the first reference stays."""

    actor: str
    account_id: str
    created_by: str
    grant_id: str
    reference: str


class Reserve(NamedTuple):
    """Hold tokens; (actor, reservation_id) is the key."""

    actor: str
    account_id: str
    payer_account_id: str
    """Who pays: account_id itself unless the request named another."""
    reservation_id: str
    amount: int
    hold_us: int
    price_version: str
    reference: str
    may_open: bool
    """Whether the caller's scopes allow it to open the payer's account on the way."""


class Preview(NamedTuple):
    """Say what a Reserve would come to, and change nothing."""

    reserve: Reserve


class Commit(NamedTuple):
    """Take held tokens; the reservation is the key."""

    actor: str
    created_by: str
    reservation_id: str
    amount: int | None
    allow_late: bool


class Release(NamedTuple):
    """Give a hold back, or block an id that was never used; the reservation is the key."""

    actor: str
    created_by: str
    reservation_id: str
    grace: bool = False
    """Whether the work failed on our side. No part of the fingerprint: the first one stays."""


class Refund(NamedTuple):
    """Return committed tokens; (reservation, refund_id) is the key."""

    actor: str
    created_by: str
    reservation_id: str
    refund_id: str
    amount: int | None
    grace: bool = False
    """As that of a Release."""


class Amend(NamedTuple):
    """Lower a hold or prolong it; (reservation, amend_id) is the key."""

    actor: str
    created_by: str
    reservation_id: str
    amend_id: str
    amount: int | None
    hold_us: int | None


class ChangeAccount(NamedTuple):
    """Freeze, unfreeze or close an account; (actor, change_id) is the key."""

    actor: str
    account_id: str
    change_id: str
    kind: str
    """`freeze`, `unfreeze` or `close`."""
    forfeit: bool
    """Whether a close may take the tokens that are left."""
    reference: str


class Sweep(NamedTuple):
    """End what is due on one account. Loading an account does it anyway; this only hurries it."""

    account_id: str


class ClaimDaily(NamedTuple):
    """Claim the daily bonus; (actor, claim_id) is the key."""

    actor: str
    account_id: str
    claim_id: str


class RecordActivity(NamedTuple):
    """Give points for something that an account did; (actor, activity_id) is the key."""

    actor: str
    account_id: str
    activity: str
    activity_id: str


class Convert(NamedTuple):
    """Change points into so many tokens; (actor, conversion_id) is the key."""

    actor: str
    account_id: str
    conversion_id: str
    tokens: int


class Award(NamedTuple):
    """Give the tokens of an achievement; the account and the achievement are the key."""

    actor: str
    account_id: str
    achievement: str


class PutRules(NamedTuple):
    """Put a version of the earning rules; the version is the key."""

    actor: str
    version: str
    effective_time_us: int | None
    """None: at once."""
    rollout_percent: int
    cohort: str
    document: str
    """As `economy.write_rules` writes it."""


Earn = ClaimDaily | RecordActivity | Convert | Award
Command = (
    OpenAccount
    | Grant
    | Revoke
    | Reserve
    | Preview
    | Commit
    | Release
    | Refund
    | Amend
    | ChangeAccount
    | Sweep
    | ClaimDaily
    | RecordActivity
    | Convert
    | Award
    | PutRules
    | OpenTeam
    | SetMember
    | RemoveMember
    | Give
    | CreateOffer
    | TakeOffer
    | CancelOffer
    | SetLimits
)
OnReservation = Commit | Release | Refund | Amend


class Outcome(NamedTuple):
    """What a command came to: the things it concerned, as they were right after it."""

    account: Account | None
    """The account that paid or received; None for a tombstone."""
    reservation: Reservation | None
    replayed: bool
    lots: tuple[Lot, ...] = ()
    """Of a Preview, the lots that it would hold of."""
    revoked: int = 0
    """Of a Revoke, how many tokens it took."""
    earning: Earning | None = None
    """Of what earns or converts, what came of it."""
    points: Account | None = None
    """Of the same, the account's points, if it ever had any."""
    streak: Streak | None = None
    """Of a claim, how far the streak has come."""
    rule_set: RuleSetRecord | None = None
    """Of a PutRules."""
    team: Team | None = None
    """Of what concerns a team, the team."""
    member: Member | None = None
    """Of the same, the one whom it is about."""
    gift: Gift | None = None
    """Of a Give."""
    offer: Offer | None = None
    """Of what concerns an offer, the offer."""
    take: Take | None = None
    """Of a TakeOffer."""
    limits: SpendingLimits | None = None
    """Of a SetLimits."""


class Moment(NamedTuple):
    """When a group of commands is decided, and under which rules."""

    now_us: int
    rules: Rules
    zone: tzinfo = UTC
    """Whose calendar the economy goes by."""

    @property
    def day(self) -> int:
        """The calendar day."""
        return day_of(self.now_us, self.zone)

    @property
    def next_day_us(self) -> int:
        """When the next calendar day begins: limits of a day begin anew."""
        return start_us(self.day + 1, self.zone)
