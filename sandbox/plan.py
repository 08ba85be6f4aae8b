"""What a stack consists of: which parts, where they listen, who answers; and where the sandbox keeps everything."""

import json
import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

from dotenv import dotenv_values

from sandbox.openai_twin.batch_worker import Pace
from sandbox.process import ROOT

Part = Literal["s3", "openai_twin", "wallet", "batcher"]
Provider = Literal["twin", "openai"]

PARTS: Final[tuple[Part, ...]] = ("s3", "openai_twin", "wallet", "batcher")
HOST: Final = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Where each part listens on this machine."""

    s3: int = 9000
    openai_twin: int = 8080
    wallet: int = 50051
    batcher: int = 50052
    wallet_metrics: int = 9101
    batcher_metrics: int = 9102

    @classmethod
    def free(cls) -> Self:
        """Ports that nobody listens on now."""
        sockets = [socket.create_server((HOST, 0)) for _ in range(6)]
        try:
            return cls(*(each.getsockname()[1] for each in sockets))
        finally:
            for each in sockets:
                each.close()


@dataclass(frozen=True)
class Plan:
    """What a stack consists of; it is written down, so that a later command finds the stack that is up."""

    ports: Ports = field(default_factory=Ports)
    provider: Provider = "twin"
    parts: tuple[Part, ...] = PARTS
    pace: Pace = field(default_factory=Pace)
    wallet_database_url: str | None = None
    batcher_database_url: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    # A script as the twin's PUT /twin/faults takes it, and who is told of batches that end.
    faults: dict[str, Any] = field(default_factory=dict)
    webhook_url: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The plan that was written down, or None."""
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        record |= {"ports": Ports(**record["ports"]), "pace": Pace(**record["pace"]), "parts": tuple(record["parts"])}
        return cls(**record)

    @property
    def wanted(self) -> tuple[Part, ...]:
        """The parts to run, in the order in which they need each other."""
        unused = () if self.provider == "twin" else ("openai_twin",)
        return tuple(part for part in PARTS if part in self.parts and part not in unused)

    def write(self, path: Path) -> None:
        """Writes it down."""
        path.write_text(json.dumps(asdict(self), indent=2))


def data_folder() -> Path:
    """Where the sandbox keeps everything: PUNCHCARD_DATA, or .punchcard in the project."""
    return Path(os.environ.get("PUNCHCARD_DATA") or ROOT / ".punchcard")


def openai_api_key() -> str | None:
    """The key of the real provider, from the environment, where an empty one means none, or else from `.env`."""
    key = os.environ.get("OPENAI_API_KEY", dotenv_values(ROOT / ".env").get("OPENAI_API_KEY"))
    return key or None


def default_provider() -> Provider:
    """OpenAI when there is a key for it, its twin otherwise."""
    return "openai" if openai_api_key() else "twin"
