"""What a failed call says beside its status: the reason, its metadata, and when to try again."""

from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class Reason(NamedTuple):
    """Why a call failed. name: a value of the service's ErrorReason without its prefix, such as INSUFFICIENT_FUNDS."""

    name: str
    domain: str
    metadata: dict[str, str]


def reason_of(error: grpc.RpcError) -> Reason | None:
    """The reason that the service gave; None where none of ours answered, such as when nobody listens."""
    info = error_details_pb2.ErrorInfo()
    if not _unpack(error, info):
        return None
    return Reason(info.reason, info.domain, dict(info.metadata))


def retry_seconds_of(error: grpc.RpcError) -> float | None:
    """How long the service asks to wait before a retry, in seconds."""
    info = error_details_pb2.RetryInfo()
    if not _unpack(error, info):
        return None
    return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)


def _unpack(error: grpc.RpcError, detail: Message) -> bool:
    """Whether the error has a detail of this type, which is then filled in."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError) or not error.trailing_metadata():
        return False
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        # Something between us and the service changed the status, or garbled its details.
        return False
    return status is not None and any(packed.Unpack(detail) for packed in status.details)
