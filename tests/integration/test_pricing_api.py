"""Prices through the front door: quotes, lists that change while the batcher runs, and jobs that are priced by them."""

from collections import Counter
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings

from punchcard.batcher.v1 import batcher_pb2, pricing_pb2
from punchcard.batcher.v1.batcher_pb2 import LANE_BATCH, LANE_INSTANT
from services.batcher.price_list import standing
from services.chassis.server import RefusesToStart
from tests.batchers import picture, request_of, sandbox_in
from tests.protobuf_values import messages
from tests.tokens import bearer
from tests.wallets import reason_of, refused

IDLE = {"cycle_seconds": 1e6, "price_notice_seconds": 0}
FAR = Timestamp(seconds=4_000_000_000)


@pytest.fixture
async def sandbox(tmp_path):
    async with sandbox_in(tmp_path) as made:
        yield made


@pytest.fixture
async def client(sandbox):
    """A batcher whose next cycle never comes and whose prices change at once."""
    async with sandbox.batcher(**IDLE) as made:
        yield made


async def call(client, method, request, metadata=None):
    return await getattr(client.pricing, method)(request, metadata=metadata or client.metadata)


def list_of(version, batch, instant, *rows, **fields):
    plain = [
        pricing_pb2.PriceRow(lane=LANE_BATCH, amount=batch),
        pricing_pb2.PriceRow(lane=LANE_INSTANT, amount=instant),
    ]
    return pricing_pb2.PutPriceListRequest(version=version, rows=[*plain, *rows], **fields)


async def quoted(client, metadata=None, **fields):
    """Prices by lane, and the version."""
    answer = await call(client, "QuoteJob", pricing_pb2.QuoteJobRequest(account_id="alice", **fields), metadata)
    return {price.lane: price.price for price in answer.lanes}, answer.price_version


async def violations(awaitable):
    """The fields that a refusal names, and what is wrong with each."""
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as caught:
        await awaitable
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in rpc_status.from_call(caught.value).details)
    return {violation.field: violation.description for violation in bad_request.field_violations}


