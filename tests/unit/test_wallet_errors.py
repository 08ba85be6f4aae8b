"""The wallet's tables are complete: no method without a scope, no reason without a row, no row without a reason."""

from punchcard.wallet.v1 import (
    earning_pb2,
    error_reason_pb2,
    giving_pb2,
    market_pb2,
    spending_pb2,
    teams_pb2,
    wallet_pb2,
)
from services.chassis.server import RECEIVE_BYTES_MAX
from services.wallet import errors, grpc_earning, grpc_giving, grpc_market, grpc_spending, grpc_teams
from services.wallet.grpc_api import ERRORS, ITEMS_MAX, SCOPES
from services.wallet.grpc_messages import REFERENCE_CHARS_MAX, refusal_message


def test_every_method_asks_for_a_scope_and_every_scope_is_of_a_method() -> None:
    """A method added to the proto is closed until somebody decides who may call it, and this test says so."""
    for file, name, scopes in (
        (wallet_pb2, "WalletService", SCOPES),
        (earning_pb2, "EarningService", grpc_earning.SCOPES),
        (teams_pb2, "TeamService", grpc_teams.SCOPES),
        (giving_pb2, "GivingService", grpc_giving.SCOPES),
        (market_pb2, "MarketService", grpc_market.SCOPES),
        (spending_pb2, "SpendingService", grpc_spending.SCOPES),
    ):
        service = file.DESCRIPTOR.services_by_name[name]
        assert set(scopes) == {f"/{service.full_name}/{method.name}" for method in service.methods}


def test_the_reasons_of_the_table_are_those_of_the_proto() -> None:
    """A client can switch over the enum and has then covered everything that is ever sent."""
    declared = {name.removeprefix("ERROR_REASON_") for name in dict(error_reason_pb2.ErrorReason.items())} - {
        "UNSPECIFIED"
    }

    assert {row.reason for row in ERRORS.rows.values()} == declared


def test_every_refusal_has_a_row_of_its_own() -> None:
    """No refusal reaches the wire under the name of another, or masked."""
    assert {kind for kind in ERRORS.rows if issubclass(kind, errors.Refusal)} == set(errors.Refusal.__subclasses__())


def test_a_batch_of_refusals_that_quote_the_longest_texts_fits_into_one_message() -> None:
    """A client takes 4 MiB: an answer beyond that would be lost at every retry."""
    stored, received = "\N{GRINNING FACE}" * REFERENCE_CHARS_MAX, "\N{SLEEPING FACE}" * REFERENCE_CHARS_MAX
    refusal = errors.IdempotencyMismatch("reference", stored, received)

    size_bytes = refusal_message(ERRORS.outcome(refusal)).ByteSize()

    assert ITEMS_MAX * size_bytes < RECEIVE_BYTES_MAX * 3 / 4
    assert refusal.metadata["stored"] == stored[:127] + "…"
