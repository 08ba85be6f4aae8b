"""What is asked of an account's history, on the wire."""

from typing import Final

from punchcard.wallet.v1 import wallet_pb2
from services.chassis.fields import ID_PATTERN, Checks
from services.wallet.grpc_messages import KINDS
from services.wallet.store_history import TIME_US_MAX, Wanted

KINDS_MAX: Final = 50

_KIND_NAMES: Final = {number: name for name, number in KINDS.items()}


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
    if until_us < since_us:
        checks.fail("end_time", request.end_time.ToJsonString(), "must not be before start_time")
    counterparty = request.counterparty
    if counterparty and ID_PATTERN.fullmatch(counterparty.removeprefix("@")) is None:
        checks.fail("counterparty", counterparty, f"must match @?{ID_PATTERN.pattern}")
    checks.done()
    return Wanted(tuple(sorted(set(kinds))), counterparty, since_us, until_us)
