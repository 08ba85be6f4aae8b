"""Whether somebody listens, answers or serves at an address, asked once and answered within a second."""

import socket
import urllib.error
import urllib.request
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS: Final = 1.0


def listening(host: str, port: int) -> bool:
    """Whether a connection is taken."""
    with socket.socket() as probe:
        probe.settimeout(TIMEOUT_SECONDS)
        return probe.connect_ex((host, port)) == 0


def answers_http(url: str) -> bool:
    """Whether a server answers at all: S3 answers a stranger with 403."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS):  # noqa: S310 - our own http URL
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def serving(address: str) -> bool:
    """Whether the server's own health check says that it serves."""
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
