"""One server: its port, its limits, health, reflection, metrics, and an end at which nothing is lost."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from services.chassis import logs
from services.chassis.auth import PUBLIC, Verifier
from services.chassis.errors import ErrorTable
from services.chassis.interceptors import Chain, Context
from services.chassis.metrics import MetricsPage
from services.chassis.settings import ServerSettings
from services.chassis.traffic import Traffic

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION_V1ALPHA: Final = reflection.SERVICE_NAME
REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"
PUBLIC_SCOPES: Final[Mapping[str, str]] = {
    f"/{HEALTH}/Check": PUBLIC,
    f"/{HEALTH}/List": PUBLIC,
    f"/{HEALTH}/Watch": PUBLIC,
    f"/{REFLECTION_V1ALPHA}/ServerReflectionInfo": PUBLIC,
    f"/{REFLECTION_V1}/ServerReflectionInfo": PUBLIC,
}

STOP_GRACE_SECONDS: Final = 1.0
QUIET_SECONDS: Final = 0.05
QUIET_SECONDS_MAX: Final = 1.0
LAST_WORD_SECONDS: Final = 0.1
RECEIVE_BYTES_MAX: Final = 4 * 1024 * 1024
METADATA_BYTES_MAX: Final = 16 * 1024
PENDING_REQUESTS_MAX: Final = 20_000

# grpcurl shows the details of an error only if reflection knows their types.
_ERROR_DETAILS_FILE: Final = error_details_pb2.DESCRIPTOR.name

_log = logs.get_logger(__name__)
T = TypeVar("T")


class Registrar(Protocol):
    """What generated `add_..._to_server` functions need of a server."""

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Register handlers that decide by themselves which methods they know."""

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Register the methods of one service by name."""


class RefusesToStart(Exception):
    """The settings would expose the service; the message says which to change."""


class Server:
    """Serves what `add_servicers` registers, behind the chain of interceptors.

    `service_names` are the full names for health and reflection. Without a `verifier` nobody is asked for a token,
    which needs `settings.insecure`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        table: ErrorTable,
        scopes: Mapping[str, str],
        verifier: Verifier | None,
        add_servicers: Callable[[Any], None],
        service_names: Sequence[str],
    ) -> None:
        self._settings = settings
        self._add_servicers = add_servicers
        self._service_names = tuple(service_names)
        self._authenticates = verifier is not None
        self._traffic = Traffic(settings.concurrent_calls_max, settings.concurrent_streams_max)
        self._chain = Chain(
            table, {**PUBLIC_SCOPES, **scopes}, verifier, self._traffic, settings.request_timeout_seconds
        )
        self.draining: Final = self._traffic.draining
        self._health = _Health(self._service_names, self.draining)
        self._grpc: grpc.aio.Server | None = None
        self._metrics_page: MetricsPage | None = None
        self._stop_asked = asyncio.Event()
        self.port: int = 0

    @property
    def metrics_port(self) -> int:
        """Where /metrics is served; 0 if nowhere."""
        return self._metrics_page.port if self._metrics_page else 0

    async def start(self) -> int:
        """Listen and serve; the port that was bound. Raises RefusesToStart and OSError."""
        refuse_exposure(self._settings, self._authenticates)
        self._grpc = grpc.aio.server(options=_options(self._settings))
        registrar = _WrappingRegistrar(self._grpc, self._chain)
        self._add_servicers(registrar)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)
        if self._settings.reflection:
            _add_reflection(registrar, self._service_names)
        self.port = self._bind(self._grpc)
        if self._settings.metrics_address != "off":
            self._metrics_page = MetricsPage(*split_address(self._settings.metrics_address))
        await self._grpc.start()
        self._health.serving = True
        _log.info("listening", address=self._settings.listen_address, port=self.port, metrics_port=self.metrics_port)
        return self.port

    def _bind(self, server: grpc.aio.Server) -> int:
        address = self._settings.listen_address
        credentials = _credentials(self._settings)
        try:
            return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is something else there?") from error

    async def wait_for_signal(self) -> None:
        """Return at SIGTERM or SIGINT; a second one ends the process at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_asked.set)
        try:
            await self._stop_asked.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def drain(self) -> None:
        """End without losing anything that was begun.

        Health says NOT_SERVING and new calls are refused as retriable; handlers that look at `draining` end their
        streams; after half of the time the others are ended; calls and shielded tasks get all of it.
        """
        traffic = self._traffic
        self._health.serving = False
        traffic.draining.set()
        _log.info("draining", running=len(traffic.running()))
        half_seconds = self._settings.drain_timeout_seconds / 2
        await self._wait_until_idle(min(LAST_WORD_SECONDS, half_seconds))
        traffic.end_public_streams()
        await self._wait_until_idle(half_seconds)
        traffic.end_streams()
        await self._wait_until_idle(half_seconds)
        if left := len(traffic.running()):
            _log.warning("drain_timed_out", running=left)
        await self._wait_until_quiet()
        if self._grpc is not None:
            await self._grpc.stop(STOP_GRACE_SECONDS)
        if self._metrics_page is not None:
            await asyncio.to_thread(self._metrics_page.close)
        _log.info("stopped")

    async def _wait_until_idle(self, limit_seconds: float) -> None:
        """Wait for the tasks that run and those that they start meanwhile."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + limit_seconds
        while (running := self._traffic.running()) and (left_seconds := give_up_at - loop.time()) > 0:
            await asyncio.wait(running, timeout=left_seconds)

    async def _wait_until_quiet(self) -> None:
        """Refuse the calls that are on their way: those that grpc holds when it stops end as CANCELLED, a final no."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + QUIET_SECONDS_MAX
        turned_away = -1
        while turned_away != self._traffic.turned_away and loop.time() < give_up_at:
            turned_away = self._traffic.turned_away
            await asyncio.sleep(QUIET_SECONDS)

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end even if the caller's deadline cancels the call; drain() waits for it."""
        task = asyncio.ensure_future(work)
        self._traffic.shielded.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._traffic.shielded.discard(task)
        if not task.cancelled():
            # A client that has gone takes no exception any more; asyncio would report it as one that nobody looked at.
            task.exception()


