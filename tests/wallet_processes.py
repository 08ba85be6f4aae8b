"""Real wallets, each a process of its own on a database that they may share, which a test may kill."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sandbox.probes import serving
from sandbox.process import ManagedProcess
from services.chassis.database import migrate
from services.wallet.__main__ import MIGRATIONS
from tests.ports import free_port
from tests.tokens import write_jwks

START_TIMEOUT_SECONDS: Final = 60.0
END_TIMEOUT_SECONDS: Final = 30.0
STOP_GRACE_SECONDS: Final = 15.0


class WalletProcess:
    """`python -m services.wallet serve` on a port that it keeps over restarts."""

    def __init__(self, url: str, folder: Path, name: str, settings: Mapping[str, str]) -> None:
        self._process = ManagedProcess(name, folder)
        self.address = f"127.0.0.1:{free_port()}"
        self._environment = {
            **os.environ,
            "WALLET_DATABASE_URL": url,
            "WALLET_LISTEN_ADDRESS": self.address,
            "WALLET_METRICS_ADDRESS": "off",
            "WALLET_JWKS_FILE": str(write_jwks(folder)),
            "WALLET_LOG_LEVEL": "WARNING",
            **settings,
        }

    def launch(self) -> None:
        """Starts it and does not wait."""
        self._process.start([sys.executable, "-m", "services.wallet", "serve"], self._environment, tied=True)

    def wait_ready(self) -> None:
        """Returns when it serves."""
        self._process.wait_ready(lambda: serving(self.address), START_TIMEOUT_SECONDS)

    def kill(self) -> None:
        """SIGKILL to all of it; returns when it is gone."""
        self._process.kill()

    def kill_alone(self) -> None:
        """SIGKILL to the process that takes the calls, as when memory runs out; the one that writes must end by itself.

        Returns when it has: what it had begun by then is done or undone.
        """
        pid = self._process.pid()
        if pid is None:
            return
        writers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ends = [os.pidfd_open(int(each)) for each in (str(pid), *writers)]
        os.kill(pid, signal.SIGKILL)
        for end in ends:
            ended, _, _ = select.select([end], [], [], END_TIMEOUT_SECONDS)
            os.close(end)
            assert ended, "the process that writes has outlived the one that it writes for"
        # Takes note of the end, so that no zombie stays.
        self._process.kill()

    def stop(self) -> None:
        """SIGTERM, and time to drain."""
        self._process.stop(STOP_GRACE_SECONDS)

    def log(self) -> str:
        """All that it has logged, restarts included."""
        path = self._process.log_path
        return path.read_text(errors="replace") if path.exists() else ""


@contextmanager
def wallet_processes(
    url: str, folder: Path, count: int, settings: Mapping[str, str] | None = None
) -> Iterator[list[WalletProcess]]:
    """So many replicas over one database, all of them serving; none is left behind."""
    migrate(url, MIGRATIONS)
    replicas = [WalletProcess(url, folder, f"wallet-{number}", settings or {}) for number in range(count)]
    try:
        for replica in replicas:
            replica.launch()
        for replica in replicas:
            replica.wait_ready()
        yield replicas
    finally:
        for replica in replicas:
            replica.stop()
