"""Stories: what a few users try, from a seed.

Each story leaves some themes out, so that what belongs together meets more often.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sandbox.prover.move import FALLBACK, HOUR_US, Move
from sandbox.prover.world import World
from services.batcher.job import Lane, State, is_final
from services.batcher.price_list import Content, Hours, PriceRow
from services.wallet.economy import EarningRules
from services.wallet.holdings import ReservationState
from services.wallet.market import Offer
from services.wallet.sharing import Role

MOVES: Final = 400
USERS: Final = tuple(f"user-{number}" for number in range(6))
ADMIN: Final = "admin"
TEAMS: Final = ("team-0", "team-1")
MEMBERS: Final = USERS[2:5]
"""Who comes and goes in teams, and spends most of what teams spend."""
BEGIN_US: Final = round(datetime(2026, 2, 26, 22, 30, tzinfo=UTC).timestamp()) * 1_000_000
"""Shortly before a midnight, so that days change early in a story, and the month soon."""
GOES_ON: Final = 0.5
"""How often the same user goes on at once: limits of a day are only met by who insists."""
AGAIN: Final = 0.6
"""How often with the same thing."""
KEPT: Final = 0.8
"""How many kinds of moves of a theme a story has."""
RECENT: Final = 6
"""So many of the last reservations are looked back at."""
THEMES: Final[Mapping[str, tuple[str, ...]]] = {
    "earning": ("claim", "claim", "activity", "award", "convert"),
    "spending": ("reserve", "commit", "release", "refund"),
    "giving": ("give", "give", "top_up"),
    "market": ("activity", "top_up", "offer", "offer", "take", "take", "cancel"),
    "prices": (
        *("put_prices", "roll_out", "withdraw", "quote", "quote", "quote", "top_up"),
        *("submit", "submit", "submit", "answer", "answer", "fail", "give_up", "give_back"),
    ),
    "rules": (*("put_rules", "claim", "claim", "activity", "activity", "convert", "award"), "give", "offer", "commit"),
    "accounts": (
        *("open", "freeze", "unfreeze", "unfreeze", "close", "claim", "top_up", "give", "offer"),
        *("reserve", "reserve", "commit", "commit", "release", "refund"),
    ),
    "teams": ("top_up", "member", "unmember", *4 * ("reserve",), "commit", "release", "refund"),
}
OF_TEAMS: Final = frozenset(THEMES["teams"])
"""What names a team."""
CHANGES: Final = ("freeze", "unfreeze", "close")
"""What only an administrator does to an account."""
WHOSE: Final = frozenset({"take", "cancel", "submit", "put_rules", "put_prices", "roll_out", "withdraw", *CHANGES})
"""What only somebody does, whoever went before."""
WAITS_HOURS: Final = ((0, 0, 0.5, 1, 6, 12, 24, 47), (0, 0, 0, 0.5, 1, 3))
"""Some stories take months, others days in which much happens."""


def story(world: World, rng: random.Random) -> Iterator[Move]:
    """What a few users do in a world, which has to do each move before it is asked for the next.

    In no order, with repeats, at hours that favour the edges of days; mostly with what is there, so that much succeeds.
    """
    return _Teller(world, rng).moves()


class _Teller:
    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._earning: EarningRules = world.rules.first_version
        self._rng = rng
        self._themes = rng.sample(sorted(THEMES), rng.choice((1, 1, 2, 2, 3)))
        kinds = [kind for theme in self._themes for kind in THEMES[theme] if rng.random() < KEPT]
        self._kinds = kinds or ["claim"]
        self._teams = TEAMS[: rng.choice((1, 2))]
        self._waits_us = [round(hours * HOUR_US) for hours in rng.choice(WAITS_HOURS)]

    def moves(self) -> Iterator[Move]:
        yield from (Move("open", user, f"open-{user}") for user in USERS)
        if "teams" in self._themes:
            yield from self._founding()
        before = Move("", USERS[0], "")
        for number in range(MOVES):
            before = self._next(number, before)
            yield before

    def _next(self, number: int, before: Move) -> Move:
        rng, key = self._rng, f"k{number}"
        goes_on = before.kind in self._kinds and rng.random() < GOES_ON
        again = goes_on and rng.random() < AGAIN
        kind, who = (before.kind if again else rng.choice(self._kinds)), rng.choice(USERS)
        wait_us = 0 if goes_on else rng.choice(self._waits_us) + rng.choice((0, 0, 1))
        move = Move(kind, who, key, wait_us=wait_us, zone_hours=rng.choice((0, 0, -11, 13)))
        if kind in _DETAILS:
            move = move._replace(**_DETAILS[kind](self))
        if goes_on and kind not in WHOSE:
            move = move._replace(who=before.who, of=before.of if kind in OF_TEAMS else "")
        if kind in ("claim", "activity", "convert") and rng.random() < 0.1:
            move = move._replace(key=f"k{rng.randrange(number + 1)}")
        return move

    def _founding(self) -> Iterator[Move]:
        """Every team begins with its owner, money, and members with limits."""
        return (
            move
            for team, owner in zip(self._teams, USERS, strict=False)
            for move in (
                Move("team", owner, f"open-{team}", of=team),
                Move("top_up", owner, f"top-up-{team}", of=team, amount=50),
                *(Move("member", owner, f"join-{team}-{who}", who, of=team, limits=self.limits()) for who in MEMBERS),
            )
        )

    def limits(self) -> tuple[int | None, int | None]:
        return self._rng.choice((3, 5, 9, None)), self._rng.choice((9, 40, None, None))

    def activity(self) -> dict[str, Any]:
        return {"what": self._rng.choice(sorted(self._earning.activities) or ["none"])}

    def award(self) -> dict[str, Any]:
        return {"what": self._rng.choice(sorted(self._earning.achievements) or ["none"])}

    def convert(self) -> dict[str, Any]:
        return {"amount": self._rng.randint(1, 9)}

    def give(self) -> dict[str, Any]:
        receivers = [*USERS, *TEAMS] if "teams" in self._themes else USERS
        return {"what": self._rng.choice(receivers), "amount": self._rng.randint(1, 9)}

    def top_up(self) -> dict[str, Any]:
        return {"of": self._rng.choice(("", *TEAMS)), "amount": self._rng.randint(1, 30)}

    def reserve(self) -> dict[str, Any]:
        rng, held = self._rng, {"amount": self._rng.choice((1, 2, 3, 5, 9)), "hours": self._rng.choice((1, 30, 30))}
        if "teams" not in self._themes or rng.random() < 0.2:
            return held
        return held | {"of": rng.choice(self._teams)} | ({"who": rng.choice(MEMBERS)} if rng.random() < 0.8 else {})

    def commit(self) -> dict[str, Any]:
        return self._made(ReservationState.HELD, ReservationState.EXPIRED)

    def release(self) -> dict[str, Any]:
        return self._made(ReservationState.HELD)

    def refund(self) -> dict[str, Any]:
        return self._made(ReservationState.COMMITTED) | {"amount": self._rng.choice((0, 1, 3))}

    def _made(self, *states: ReservationState) -> dict[str, Any]:
        """One of the last reservations, mostly one that stands so, and whose it is."""
        jobs = self._world.shop.jobs
        made = (each for each in self._world.reservations.values() if each.reservation_id not in jobs)
        fit = [each for each in made if each.state in states or self._rng.random() < 0.1]
        if not fit:
            return {"what": "none"}
        found = self._rng.choice(fit[-RECENT:])
        team = found.payer_account_id if found.payer_account_id in TEAMS else ""
        return {"what": found.reservation_id, "who": found.account_id or USERS[0], "of": team}

    def offer(self) -> dict[str, Any]:
        rng = self._rng
        return {
            "amount": rng.choice((1, 2, 5, 12)),
            "price": rng.choice((1, 10, 25)),
            "hours": rng.choice((0, 1, 24, 24 * 90)),
        }

    def take(self) -> dict[str, Any]:
        """Of one of the last offers, mostly of one that has something left."""
        found = self._offered()
        if found is None:
            return {"what": "none"}
        return {"what": found.offer_id, "of": found.account_id, "amount": self._rng.randint(1, max(found.left, 1))}

    def cancel(self) -> dict[str, Any]:
        found = self._offered()
        return {"what": "none"} if found is None else {"what": found.offer_id, "who": found.account_id}

    def _offered(self) -> Offer | None:
        fit = [each for each in self._world.offers.values() if each.left or self._rng.random() < 0.1]
        return self._rng.choice(fit[-RECENT:]) if fit else None

    def put_prices(self) -> dict[str, Any]:
        """A list of its own; some are cheaper at night or for a tier, reach some accounts only, or begin later."""
        rng, batch, instant = self._rng, self._rng.randint(2, 4), self._rng.randint(3, 9)
        rows = [PriceRow(Lane.BATCH, batch), PriceRow(Lane.INSTANT, instant)]
        if rng.random() < 0.3:
            rows.append(PriceRow(Lane.INSTANT, instant - 1, hours=Hours(22 * 60, rng.choice((23, 6)) * 60)))
        if rng.random() < 0.3:
            rows.append(PriceRow(Lane.BATCH, batch - 1, tier="gold"))
        begin_us = self._world.now_us + rng.choice((2, 12)) * HOUR_US if rng.random() < 0.3 else 0
        version, percent = f"v{rng.getrandbits(32):08x}", rng.choice((30, 50, 100, 100))
        return {"who": ADMIN, "key": version, "content": Content(version, begin_us, "UTC", tuple(rows), percent)}

    def put_rules(self) -> dict[str, Any]:
        """A version with other numbers, for all or for a trial; those of a cohort grow and shrink."""
        rng, first = self._rng, self._earning
        rules = first._replace(
            daily_bonus=rng.choice((1, 2, 3)),
            points_per_token=rng.choice((50, 100, 200)),
            tokens_per_day=rng.choice((2, 5, 9)),
            gifts_per_day=rng.choice((5, 20)),
            welcome_lock_days=rng.choice((10, 30)),
            activities={name: each._replace(per_day=rng.choice((1, 3, 6))) for name, each in first.activities.items()},
        )
        version, percent = f"r{rng.getrandbits(32):08x}", rng.choice((30, 60, 100))
        what = rng.choice(("autumn", "autumn", version))
        return {"who": ADMIN, "key": version, "what": what, "amount": percent, "rules": rules}

    def change(self) -> dict[str, Any]:
        return {"who": ADMIN, "what": self._rng.choice(USERS)}

    def roll_out(self) -> dict[str, Any]:
        return {"who": ADMIN, "what": self._list(), "amount": self._rng.choice((20, 40, 60, 80, 100))}

    def withdraw(self) -> dict[str, Any]:
        return {"who": ADMIN, "what": self._list()}

    def _list(self) -> str:
        put = self._world.shop.lists[1:]
        return self._rng.choice(put[-3:]).content.version if put else "none"

    def quote(self) -> dict[str, Any]:
        return {"of": self._rng.choice(("", "", TEAMS[0])) if "teams" in self._themes else ""}

    def submit(self) -> dict[str, Any]:
        """Mostly by one of the last quotes, mostly of the one who got it."""
        rng, quotes = self._rng, list(self._world.shop.quotes.items())[-RECENT:]
        lane = {"lane": rng.choice((Lane.BATCH.value, Lane.INSTANT.value, FALLBACK))}
        if not quotes or rng.random() < 0.3:
            return lane | self.quote()
        quote_id, (payer, _) = rng.choice(quotes)
        if payer in TEAMS:
            return lane | {"what": quote_id, "of": payer}
        return lane | {"what": quote_id, "of": ""} | ({"who": payer} if rng.random() < 0.9 else {})

    def job(self) -> dict[str, Any]:
        """One of the last jobs, mostly one that has not ended."""
        jobs = self._world.shop.jobs.values()
        fit = [each.uid for each in jobs if not is_final(each) or self._rng.random() < 0.1]
        return {"what": self._rng.choice(fit[-RECENT:]) if fit else "none"}

    def give_back(self) -> dict[str, Any]:
        done = [uid for uid, each in self._world.shop.jobs.items() if each.state is State.SUCCEEDED]
        return {"what": self._rng.choice(done[-RECENT:]) if done else "none"}

    def member(self) -> dict[str, Any]:
        role = self._rng.choice((Role.MEMBER, Role.MEMBER, Role.MEMBER, Role.MANAGER, Role.OWNER))
        whom, out = self.unmember(), [each for each in self._world.state.shared.members.values() if not each.is_in]
        if out and self._rng.random() < 0.5:
            last = max(out, key=lambda each: each.revision)
            whom = {"what": last.member_id, "of": last.team_id, "who": USERS[TEAMS.index(last.team_id)]}
        return whom | {"role": int(role), "limits": self.limits()}

    def unmember(self) -> dict[str, Any]:
        """Often one who holds something, mostly by the one who began the team; else by whoever it is."""
        number = self._rng.randrange(len(self._teams))
        founder = {"who": USERS[number]} if self._rng.random() < 0.7 else {}
        held = [each for each in self._world.reservations.values() if each.held and each.spend_day]
        if held and self._rng.random() < 0.5:
            number = TEAMS.index(held[-1].payer_account_id)
            return {"what": held[-1].account_id, "of": TEAMS[number], "who": USERS[number]}
        what = self._rng.choice(MEMBERS if self._rng.random() < 0.8 else USERS)
        return {"what": what, "of": TEAMS[number], **founder}


_DETAILS: Final[Mapping[str, Callable[[_Teller], dict[str, Any]]]] = {
    "activity": _Teller.activity,
    "award": _Teller.award,
    "convert": _Teller.convert,
    "give": _Teller.give,
    "top_up": _Teller.top_up,
    "reserve": _Teller.reserve,
    "commit": _Teller.commit,
    "release": _Teller.release,
    "refund": _Teller.refund,
    "offer": _Teller.offer,
    "take": _Teller.take,
    "cancel": _Teller.cancel,
    **dict.fromkeys(CHANGES, _Teller.change),
    "put_rules": _Teller.put_rules,
    "put_prices": _Teller.put_prices,
    "roll_out": _Teller.roll_out,
    "withdraw": _Teller.withdraw,
    "quote": _Teller.quote,
    "submit": _Teller.submit,
    "answer": _Teller.job,
    "fail": _Teller.job,
    "give_up": _Teller.job,
    "give_back": _Teller.give_back,
    "member": _Teller.member,
    "unmember": _Teller.unmember,
}
