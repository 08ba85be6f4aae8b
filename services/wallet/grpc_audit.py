"""An audit on the wire."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from punchcard.wallet.v1 import wallet_pb2
from services.wallet.audit import Fault, FaultKind, Progress, Report

FAULTS: Final[Mapping[FaultKind, wallet_pb2.FaultKind.ValueType]] = MappingProxyType(
    {
        FaultKind.DATABASE: wallet_pb2.FAULT_KIND_DATABASE,
        FaultKind.JOURNAL: wallet_pb2.FAULT_KIND_JOURNAL,
        FaultKind.BALANCE: wallet_pb2.FAULT_KIND_BALANCE,
        FaultKind.HOLD: wallet_pb2.FAULT_KIND_HOLD,
        FaultKind.LOT: wallet_pb2.FAULT_KIND_LOT,
        FaultKind.KEY: wallet_pb2.FAULT_KIND_KEY,
        FaultKind.SUM: wallet_pb2.FAULT_KIND_SUM,
    }
)


def audit_message(event: Progress | Report) -> wallet_pb2.VerifyLedgerResponse:
    """What an audit says on its way, or at its end."""
    if isinstance(event, Progress):
        progress = wallet_pb2.VerifyProgress(step=event.step, done=event.done, total=event.total)
        return wallet_pb2.VerifyLedgerResponse(progress=progress)
    fault = event.fault
    result = wallet_pb2.VerifyResult(
        intact=fault is None,
        revision=event.revision,
        hash=event.hash,
        fault=None if fault is None else fault_message(fault),
        accounts=event.counts.get("accounts", 0),
        reservations=event.counts.get("reservations", 0),
        lots=event.counts.get("lots", 0),
    )
    return wallet_pb2.VerifyLedgerResponse(result=result)


def fault_message(fault: Fault) -> wallet_pb2.LedgerFault:
    """Something of the ledger that is not as it must be."""
    return wallet_pb2.LedgerFault(
        kind=FAULTS[fault.kind],
        subject=fault.subject,
        revision=fault.revision,
        expected=fault.expected,
        found=fault.found,
        message=fault.message,
    )
