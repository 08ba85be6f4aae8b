"""services.chassis.server"""

import asyncio
import os
import signal
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from punchcard.wallet.v1 import wallet_pb2
from services.chassis.auth import Verifier
from services.chassis.errors import ServerDraining
from services.chassis.server import RefusesToStart, Server, refuse_exposure
from tests.echo import SERVICE, TABLE, info_of, outcome_of, serving, settings
from tests.tokens import JWKS

GRPCURL = Path(sys.executable).with_name("grpcurl")
WALLET = wallet_pb2.DESCRIPTOR.services_by_name["WalletService"].full_name
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Gate:
    """Work that tells when it was entered `times` and waits to be let go."""

    def __init__(self, times=1):
        self.entered, self.leave = asyncio.Event(), asyncio.Event()
        self.missing, self.done = times, 0

    async def __call__(self, request, _context):
        self.missing -= 1
        if not self.missing:
            self.entered.set()
        await self.leave.wait()
        self.done += 1
        return request


async def test_a_drain_finishes_what_was_begun_and_refuses_what_is_new():
    gate = Gate(times=11)
    async with serving(gate) as client:
        begun = [asyncio.ensure_future(outcome_of(client.unary())) for _ in range(10)]
        upload = asyncio.ensure_future(outcome_of(client.in_stream([b"a"])))
        await gate.entered.wait()
        draining = asyncio.ensure_future(client.server.drain())
        await client.server.draining.wait()
        late = await outcome_of(client.unary())
        gate.leave.set()
        answers = await asyncio.gather(*begun, upload)
        await draining

    assert answers == [b"hello"] * 10 + [b"a"]
    assert info_of(late).reason == "SERVER_DRAINING"
    assert late.code() is grpc.StatusCode.UNAVAILABLE


async def test_calls_that_arrive_while_a_drain_ends_are_refused_as_retriable():
    """No call is met by grpc's own CANCELLED, which clients take for final."""
    async with serving() as client:

        async def call_until_refused(served):
            outcome = b"hello"
            while outcome == b"hello":
                outcome = await outcome_of(client.unary())
                served.set()
            return outcome

        served = [asyncio.Event() for _ in range(64)]
        callers = [asyncio.ensure_future(call_until_refused(each)) for each in served]
        await asyncio.gather(*(each.wait() for each in served))
        await client.server.drain()
        refusals = await asyncio.gather(*callers)

    assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.UNAVAILABLE}


async def test_a_handler_that_looks_at_draining_ends_its_stream_with_a_last_word():
    server = None

    async def until_draining(request, _context):
        if request == b"wait":
            await server.draining.wait()
            return b"bookmark"
        if request == b"end":
            raise ServerDraining
        return request

    async with serving(until_draining) as client:
        server = client.server
        call = client.out_stream(b"first wait end")
        assert await call.read() == b"first"
        draining = asyncio.ensure_future(server.drain())
        assert await call.read() == b"bookmark"
        error = await outcome_of(call.read())
        await draining

    assert info_of(error).reason == "SERVER_DRAINING"


async def test_a_stream_that_does_not_look_is_ended_with_a_status():
    gate = Gate()
    async with serving(gate, drain_timeout_seconds=0.2) as client:
        call = asyncio.ensure_future(outcome_of(client.out_stream(b"a").read()))
        await gate.entered.wait()
        await client.server.drain()
        error = await call

    assert info_of(error).reason == "SERVER_DRAINING"


async def test_a_clients_deadline_does_not_stop_a_shielded_task():
    gate = Gate()
    server = None

    async def shielded(request, context):
        return await server.shielded(gate(request, context))

    async with serving(shielded) as client:
        server = client.server
        error = await outcome_of(client.unary(timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert gate.entered.is_set()
        draining = asyncio.ensure_future(server.drain())
        await server.draining.wait()
        assert not draining.done()
        gate.leave.set()
        await draining

    assert gate.done == 1


async def test_health_is_told_to_anybody_and_changes_when_the_server_drains():
    async with serving() as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))

        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status == SERVING
        assert set((await health.List(health_pb2.HealthListRequest())).statuses) == {"", SERVICE}
        unknown = await outcome_of(health.Check(health_pb2.HealthCheckRequest(service="nobody")))
        assert unknown.code() is grpc.StatusCode.NOT_FOUND
        assert (await watch.read()).status == SERVING
        await client.server.drain()
        assert (await watch.read()).status == NOT_SERVING


async def test_streams_without_a_token_are_bounded_apart_from_those_with_one():
    """Who needs no token can open no more health watches than the limit, and takes no stream from others by it."""
    async with serving(concurrent_streams_max=1) as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING

        refused = await outcome_of(health.Watch(health_pb2.HealthCheckRequest()).read())
        served = await outcome_of(client.in_stream([b"a"]))

    assert (info_of(refused).reason, served) == ("SERVER_BUSY", b"a")


