"""What is asked of an account's history, on the wire."""

from typing import Final

from punchcard.wallet.v1 import wallet_pb2
from services.chassis.fields import ID_PATTERN, Checks
from services.wallet import calendar_day, grpc_pages
from services.wallet.errors import AccountNotFound
from services.wallet.grpc_messages import KINDS, transaction_message
from services.wallet.holdings import POINT, TOKEN
from services.wallet.store_history import TIME_US_MAX, Day, History, NoSuchPlace, Wanted

KINDS_MAX: Final = 50
DAYS_DEFAULT: Final = 31
DAYS_MAX: Final = 400
ASSETS: Final = (TOKEN, POINT)
FIRST_DAY: Final = calendar_day.read_day("0001-01-01")
LAST_DAY: Final = calendar_day.read_day("9999-12-30")
"""The last one whose end every zone knows."""

_KIND_NAMES: Final = {number: name for name, number in KINDS.items()}


async def list_transactions(
    history: History, request: wallet_pb2.ListTransactionsRequest, account_id: str
) -> wallet_pb2.ListTransactionsResponse:
    """A page of an account that the caller may read. Raises `InvalidField` or `AccountNotFound`."""
    size = grpc_pages.page_size(request.page_size)
    wanted = wanted_rows(request)
    before = grpc_pages.history_revision(request.page_token, account_id)
    try:
        page = await history.transactions(account_id, before, size, wanted)
    except NoSuchPlace:
        raise grpc_pages.bad_page_token(request.page_token) from None
    if page is None:
        raise AccountNotFound(account_id)
    return wallet_pb2.ListTransactionsResponse(
        transactions=[transaction_message(row) for row in page.rows],
        next_page_token=_token(account_id, page.next_revision),
    )


async def list_days(
    history: History, request: wallet_pb2.ListDaySummariesRequest, account_id: str
) -> wallet_pb2.ListDaySummariesResponse:
    """A page of the days of an account that the caller may read. Raises `InvalidField` or `AccountNotFound`."""
    size = min(grpc_pages.page_size(request.page_size), DAYS_MAX) if request.page_size else DAYS_DEFAULT
    asset, days = wanted_days(request)
    before = grpc_pages.history_revision(request.page_token, account_id)
    try:
        page = await history.days(account_id, asset, days, before, size)
    except NoSuchPlace:
        raise grpc_pages.bad_page_token(request.page_token) from None
    if page is None:
        raise AccountNotFound(account_id)
    return wallet_pb2.ListDaySummariesResponse(
        days=[day_message(day) for day in page.days], next_page_token=_token(account_id, page.next_revision)
    )


def wanted_rows(request: wallet_pb2.ListTransactionsRequest) -> Wanted:
    """Which rows a request means. Raises `InvalidField`."""
    checks = Checks()
    checks.count("kinds", request.kinds, KINDS_MAX, 0)
    kinds = []
    for place, number in enumerate(request.kinds[:KINDS_MAX]):
        if number in _KIND_NAMES:
            kinds.append(_KIND_NAMES[number])
        else:
            checks.fail(f"kinds[{place}]", number, "must name a kind of rows")
    since_us = checks.time_us("start_time", request.start_time) if request.HasField("start_time") else 0
    until_us = checks.time_us("end_time", request.end_time) if request.HasField("end_time") else TIME_US_MAX
    if until_us < since_us and not checks.violations:
        checks.fail("end_time", request.end_time.ToJsonString(), "must not be before start_time")
    counterparty = request.counterparty
    if counterparty and ID_PATTERN.fullmatch(counterparty.removeprefix("@")) is None:
        checks.fail("counterparty", counterparty, f"must match @?{ID_PATTERN.pattern}")
    asset = _asset(checks, request.asset)
    checks.done()
    return Wanted(tuple(sorted(set(kinds))), counterparty, since_us, until_us, asset)


def wanted_days(request: wallet_pb2.ListDaySummariesRequest) -> tuple[str, range]:
    """Which asset and days a request means. Raises `InvalidField`."""
    checks = Checks()
    asset = _asset(checks, request.asset)
    first, last = _day(checks, "first_day", request.first_day), _day(checks, "last_day", request.last_day)
    first, last = FIRST_DAY if first is None else first, LAST_DAY if last is None else last
    if last < first:
        checks.fail("last_day", request.last_day, "must not be before first_day")
    checks.done()
    return asset, range(first, last + 1)


def day_message(day: Day) -> wallet_pb2.DaySummary:
    """What a day came to."""
    parts = [
        wallet_pb2.DayPart(
            kind=KINDS[part.kind],
            rule=part.rule,
            amount_in=part.amount_in,
            amount_out=part.amount_out,
            transactions=part.rows,
        )
        for part in day.parts
    ]
    return wallet_pb2.DaySummary(day=calendar_day.text_of(day.day), balance=day.balance, parts=parts)


def _asset(checks: Checks, asset: str) -> str:
    if asset and asset not in ASSETS:
        checks.fail("asset", asset, f"must be one of {', '.join(ASSETS)}")
    return asset or TOKEN


def _day(checks: Checks, field: str, text: str) -> int | None:
    if not text:
        return None
    try:
        day = calendar_day.read_day(text)
    except ValueError:
        day = 0
    if not FIRST_DAY <= day <= LAST_DAY:
        checks.fail(field, text, "must be a day as YYYY-MM-DD")
    return day


def _token(account_id: str, revision: int) -> str:
    return grpc_pages.history_token(account_id, revision) if revision else ""
