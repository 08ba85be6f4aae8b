"""Page tokens: where a list goes on. They give no right by themselves: the account is checked on every page."""

import base64
import binascii
from typing import Final

from services.chassis.errors import InvalidField, Violation
from services.chassis.fields import ID_PATTERN, Checks
from services.wallet import store_market
from services.wallet.market import Offer
from services.wallet.store_reads import FIRST_PLACE, Place

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
NUMBER_MAX: Final = 2**63 - 1
MARKET: Final = "@market"
"""Stands for the account where a list is of nobody's own."""


def page_size(requested: int) -> int:
    """How many things a page has; raises `InvalidField` for a negative number."""
    checks = Checks()
    if requested < 0:
        checks.fail("page_size", requested, "must not be negative")
    checks.done()
    return min(requested or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def history_token(account_id: str, revision: int) -> str:
    """Where a page of this account's history goes on."""
    return _encode(account_id, revision)


def history_revision(token: str, account_id: str) -> int | None:
    """The revision of a history's token; None without one. Raises `InvalidField` for what is none of this account."""
    if not token:
        return None
    (revision,) = _decode(token, account_id, 1)
    return _number(revision, token)


def reservations_token(account_id: str, last: Place) -> str:
    """Where the list of this account's open reservations goes on."""
    return _encode(account_id, *last)


def reservations_place(token: str, account_id: str) -> Place:
    """The place of a token, or the first; raises `InvalidField` for what is none of this account."""
    if not token:
        return FIRST_PLACE
    expire_time_us, created_by, reservation_id = _decode(token, account_id, 3)
    if not (ID_PATTERN.fullmatch(created_by) and ID_PATTERN.fullmatch(reservation_id)):
        raise bad_page_token(token)
    return Place(_number(expire_time_us, token), created_by, reservation_id)


def members_token(team_id: str, member_id: str) -> str:
    """Where the list of this team's members goes on."""
    return _encode(team_id, member_id)


def members_place(token: str, team_id: str) -> str:
    """The member behind which a list goes on, or nobody; raises `InvalidField` for what is none of this team."""
    if not token:
        return ""
    (member_id,) = _decode(token, team_id, 1)
    if not ID_PATTERN.fullmatch(member_id):
        raise bad_page_token(token)
    return member_id


def market_token(last: Offer) -> str:
    """Where the list of what can be bought goes on."""
    return _encode(MARKET, last.price_points, last.number)


def market_place(token: str) -> store_market.Place:
    """The place of a token, or the first; raises `InvalidField` for what is none of this list."""
    if not token:
        return store_market.FIRST_PLACE
    price_points, number = _decode(token, MARKET, 2)
    return store_market.Place(_number(price_points, token), _number(number, token))


def offers_token(account_id: str, last: Offer) -> str:
    """Where the list of this account's offers goes on."""
    return _encode(account_id, last.number)


def offers_place(token: str, account_id: str) -> int:
    """The offer, by its number, before which a list goes on; raises `InvalidField` for what is none of this account."""
    if not token:
        return NUMBER_MAX
    (number,) = _decode(token, account_id, 1)
    return _number(number, token)


def bad_page_token(token: str) -> InvalidField:
    """The refusal of a token that was not given for this list."""
    return InvalidField([Violation("page_token", token[:64], "is not a next_page_token of this list")])


def _encode(*parts: object) -> str:
    return base64.urlsafe_b64encode(" ".join(map(str, parts)).encode()).decode()


def _decode(token: str, account_id: str, parts: int) -> list[str]:
    try:
        of_account, *rest = base64.urlsafe_b64decode(token.encode()).decode().split(" ")
    except (binascii.Error, UnicodeError, ValueError):
        raise bad_page_token(token) from None
    if of_account != account_id or len(rest) != parts:
        raise bad_page_token(token)
    return rest


def _number(text: str, token: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 19 and 0 < int(text) <= NUMBER_MAX:
        return int(text)
    raise bad_page_token(token)
