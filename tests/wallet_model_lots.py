"""What one account has, as the promises tell it: tokens that are all alike, and lots with a life of their own.

Slow and obvious: nothing is indexed, nothing is remembered that can be counted, and time is an argument.
"""

from dataclasses import dataclass, field

PLAIN_PRIORITY = 50
NEVER_US = 10**18


@dataclass(eq=False)
class Lot:
    """Tokens of one grant."""

    number: int
    """The account's lots in the order in which they came into being, from 0."""
    created_by: str
    grant_id: str
    priority: int
    ends_us: int | None
    granted: int
    remaining: int
    held: int = 0
    grace: bool = False
    revoked: bool = False
    gone: int = 0
    """What lapsed, was revoked or moved on into a lot of grace: all that left without being spent."""

    def over(self, at_us: int) -> bool:
        """Whether its life has ended at this instant."""
        return self.ends_us is not None and self.ends_us <= at_us

    @property
    def free(self) -> int:
        """What no hold has pinned."""
        return self.remaining - self.held


Source = Lot | None
"""Where tokens come from: a lot, or (None) all those without one."""
Part = tuple[Source, int]
"""So many tokens of a source; holds keep a list of them in the order of spending."""


def total(parts: list[Part]) -> int:
    """How many tokens the parts are together."""
    return sum(amount for _, amount in parts)


def split(parts: list[Part], amount: int) -> tuple[list[Part], list[Part]]:
    """The first tokens of the parts, and the others."""
    first: list[Part] = []
    rest: list[Part] = []
    for source, count in parts:
        taken = min(count, amount)
        amount -= taken
        first += [(source, taken)] if taken else []
        rest += [(source, count - taken)] if count > taken else []
    return first, rest


def spending_place(source: Source) -> tuple[int, int, float]:
    """Priority, then end of life, then age; tokens without a lot stand behind every lot of their priority."""
    if source is None:
        return PLAIN_PRIORITY, NEVER_US, float("inf")
    return source.priority, NEVER_US if source.ends_us is None else source.ends_us, source.number


@dataclass
class Purse:
    """An account."""

    grace_us: int
    state: str = "open"
    plain: int = 0
    plain_held: int = 0
    lots: list[Lot] = field(default_factory=list)
    issued: int = 0
    """What @issue has given and not taken back."""
    spent: int = 0
    """What @revenue has taken and not given back."""
    lapsed: int = 0
    """What @lapsed has taken."""

    @property
    def balance(self) -> int:
        """All that the account has."""
        return self.plain + sum(lot.remaining for lot in self.lots)

    @property
    def held(self) -> int:
        """What open reservations hold of it."""
        return self.plain_held + sum(lot.held for lot in self.lots)

    @property
    def available(self) -> int:
        """What can be held now, once what is over has lapsed."""
        return self.balance - self.held

    def live(self) -> list[Lot]:
        """The lots with tokens left, in the order of spending."""
        return sorted((lot for lot in self.lots if lot.remaining), key=spending_place)

    def grant(self, amount: int) -> None:
        """New tokens without a lot."""
        self.plain += amount
        self.issued += amount

    def grant_lot(self, created_by: str, grant_id: str, priority: int, ends_us: int | None, amount: int) -> None:
        """New tokens with a life of their own."""
        self.lots.append(Lot(len(self.lots), created_by, grant_id, priority, ends_us, amount, amount))
        self.issued += amount

    def hold(self, amount: int, now_us: int) -> list[Part]:
        """Pins so many tokens, first those that are spent first; there must be as many."""
        parts: list[Part] = []
        sources: list[Source] = [None, *self.lots]
        for source in sorted(sources, key=spending_place):
            if source is not None and source.over(now_us):
                continue
            free = self.plain - self.plain_held if source is None else source.free
            taken = min(free, amount - total(parts))
            if taken:
                self._pin(source, taken)
                parts.append((source, taken))
        assert total(parts) == amount
        return parts

    def _pin(self, source: Source, amount: int) -> None:
        if source is None:
            self.plain_held += amount
        else:
            source.held += amount

    def spend(self, parts: list[Part]) -> None:
        """Takes held tokens for good."""
        for source, amount in parts:
            self._pin(source, -amount)
            if source is None:
                self.plain -= amount
            else:
                source.remaining -= amount
            self.spent += amount

    def give_back(self, parts: list[Part], at_us: int, grace: bool) -> None:
        """Held tokens are free again, or leave with the life of their lot."""
        for source, amount in parts:
            self._pin(source, -amount)
            self._came_back(source, amount, at_us, grace)

    def refund(self, parts: list[Part], at_us: int, grace: bool) -> None:
        """Spent tokens come back, or lapse at once with the life of their lot."""
        for source, amount in parts:
            self.spent -= amount
            if source is None:
                self.plain += amount
            else:
                source.remaining += amount
            self._came_back(source, amount, at_us, grace)

    def _came_back(self, source: Source, amount: int, at_us: int, grace: bool) -> None:
        if source is None or not source.over(at_us):
            return
        source.remaining -= amount
        source.gone += amount
        if not grace or not self.grace_us or source.grace or source.revoked:
            self.lapsed += amount
            return
        ends_us = at_us + self.grace_us
        new = Lot(len(self.lots), source.created_by, source.grant_id, source.priority, ends_us, amount, amount)
        new.grace = True
        self.lots.append(new)

    def lapse(self, lot: Lot) -> None:
        """Takes what nothing holds of a lot whose life has ended."""
        self.lapsed += lot.free
        lot.gone += lot.free
        lot.remaining = lot.held

    def revoke_lots(self, created_by: str, grant_id: str, now_us: int) -> int:
        """Takes what nothing holds of a grant's lots, and ends their life; how many tokens that were."""
        taken = 0
        for lot in self.lots:
            if (lot.created_by, lot.grant_id) == (created_by, grant_id):
                taken += lot.free
                lot.gone += lot.free
                lot.remaining = lot.held
                lot.ends_us = now_us if lot.ends_us is None else min(lot.ends_us, now_us)
                lot.revoked = True
        self.issued -= taken
        return taken

    def revoke_plain(self, amount: int) -> int:
        """Takes at most so many of the free tokens without a lot; how many that were."""
        taken = min(amount, self.plain - self.plain_held)
        self.plain -= taken
        self.issued -= taken
        return taken

    def forfeit(self) -> None:
        """Takes all that is left; nothing may be held."""
        for lot in self.lots:
            self.lapse(lot)
        self.lapsed += self.plain
        self.plain = 0
