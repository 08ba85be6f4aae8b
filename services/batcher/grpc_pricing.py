"""Prices on the wire: quotes for customers, and the changes of an administrator. No rule lives here."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

from punchcard.batcher.v1 import pricing_pb2, pricing_pb2_grpc
from services.batcher.errors import AccountNotFound
from services.batcher.grpc_messages import LANES, MODEL_CHARS_MAX, Shield, tiers_of, timestamp
from services.batcher.job import Lane
from services.batcher.price_list import Content, Hours, PriceList, PriceRow, minute_of, problems, text_of
from services.batcher.pricing import quote
from services.batcher.store_prices import Changed, Page, PriceBook, PriceStore
from services.chassis.auth import current_principal
from services.chassis.database import Database
from services.chassis.errors import InvalidField, Violation
from services.chassis.fields import Checks

SERVICE: Final = "punchcard.batcher.v1.PricingService"
PAGE_SIZE_DEFAULT: Final = 20
PAGE_SIZE_MAX: Final = 100
"""So many fit into a message that clients take, even of 200 rows each."""

REVISION_MAX: Final = 2**62
ZONE_CHARS_MAX: Final = 64

SCOPES: Final[Mapping[str, str]] = {
    f"/{SERVICE}/QuoteJob": "job.submit",
    f"/{SERVICE}/PutPriceList": "price.admin",
    f"/{SERVICE}/RollOutPriceList": "price.admin",
    f"/{SERVICE}/WithdrawPriceList": "price.admin",
    f"/{SERVICE}/ListPriceLists": "price.admin",
}
"""Which scope a method asks for. A method that is not here is open to nobody."""

_LANE_NAMES: Final = {number: Lane(name) for name, number in LANES.items()}


class PricingApi(pricing_pb2_grpc.PricingServiceServicer):
    """The five methods. models: those that a job may name; notice_us: how long before it begins a change is known."""

    def __init__(
        self,
        database: Database,
        book: PriceBook,
        store: PriceStore,
        shield: Shield,
        model_default: str,
        models: frozenset[str],
        notice_us: int,
    ) -> None:
        self._database = database
        self._book = book
        self._store = store
        self._shield = shield
        self._model_default = model_default
        self._models = models
        self._notice_us = notice_us

    async def QuoteJob(self, request: pricing_pb2.QuoteJobRequest, context: Any) -> pricing_pb2.QuoteJobResponse:
        checks = Checks()
        account_id = checks.id("account_id", request.account_id)
        payer_id = checks.optional_id("payer_account_id", request.payer_account_id) or account_id
        model = checks.text("model", request.model, MODEL_CHARS_MAX) or self._model_default
        if model not in self._models:
            checks.fail("model", model, f"must be one of {', '.join(sorted(self._models))}")
        checks.done()
        principal = current_principal()
        for each in (account_id, payer_id):
            if not principal.may_act_for(each):
                raise AccountNotFound(each)
        async with self._database.reading() as tx:
            lists, now_us = await self._book.seen(tx)
        quoted = quote(lists, payer_id, model, tiers_of(principal), now_us, self._notice_us)
        prices = quoted.prices
        batch = pricing_pb2.LanePrice(lane=LANES[Lane.BATCH], price=prices.batch)
        fallback_price = min(prices.batch, prices.instant)
        instant = pricing_pb2.LanePrice(lane=LANES[Lane.INSTANT], price=prices.instant, fallback_price=fallback_price)
        return pricing_pb2.QuoteJobResponse(
            lanes=[batch, instant],
            price_version=prices.version,
            model=model,
            quote_time=timestamp(quoted.quote_time_us),
            expire_time=timestamp(quoted.expire_time_us),
        )

    async def PutPriceList(
        self, request: pricing_pb2.PutPriceListRequest, context: Any
    ) -> pricing_pb2.PutPriceListResponse:
        content = _content_of(request)
        changed = await self._shield(self._store.put(content, current_principal().subject))
        price_list = await self._message(changed)
        return pricing_pb2.PutPriceListResponse(price_list=price_list, replayed=changed.replayed)

    async def RollOutPriceList(
        self, request: pricing_pb2.RollOutPriceListRequest, context: Any
    ) -> pricing_pb2.RollOutPriceListResponse:
        checks = Checks()
        version = checks.id("version", request.version)
        percent = checks.number("percent", request.percent, 1, 100)
        checks.done()
        changed = await self._shield(self._store.extend(version, percent, current_principal().subject))
        price_list = await self._message(changed)
        return pricing_pb2.RollOutPriceListResponse(price_list=price_list, replayed=changed.replayed)

    async def WithdrawPriceList(
        self, request: pricing_pb2.WithdrawPriceListRequest, context: Any
    ) -> pricing_pb2.WithdrawPriceListResponse:
        checks = Checks()
        version = checks.id("version", request.version)
        checks.done()
        changed = await self._shield(self._store.withdraw(version, current_principal().subject))
        price_list = await self._message(changed)
        return pricing_pb2.WithdrawPriceListResponse(price_list=price_list, replayed=changed.replayed)

    async def ListPriceLists(
        self, request: pricing_pb2.ListPriceListsRequest, context: Any
    ) -> pricing_pb2.ListPriceListsResponse:
        checks = Checks()
        if request.page_size < 0:
            checks.fail("page_size", request.page_size, "must not be negative")
        checks.done()
        before = _revision_of(request.page_token) if request.page_token else REVISION_MAX
        size = min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        page = await self._store.page(before, size + 1)
        shown = page.lists[:size]
        token = _token(shown[-1].put_revision) if len(page.lists) > size else ""
        return pricing_pb2.ListPriceListsResponse(
            price_lists=[_list_message(each, page) for each in shown], next_page_token=token
        )

    async def _message(self, changed: Changed) -> pricing_pb2.PriceList:
        return _list_message(changed.price_list, await self._store.page(0, 1))


def _content_of(request: pricing_pb2.PutPriceListRequest) -> Content:
    """Checks a list field by field. Raises InvalidField."""
    checks = Checks()
    time_zone = request.time_zone or "UTC"
    if not _is_zone(time_zone):
        checks.fail("time_zone", time_zone, "must be the IANA name of a time zone, as Europe/Berlin")
    effective_us = checks.time_us("effective_time", request.effective_time) if request.HasField("effective_time") else 0
    if request.HasField("effective_time") and not checks.violations and not effective_us:
        checks.fail("effective_time", effective_us, "must be after 1970")
    percent = request.rollout_percent if request.HasField("rollout_percent") else 100
    rows = tuple(_row_of(checks, row, f"rows[{place}].") for place, row in enumerate(request.rows))
    content = Content(request.version, effective_us, time_zone, rows, percent)
    for found in problems(content):
        checks.fail(*found)
    checks.done()
    return content


def _row_of(checks: Checks, row: pricing_pb2.PriceRow, prefix: str) -> PriceRow:
    if row.lane not in _LANE_NAMES:
        checks.fail(f"{prefix}lane", row.lane, "must be LANE_BATCH or LANE_INSTANT")
    hours = None
    if row.HasField("hours"):
        start = _minute_of(checks, f"{prefix}hours.start", row.hours.start)
        hours = Hours(start, _minute_of(checks, f"{prefix}hours.end", row.hours.end))
    return PriceRow(_LANE_NAMES.get(row.lane, Lane.BATCH), row.amount, row.model, row.tier, hours)


def _minute_of(checks: Checks, field: str, text: str) -> int:
    try:
        return minute_of(text)
    except ValueError:
        checks.fail(field, text, "must be HH:MM, 00:00 to 23:59")
        return 0


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name[:ZONE_CHARS_MAX])
    except (ValueError, OSError, LookupError):
        return False
    return len(name) <= ZONE_CHARS_MAX


def _list_message(price_list: PriceList, page: Page) -> pricing_pb2.PriceList:
    content = price_list.content
    return pricing_pb2.PriceList(
        version=content.version,
        effective_time=timestamp(price_list.effective_time_us),
        time_zone=content.time_zone,
        rows=[_row_message(row) for row in content.rows],
        rollouts=[
            pricing_pb2.Rollout(percent=step.percent, start_time=timestamp(step.start_time_us))
            for step in price_list.rollouts
        ],
        state=_state_of(price_list, page),
        actor=price_list.actor,
        create_time=timestamp(price_list.create_time_us),
        withdraw_time=timestamp(price_list.withdraw_time_us) if price_list.withdraw_time_us else None,
        revision=price_list.last_revision,
    )


def _row_message(row: PriceRow) -> pricing_pb2.PriceRow:
    hours = row.hours and pricing_pb2.Hours(start=text_of(row.hours.start_minute), end=text_of(row.hours.end_minute))
    return pricing_pb2.PriceRow(lane=LANES[row.lane], amount=row.amount, model=row.model, tier=row.tier, hours=hours)


def _state_of(price_list: PriceList, page: Page) -> pricing_pb2.PriceListState.ValueType:
    if price_list.withdraw_time_us:
        return pricing_pb2.PRICE_LIST_STATE_WITHDRAWN
    if price_list.effective_time_us > page.now_us:
        return pricing_pb2.PRICE_LIST_STATE_SCHEDULED
    if page.base is not None and price_list.place < page.base.place:
        return pricing_pb2.PRICE_LIST_STATE_REPLACED
    return pricing_pb2.PRICE_LIST_STATE_IN_FORCE


def _token(put_revision: int) -> str:
    """Where a list goes on."""
    return base64.urlsafe_b64encode(f"prices {put_revision}".encode()).decode()


def _revision_of(token: str) -> int:
    try:
        word, number = base64.urlsafe_b64decode(token.encode()).decode("ascii").split(" ")
        revision = int(number) if word == "prices" and len(number) < 20 else 0
    except (binascii.Error, UnicodeError, ValueError):
        revision = 0
    if not 0 < revision <= REVISION_MAX:
        raise InvalidField([Violation("page_token", token[:64], "is not a next_page_token of ListPriceLists")])
    return revision
