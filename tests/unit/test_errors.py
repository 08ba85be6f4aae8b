"""services.chassis.errors"""

import grpc
import pytest
from google.rpc import error_details_pb2

from services.chassis import errors
from services.chassis.errors import ErrorTable, InvalidField, ServerBusy, TokenExpired, Violation
from tests.echo import TABLE, OutOfPatience, OutOfPatienceAgain


def details_of(error, kind):
    status = TABLE.status(TABLE.outcome(error))
    return next((unpack(detail, kind) for detail in status.details if detail.Is(kind.DESCRIPTOR)), None)


def unpack(detail, kind):
    message = kind()
    detail.Unpack(message)
    return message


def test_a_domain_error_takes_its_row_its_sentence_and_its_numbers():
    outcome = TABLE.outcome(OutOfPatience("no more"))

    assert outcome.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (outcome.reason, outcome.message, outcome.metadata) == ("OUT_OF_PATIENCE", "no more", {"patience": "0"})


def test_a_subclass_takes_the_row_of_its_nearest_ancestor():
    assert TABLE.outcome(OutOfPatienceAgain("x")).reason == "OUT_OF_PATIENCE"


def test_an_unknown_error_is_masked_with_a_fresh_id():
    first, second = TABLE.outcome(ValueError("postgres://u:p@h")), TABLE.outcome(ValueError("postgres://u:p@h"))

    assert first.code is grpc.StatusCode.INTERNAL
    assert "postgres" not in first.message
    assert first.metadata["error_id"] in first.message
    assert first.metadata["error_id"] != second.metadata["error_id"]


def test_every_status_has_an_error_info_of_the_services_domain():
    info = details_of(OutOfPatience("no more"), error_details_pb2.ErrorInfo)

    assert (info.domain, info.reason, dict(info.metadata)) == ("test.punchcard", "OUT_OF_PATIENCE", {"patience": "0"})


def test_bad_fields_are_all_told_with_what_was_sent():
    violations = [Violation("amount", "0", "must be 1 to 9"), Violation("id", "", "is required")]
    bad_request = details_of(InvalidField(violations), error_details_pb2.BadRequest)

    assert [violation.field for violation in bad_request.field_violations] == ["amount", "id"]
    assert bad_request.field_violations[0].description == "must be 1 to 9, got '0'"


def test_a_refusal_that_a_retry_can_mend_says_when():
    info = details_of(ServerBusy(7), error_details_pb2.RetryInfo)

    assert info.retry_delay.ToTimedelta().total_seconds() == errors.RETRY_SOON_SECONDS
    assert details_of(OutOfPatience("x"), error_details_pb2.RetryInfo) is None


def test_the_detail_of_a_lost_store_is_not_for_the_client():
    outcome = TABLE.outcome(errors.StoreUnavailable("10.0.0.7 refused"))

    assert "10.0.0.7" not in outcome.message
    assert outcome.metadata == {}


def test_an_expired_token_is_told_when_it_expired():
    assert TokenExpired(0.0).metadata == {"expired_at": "1970-01-01T00:00:00Z"}


@pytest.mark.parametrize("service", ["wallet", "batcher"])
def test_each_reason_of_the_chassis_is_in_the_services_protos(service):
    module = pytest.importorskip(f"punchcard.{service}.v1.error_reason_pb2")
    names = {name.removeprefix("ERROR_REASON_") for name in module.ErrorReason.keys()}  # noqa: SIM118

    assert {row.reason for row in errors.CHASSIS_ROWS.values()} <= names


def test_a_service_may_change_a_row_of_the_chassis():
    row = errors.Row(grpc.StatusCode.ABORTED, "SERVER_BUSY")

    assert ErrorTable("d", {ServerBusy: row}).outcome(ServerBusy(1)).code is grpc.StatusCode.ABORTED