async def grpcurl(*arguments):
    """Exit code and output of a real grpcurl."""
    process = await asyncio.create_subprocess_exec(
        GRPCURL, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.fixture
async def wallet_like():
    """A server that reflects the wallet's protos."""
    server = Server(settings(insecure=True), TABLE, {}, None, lambda _: None, [WALLET])
    port = await server.start()
    yield f"127.0.0.1:{port}"
    await server.drain()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["list"], f"grpc.health.v1.Health\ngrpc.reflection.v1alpha.ServerReflection\n{WALLET}\n"),
        (["list", WALLET], f"{WALLET}.Reserve\n"),
        (["describe"], f"{WALLET} is a service:"),
        (["describe", WALLET], "rpc Reserve ( .punchcard.wallet.v1.ReserveRequest )"),
        (["describe", f"{WALLET}.Reserve"], f"{WALLET}.Reserve is a method:"),
        (["describe", "punchcard.wallet.v1.ReserveRequest"], "message ReserveRequest {"),
        (["describe", "google.rpc.ErrorInfo"], "message ErrorInfo {"),
        (["grpc.health.v1.Health/Check"], '"status": "SERVING"'),
    ],
)
async def test_grpcurl_finds_its_way_without_the_protos(wallet_like, words, expected):
    code, output = await grpcurl("-plaintext", wallet_like, *words)

    assert code == 0, output
    assert expected in output


async def test_grpcurl_is_told_what_does_not_exist(wallet_like):
    code, output = await grpcurl("-plaintext", wallet_like, "describe", "punchcard.wallet.v1.Nothing")

    assert code != 0
    assert "not found" in output.lower()


async def test_reflection_answers_under_its_new_name_too(wallet_like):
    from grpc_reflection.v1alpha import reflection_pb2 as pb

    request = pb.ServerReflectionRequest(list_services="")
    async with grpc.aio.insecure_channel(wallet_like) as channel:
        call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(
            [request.SerializeToString()]
        )
        answer = pb.ServerReflectionResponse.FromString(await call.read())

    assert WALLET in {service.name for service in answer.list_services_response.service}


async def test_reflection_can_be_switched_off():
    async with serving(reflection=False) as client:
        code, _ = await grpcurl("-plaintext", f"127.0.0.1:{client.server.port}", "list")

    assert code != 0


@pytest.mark.parametrize(
    ("changes", "authenticates", "starts"),
    [
        ({"listen_address": "127.0.0.1:0"}, True, True),
        ({"listen_address": "[::1]:0"}, True, True),
        ({"listen_address": "localhost:0"}, True, True),
        ({"listen_address": "127.0.0.1:0"}, False, False),
        ({"listen_address": "0.0.0.0:0"}, True, False),
        ({"listen_address": "[::]:0"}, True, False),
        ({"listen_address": "wallet.example:1"}, True, False),
        ({"listen_address": "0.0.0.0:0", "tls_certificate_file": "c", "tls_key_file": "k"}, True, True),
        ({"listen_address": "0.0.0.0:0", "tls_certificate_file": "c", "tls_key_file": "k"}, False, False),
        ({"listen_address": "0.0.0.0:0", "insecure": True}, False, True),
    ],
)
def test_a_server_does_not_expose_itself_by_accident(changes, authenticates, starts):
    if starts:
        refuse_exposure(settings(**changes), authenticates)
    else:
        with pytest.raises(RefusesToStart, match="insecure"):
            refuse_exposure(settings(**changes), authenticates)


@pytest.mark.parametrize("half", [{"tls_certificate_file": "c"}, {"tls_key_file": "k"}])
def test_half_of_a_certificate_is_a_mistake_and_not_plain_text(half):
    """Whoever set one of the two wants TLS, on loopback and although it is insecure too."""
    with pytest.raises(RefusesToStart, match="tls_certificate_file and tls_key_file"):
        refuse_exposure(settings(insecure=True, **half), True)


async def test_a_refused_server_does_not_listen():
    server = Server(settings(listen_address="0.0.0.0:0"), TABLE, {}, Verifier(JWKS, "a"), lambda _: None, [])

    with pytest.raises(RefusesToStart):
        await server.start()

    assert server.port == 0


async def test_two_servers_do_not_share_a_port():
    async with serving() as client:
        second = Server(
            settings(listen_address=f"127.0.0.1:{client.server.port}"),
            TABLE, {}, Verifier(JWKS, "a"), lambda _: None, [],
        )  # fmt: skip
        with pytest.raises(OSError, match="cannot listen"):
            await second.start()
        await second.drain()


async def test_the_metrics_page_counts_calls_by_method_and_code():
    async with serving(metrics_address="127.0.0.1:0") as client:
        await client.unary()
        await outcome_of(client.unary(metadata=()))
        url = f"http://127.0.0.1:{client.server.metrics_port}/metrics"
        page = (await asyncio.to_thread(_get, url)).decode()

    method = f'method="/{SERVICE}/Unary"'
    assert f'rpc_seconds_count{{code="OK",{method}}}' in page
    assert f'rpc_seconds_count{{code="UNAUTHENTICATED",{method}}}' in page
    assert f"rpc_in_flight{{{method}}} 0.0" in page


def _get(url):
    with urllib.request.urlopen(url) as response:
        return response.read()


def write_certificate(folder):
    """A self-signed certificate of localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


async def test_calls_travel_over_tls_when_there_is_a_certificate(tmp_path):
    certificate_file, key_file = write_certificate(tmp_path)
    async with serving(tls_certificate_file=certificate_file, tls_key_file=key_file) as client:
        address = f"localhost:{client.server.port}"
        credentials = grpc.ssl_channel_credentials(certificate_file.read_bytes())
        async with grpc.aio.secure_channel(address, credentials) as channel:
            method = channel.unary_unary(f"/{SERVICE}/Unary")

            assert await method(b"hello", metadata=client.metadata) == b"hello"


async def test_a_signal_asks_the_server_to_stop():
    async with serving() as client:
        waiting = asyncio.ensure_future(client.server.wait_for_signal())
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(waiting, 5)