async def test_an_administrator_changes_prices_while_the_batcher_runs(client):
    image_id = (await client.upload(picture())).image.image_id
    before = await client.submit("before", image_id)
    assert await quoted(client) == ({LANE_BATCH: 1, LANE_INSTANT: 5}, "v1")
    put = await call(client, "PutPriceList", list_of("v2", 2, 7))
    again = await call(client, "PutPriceList", list_of("v2", 2, 7))
    after = await client.submit("after", image_id)
    replayed = await client.submit("before", image_id)

    assert await quoted(client) == ({LANE_BATCH: 2, LANE_INSTANT: 7}, "v2")
    assert (put.replayed, again.replayed, again.price_list) == (False, True, put.price_list)
    assert (put.price_list.state, put.price_list.actor) == (pricing_pb2.PRICE_LIST_STATE_IN_FORCE, "tester")
    assert [(each.job.price, each.job.price_version) for each in (before, after, replayed)] == [
        (1, "v1"), (2, "v2"), (1, "v1")
    ]  # fmt: skip
    code, reason, metadata = await refused(call(client, "PutPriceList", list_of("v2", 2, 8)))
    assert (code, reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_MISMATCH")
    assert metadata == {"field": "rows[1].amount", "stored": "7", "received": "8"}


async def test_a_job_is_never_dearer_than_its_max_price_and_nothing_is_reserved_for_one_that_would_be(sandbox, client):
    image_id = (await client.upload(picture())).image.image_id
    await call(client, "PutPriceList", list_of("v2", 2, 7))
    code, reason, metadata = await refused(client.submit("a", image_id, max_price=1))
    pinned = await refused(client.submit("b", image_id, price_version="v1"))
    many = batcher_pb2.SubmitJobsRequest(
        items=[request_of("c", image_id, max_price=1), request_of("d", image_id, max_price=2, price_version="v2")]
    )
    dear, fine = (await client.call("SubmitJobs", many)).results

    assert (code, reason) == ("FAILED_PRECONDITION", "PRICE_CHANGED")
    assert metadata == {"price": "2", "price_version": "v2", "max_price": "1"}
    assert pinned[1:] == ("PRICE_CHANGED", {"price": "2", "price_version": "v2", "expected_version": "v1"})
    assert (dear.refusal.code, dict(dear.refusal.metadata)) == (9, metadata)
    assert fine.state == batcher_pb2.JOB_STATE_QUEUED
    assert await sandbox.wallet.balance("alice") == (10, 2)
    assert (await client.submit("a", image_id, max_price=2)).job.price == 2
    # A retry of what was accepted is answered whatever it costs by now, and whatever it would accept.
    await call(client, "PutPriceList", list_of("v3", 3, 7))
    again = await client.submit("a", image_id, max_price=1)
    assert (again.replayed, again.job.price) == (True, 2)


async def test_a_quote_is_kept_although_a_list_is_put_meanwhile(sandbox):
    async with sandbox.batcher(cycle_seconds=1e6, price_notice_seconds=600) as client:
        image_id = (await client.upload(picture())).image.image_id
        request = pricing_pb2.QuoteJobRequest(account_id="alice", model="gpt-4.1-nano")
        quote = await call(client, "QuoteJob", request)
        put = await call(client, "PutPriceList", list_of("v2", 2, 7))
        job = (await client.submit("a", image_id, model="gpt-4.1-nano")).job

    assert quote.expire_time.ToMicroseconds() == quote.quote_time.ToMicroseconds() + 600_000_000
    assert put.price_list.effective_time.ToMicroseconds() > quote.expire_time.ToMicroseconds()
    assert put.price_list.state == pricing_pb2.PRICE_LIST_STATE_SCHEDULED
    assert (quote.model, quote.price_version, job.price_version, job.price) == ("gpt-4.1-nano", "v1", "v1", 1)
    assert [(price.lane, price.price, price.fallback_price) for price in quote.lanes] == [
        (LANE_BATCH, 1, 0), (LANE_INSTANT, 5, 1)
    ]  # fmt: skip


async def test_a_tier_of_the_token_and_the_hour_make_a_job_cheaper(client):
    """The hours are those in which the test runs, whatever these are, by the clocks of a zone far off."""
    day = pricing_pb2.Hours(start="00:01", end="00:00")
    rows = [
        pricing_pb2.PriceRow(lane=LANE_BATCH, amount=6, tier="gold"),
        pricing_pb2.PriceRow(lane=LANE_INSTANT, amount=40, hours=day),
        pricing_pb2.PriceRow(lane=LANE_INSTANT, amount=30, hours=pricing_pb2.Hours(start="00:00", end="00:01")),
    ]
    await call(client, "PutPriceList", list_of("v2", 8, 50, *rows, time_zone="Pacific/Auckland"))
    gold = bearer("alice", "job.submit tier:gold", audience="punchcard.batcher")
    image_id = (await client.upload(picture())).image.image_id

    prices, _ = await quoted(client)
    with_tier, _ = await quoted(client, gold)
    job = (await client.call("SubmitJob", request_of("a", image_id), gold)).job

    assert prices[LANE_BATCH] == 8
    assert with_tier[LANE_BATCH] == job.price == 6
    assert prices[LANE_INSTANT] in (30, 40)


async def test_a_trial_reaches_a_part_of_the_payers_and_is_rolled_out_to_all(client):
    await call(client, "PutPriceList", list_of("trial", 3, 5, rollout_percent=40))
    teams = [f"team-{number}" for number in range(30)]

    async def reached():
        return {team for team in teams if (await quoted(client, payer_account_id=team))[1] == "trial"}

    some = await reached()
    step = pricing_pb2.RollOutPriceListRequest(version="trial", percent=70)
    grown = await call(client, "RollOutPriceList", step)
    more = await reached()
    await call(client, "RollOutPriceList", pricing_pb2.RollOutPriceListRequest(version="trial", percent=100))
    (trial, first) = (await call(client, "ListPriceLists", pricing_pb2.ListPriceListsRequest())).price_lists

    assert some == {team for team in teams if standing("trial", team) < 40}
    assert some < more < set(teams) == await reached()
    assert [each.percent for each in grown.price_list.rollouts] == [40, 70]
    assert (await call(client, "RollOutPriceList", step)).replayed
    code, reason, metadata = await refused(
        call(client, "RollOutPriceList", pricing_pb2.RollOutPriceListRequest(version="trial", percent=50))
    )
    assert (code, reason) == ("FAILED_PRECONDITION", "ROLLOUT_SHRINKS")
    assert metadata == {"version": "trial", "percent": "50", "current_percent": "100"}
    assert (trial.state, first.state) == (
        pricing_pb2.PRICE_LIST_STATE_IN_FORCE, pricing_pb2.PRICE_LIST_STATE_REPLACED
    )  # fmt: skip


async def test_a_scheduled_list_is_withdrawn_and_one_in_force_is_not(client):
    await call(client, "PutPriceList", list_of("later", 3, 5, effective_time=FAR))
    request = pricing_pb2.WithdrawPriceListRequest(version="later")
    gone, again = [await call(client, "WithdrawPriceList", request) for _ in range(2)]

    assert (gone.replayed, again.replayed) == (False, True)
    assert gone.price_list.state == pricing_pb2.PRICE_LIST_STATE_WITHDRAWN
    assert gone.price_list.HasField("withdraw_time")
    refusals = [
        (await refused(call(client, "WithdrawPriceList", pricing_pb2.WithdrawPriceListRequest(version=version))))[:2]
        for version in ("v1", "v9")
    ]
    step = pricing_pb2.RollOutPriceListRequest(version="v9", percent=1)
    rolled = await refused(call(client, "RollOutPriceList", step))
    assert refusals == [("FAILED_PRECONDITION", "PRICE_LIST_IN_FORCE"), ("NOT_FOUND", "PRICE_LIST_NOT_FOUND")]
    assert rolled == ("NOT_FOUND", "PRICE_LIST_NOT_FOUND", {"version": "v9"})


async def test_lists_are_read_in_pages(client):
    for number in range(3):
        await call(client, "PutPriceList", list_of(f"w{number}", 3, 5, effective_time=FAR))
    pages, token = [], ""
    while True:
        page = await call(client, "ListPriceLists", pricing_pb2.ListPriceListsRequest(page_size=2, page_token=token))
        pages.append([each.version for each in page.price_lists])
        token = page.next_page_token
        if not token:
            break

    assert pages == [["w2", "w1"], ["w0", "v1"]]
    for wrong in ("x", "cHJpY2VzIDA=", "cHJpY2VzIC0x", "é"):
        request = pricing_pb2.ListPriceListsRequest(page_token=wrong)
        assert set(await violations(call(client, "ListPriceLists", request))) == {"page_token"}


async def test_two_replicas_price_by_one_database_from_the_next_job_on(tmp_path, postgres_url):
    async with (
        sandbox_in(tmp_path, postgres_url) as sandbox,
        sandbox.batcher(**IDLE) as one,
        sandbox.batcher(**IDLE) as two,
    ):
        image_id = (await one.upload(picture())).image.image_id
        for number, client in enumerate((one, two)):
            await client.submit(f"warm-{number}", image_id)
        for place, (put_by, asked) in enumerate(((one, two), (two, one)), 2):
            await call(put_by, "PutPriceList", list_of(f"v{place}", place, 9))
            assert await quoted(asked) == ({LANE_BATCH: place, LANE_INSTANT: 9}, f"v{place}")
            assert (await asked.submit(f"job-{place}", image_id, max_price=place)).job.price == place


async def test_a_start_with_other_prices_under_a_known_version_is_refused_and_says_which(sandbox, client):
    with pytest.raises(RefusesToStart, match=r"'v1'.*rows\[1\].amount.*5 in the database, 9 in the configuration"):
        async with sandbox.batcher(price_instant=9):
            pass
    async with sandbox.batcher(price_instant=9, price_version="v2", **IDLE) as other:
        assert await quoted(other) == await quoted(client) == ({LANE_BATCH: 1, LANE_INSTANT: 9}, "v2")


async def test_a_start_without_any_price_in_force_is_refused(sandbox):
    path = sandbox.folder / "prices.json"
    path.write_text('[{"version": "1", "effective_time_us": 4000000000000000, "lanes": {"BATCH": 1, "INSTANT": 5}}]')

    with pytest.raises(RefusesToStart, match="no price list is in force yet"):
        async with sandbox.batcher(prices_file=path):
            pass


WORDS = {
    "": ["alice", "bob"],
    "version": ["v1", "v2", "v3"],
    "model": ["", "gpt-4.1-mini", "big"],
    "time_zone": ["", "Europe/Berlin", "Asia/Tokyo"],
    "tier": ["", "gold"],
    "start": ["22:00", "00:00"],
    "end": ["06:00", "23:59"],
    "page_token": [""],
}
REASONS = {
    "INVALID_FIELD", "IDEMPOTENCY_MISMATCH", "PRICE_LIST_NOT_FOUND", "PRICE_LIST_WITHDRAWN", "PRICE_LIST_IN_FORCE",
    "ROLLOUT_SHRINKS", "ACCOUNT_NOT_FOUND",
}  # fmt: skip


METHODS = pricing_pb2.DESCRIPTOR.services_by_name["PricingService"].methods_by_name


@pytest.mark.parametrize("name", sorted(METHODS))
async def test_whatever_is_sent_is_answered_or_refused_with_a_reason_and_jobs_still_have_a_price(client, name):
    """Two hundred messages of each method, always the same ones."""
    drawn = []

    @settings(max_examples=200, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(messages(METHODS[name].input_type, WORDS))
    def draw(message):
        drawn.append(message)

    draw()
    seen = Counter()
    for message in drawn:
        try:
            await call(client, name, message)
            seen["OK"] += 1
        except grpc.aio.AioRpcError as error:
            seen[reason_of(error)[1]] += 1

    assert set(seen) <= {"OK", *REASONS}, seen
    assert (await quoted(client))[1]


BAD_LISTS = [
    (list_of("", 1, 5), {"version"}),
    (list_of("a b", 1, 5), {"version"}),
    (list_of("v2", 0, 10**15 + 1), {"rows[0].amount", "rows[1].amount"}),
    (pricing_pb2.PutPriceListRequest(version="v2"), {"rows"}),
    (list_of("v2", 1, 5, pricing_pb2.PriceRow(amount=1, model="m")), {"rows[2].lane"}),
    (list_of("v2", 1, 5, pricing_pb2.PriceRow(lane=LANE_BATCH, amount=1, model="\0")), {"rows[2].model"}),
    (list_of("v2", 1, 5, pricing_pb2.PriceRow(lane=LANE_INSTANT, amount=5, tier="gold")), {"rows[2].amount"}),
    (
        list_of("v2", 1, 5, pricing_pb2.PriceRow(lane=LANE_INSTANT, amount=4, hours=pricing_pb2.Hours(start="24:00"))),
        {"rows[2].hours.start", "rows[2].hours.end"},
    ),
    (list_of("v2", 1, 5, time_zone="Mars/Olympus"), {"time_zone"}),
    (list_of("v2", 1, 5, time_zone="../../etc/passwd"), {"time_zone"}),
    (list_of("v2", 1, 5, time_zone="/etc/localtime"), {"time_zone"}),
    (list_of("v2", 1, 5, rollout_percent=0), {"rollout_percent"}),
    (list_of("v2", 1, 5, effective_time=Timestamp(seconds=2**60)), {"effective_time"}),
    (list_of("v2", 1, 5, effective_time=Timestamp()), {"effective_time"}),
    (list_of("v2", 1, 5, effective_time=Timestamp(seconds=1_000_000_000)), {"effective_time"}),
]


async def test_a_list_that_is_not_sound_is_refused_with_each_field_value_and_limit(client):
    before = await call(client, "ListPriceLists", pricing_pb2.ListPriceListsRequest())
    for request, fields in BAD_LISTS:
        assert fields <= set(await violations(call(client, "PutPriceList", request))), request
    past = list_of("v2", 1, 5, effective_time=Timestamp(seconds=1_000_000_000))
    said = (await violations(call(client, "PutPriceList", past)))["effective_time"]
    for percent in (-1, 0, 101):
        step = pricing_pb2.RollOutPriceListRequest(version="v1", percent=percent)
        assert await violations(call(client, "RollOutPriceList", step)) == {
            "percent": f"must be 1 to 100, got '{percent}'"
        }

    assert "or later, got '2001-09-09T01:46:40Z'" in said
    assert str(datetime.now(UTC).year) in said
    assert await call(client, "ListPriceLists", pricing_pb2.ListPriceListsRequest()) == before


async def test_prices_are_an_administrators_and_a_quote_is_for_ones_own_account(client):
    alice = bearer("alice", "job.submit job.read job.admin", audience="punchcard.batcher")
    for method, request in (
        ("PutPriceList", list_of("v2", 1, 5)),
        ("RollOutPriceList", pricing_pb2.RollOutPriceListRequest(version="v1", percent=100)),
        ("WithdrawPriceList", pricing_pb2.WithdrawPriceListRequest(version="v1")),
        ("ListPriceLists", pricing_pb2.ListPriceListsRequest()),
    ):
        code, reason, metadata = await refused(call(client, method, request, alice))
        assert (code, reason, metadata["scope"]) == ("PERMISSION_DENIED", "SCOPE_MISSING", "price.admin")
    for account_id, payer_id in (("bob", ""), ("alice", "bob")):
        request = pricing_pb2.QuoteJobRequest(account_id=account_id, payer_account_id=payer_id)
        assert (await refused(call(client, "QuoteJob", request, alice)))[1] == "ACCOUNT_NOT_FOUND"
    unknown = pricing_pb2.QuoteJobRequest(account_id="alice", model="gpt-99")
    assert set(await violations(call(client, "QuoteJob", unknown, alice))) == {"model"}
    assert (await quoted(client, alice))[1] == "v1"


@pytest.mark.parametrize(
    "fields", [{"max_price": 0}, {"max_price": -1}, {"max_price": 2**62}, {"price_version": "a b"}]
)
async def test_terms_that_are_none_are_refused_with_their_field(client, fields):
    image_id = (await client.upload(picture())).image.image_id

    assert set(await violations(client.submit("a", image_id, **fields))) == set(fields)
