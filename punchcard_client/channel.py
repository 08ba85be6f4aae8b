"""A channel to the wallet or the batcher: retries where they are safe, a bearer token on every call."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import grpc
from grpc import aio

SERVICES: Final = ("punchcard.wallet.v1.WalletService", "punchcard.batcher.v1.BatcherService")

# Only UNAVAILABLE means "not done, or done and safe to repeat": every command of ours carries a key. A method that
# streams is retried as long as nothing has come back; after that, resuming is the caller's, see watch_job.
SERVICE_CONFIG: Final = {
    "methodConfig": [
        {
            "name": [{"service": service} for service in SERVICES],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # When most calls fail, retries stop until calls succeed again, so that they don't keep a struggling server down.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    "loadBalancingConfig": [{"round_robin": {}}],
}

CHANNEL_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # Left alone, a channel waits up to two minutes before it looks whether a server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)

TokenSource = str | Callable[[], str]


def connect(target: str, token: TokenSource, *, tls: grpc.ChannelCredentials | None = None) -> aio.Channel:
    """Opens a channel; it connects when it is first used, and is to be closed.

    target: "host:port", or "dns:///name:port" to spread calls over all of a name's addresses.
    token: the bearer token, or what gives one for each call; it is asked on the event loop and must not block.
    tls: absent means plaintext, where whoever is on the way can read the token: for one machine or a trusted network.
    """
    interceptors = [kind(token) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]
    if tls is None:
        return aio.insecure_channel(target, options=CHANNEL_OPTIONS, interceptors=interceptors)
    return aio.secure_channel(target, tls, options=CHANNEL_OPTIONS, interceptors=interceptors)


class _Bearer:
    """Puts the token into a call's metadata."""

    def __init__(self, token: TokenSource) -> None:
        self._token = token

    def sign(self, details: aio.ClientCallDetails) -> Any:
        token = self._token if isinstance(self._token, str) else self._token()
        metadata = aio.Metadata(*(details.metadata or ()), ("authorization", f"Bearer {token}"))
        # ClientCallDetails is a named tuple, which its types don't say.
        return cast("Any", details)._replace(metadata=metadata)


# gRPC takes an object as an interceptor of one shape of call only, hence four classes of one line each.


class _UnaryUnary(_Bearer, aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.sign(client_call_details), request)


class _UnaryStream(_Bearer, aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.sign(client_call_details), request)


class _StreamUnary(_Bearer, aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.sign(client_call_details), request_iterator)


class _StreamStream(_Bearer, aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.sign(client_call_details), request_iterator)