class _WrappingRegistrar:
    """Registers handlers inside the chain.

    Generated code registers each method twice, generic and by name. Only generic handlers reach grpc: for each call its
    aio server waits anew for all methods that are registered by name, and the wallet's cost a Reserve a twelfth of this
    process's time.
    """

    def __init__(self, server: grpc.aio.Server, chain: Chain) -> None:
        self._server = server
        self._chain = chain

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Nothing: the same methods come by name."""

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Wrap each handler once."""
        wrapped = {
            name: self._chain.wrap(f"/{service_name}/{name}", handler) for name, handler in method_handlers.items()
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service_name, wrapped)])


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: all services of a server share one state, and watchers end when the server drains."""

    def __init__(self, service_names: Sequence[str], draining: asyncio.Event) -> None:
        self._known = {"", *service_names}
        self._draining = draining
        self.serving = False

    def _status(self) -> health_pb2.HealthCheckResponse:
        response = health_pb2.HealthCheckResponse
        return response(status=response.SERVING if self.serving else response.NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """The state now; NOT_FOUND for a service that is not ours."""
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return self._status()

    async def List(self, _request: health_pb2.HealthListRequest, _context: Context) -> health_pb2.HealthListResponse:
        """The state of every service here."""
        return health_pb2.HealthListResponse(statuses={name: self._status() for name in self._known})

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, _context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now, and NOT_SERVING when that comes."""
        if request.service not in self._known:
            yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            await self._draining.wait()
            return
        yield self._status()
        await self._draining.wait()
        yield self._status()


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """Reflection that also finds methods, which the protobuf pool of Python does not know as symbols."""

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        found = super()._file_containing_symbol(request, fully_qualified_name)
        parent, _, _ = fully_qualified_name.rpartition(".")
        if found.HasField("error_response") and parent:
            return super()._file_containing_symbol(request, parent)
        return found


def _add_reflection(registrar: Registrar, service_names: Sequence[str]) -> None:
    """Serve reflection under both names: the messages of v1 are those of v1alpha, byte by byte."""
    servicer = _Reflection([*service_names, HEALTH, REFLECTION_V1ALPHA])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (REFLECTION_V1ALPHA, REFLECTION_V1):
        registrar.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"{address} is not host:port")
    return host.strip("[]"), int(port)


def refuse_exposure(settings: ServerSettings, authenticates: bool) -> None:
    """Raise RefusesToStart where money would lie open, unless the operator insists."""
    if (settings.tls_certificate_file is None) != (settings.tls_key_file is None):
        raise RefusesToStart("TLS takes both tls_certificate_file and tls_key_file")
    if settings.insecure:
        return
    if not authenticates:
        raise RefusesToStart("nobody would be asked for a token: set the jwks_file, or insecure")
    refuse_plain(settings, settings.listen_address)


def refuse_plain(settings: ServerSettings, address: str) -> None:
    """Raise RefusesToStart where an address beyond loopback would be listened on without TLS, unless insecure."""
    host, _ = split_address(address)
    has_tls = settings.tls_certificate_file is not None and settings.tls_key_file is not None
    if not (settings.insecure or has_tls or _is_loopback(host)):
        raise RefusesToStart(f"{address} is beyond loopback: set tls_certificate_file and tls_key_file, or insecure")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    pair = settings.tls_key_file.read_bytes(), settings.tls_certificate_file.read_bytes()
    return grpc.ssl_server_credentials([pair])


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Channel arguments; each default of grpc's that we change has bitten somebody."""
    streams_max = settings.concurrent_calls_max + settings.concurrent_streams_max + PENDING_REQUESTS_MAX
    return [
        # On Linux two processes may otherwise share a port, and a stale one eats half of the calls.
        ("grpc.so_reuseport", 0),
        # Beyond 1,000 waiting calls grpc refuses at random, and a restart makes 10,000 watchers reconnect at once.
        ("grpc.server.max_pending_requests", PENDING_REQUESTS_MAX),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_REQUESTS_MAX),
        # Our own limits refuse with a reason; at this one, per connection, calls would hang in the client.
        ("grpc.max_concurrent_streams", streams_max),
        ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        # Clients may ping each 10 s (grpc's default kills who pings twice in 5 minutes), and we find dead watchers.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
