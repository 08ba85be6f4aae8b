"""The wallet's tables are complete: no method without a scope, no reason without a row, no row without a reason."""

from punchcard.wallet.v1 import error_reason_pb2, wallet_pb2
from services.wallet import errors
from services.wallet.grpc_api import ERRORS, SCOPES, SERVICE


def test_every_method_asks_for_a_scope_and_every_scope_is_of_a_method() -> None:
    """A method added to the proto is closed until somebody decides who may call it, and this test says so."""
    methods = {
        f"/{SERVICE}/{method.name}" for method in wallet_pb2.DESCRIPTOR.services_by_name["WalletService"].methods
    }

    assert set(SCOPES) == methods


def test_the_reasons_of_the_table_are_those_of_the_proto() -> None:
    """A client can switch over the enum and has then covered everything that is ever sent."""
    declared = {name.removeprefix("ERROR_REASON_") for name in dict(error_reason_pb2.ErrorReason.items())} - {
        "UNSPECIFIED"
    }

    assert {row.reason for row in ERRORS.rows.values()} == declared


def test_every_refusal_has_a_row_of_its_own() -> None:
    """No refusal reaches the wire under the name of another, or masked."""
    assert {kind for kind in ERRORS.rows if issubclass(kind, errors.Refusal)} == set(errors.Refusal.__subclasses__())
