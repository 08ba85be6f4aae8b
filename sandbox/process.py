"""A process of the sandbox: started with its log in a file, found again by its pid file, stopped with all its children.

A pid file holds the pid and the time at which that process started, so that a pid which was given to another process
since is never mistaken for ours.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
LOG_TAIL_LINES: Final = 25
_POLL_SECONDS: Final = 0.02

# Asks Linux to kill us with the thread that started us, and then becomes the command. Elsewhere it only becomes the
# command. Doing this in a preexec_fn instead would fork, which gRPC does not survive in a parent that has channels.
_TIED: Final = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class StartFailed(Exception):
    """A process ended or stayed silent when it should have become ready; the message ends with its log's tail."""


class ManagedProcess:
    """One process under a name; `folder` is where run/<name>.json and logs/<name>.log are."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log_path = folder / "logs" / f"{name}.log"
        self._pid_path = folder / "run" / f"{name}.json"
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start_bytes = 0
        for path in (self.log_path, self._pid_path):
            path.parent.mkdir(parents=True, exist_ok=True)

    def pid(self) -> int | None:
        """The pid of the running process, whoever started it, or None."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        try:
            record = json.loads(self._pid_path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        pid = int(record["pid"])
        if record["start_time"] == _start_time(pid):
            return pid
        if self._child is not None and self._child.pid == pid:
            # It ended after the poll above: taking note of that now leaves no zombie.
            self._child.wait()
            self._child = None
        return None

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, tied: bool) -> None:
        """Starts it in a session of its own. Tied means: it dies with the thread that called this (on Linux)."""
        if tied:
            command = [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]
        self._log_start_bytes = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        pid = self._child.pid
        new = self._pid_path.with_suffix(".new")
        new.write_text(json.dumps({"pid": pid, "start_time": _start_time(pid)}))
        new.replace(self._pid_path)

    def wait_ready(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Returns once `ready` says so; raises StartFailed if it ends before or takes longer."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if self.pid() is None:
                raise StartFailed(f"{self.name} ended while starting{self.log_tail()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} was not ready after {timeout_seconds:g} seconds{self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def log_tail(self) -> str:
        """The last lines that it logged since it was started, as the end of a message."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(self._log_start_bytes)
                lines = log.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        shown = "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:]) or "    (nothing)"
        return f"; the end of {self.log_path}:\n{shown}"

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, time to finish, then SIGKILL; nothing to do if it does not run."""
        pid = self.pid()
        if pid is not None:
            self._signal(pid, signal.SIGTERM)
            try:
                ended = self._wait_end(pid, grace_seconds)
            except KeyboardInterrupt:
                ended = False
            if not ended:
                self.kill()
        self._pid_path.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL, to it and its children; returns when it is gone."""
        pid = self.pid()
        if pid is not None:
            self._signal(pid, signal.SIGKILL)
            self._wait_end(pid, grace_seconds=10.0)

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        # It leads its own group, whose number is its pid.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)

    def _wait_end(self, pid: int, grace_seconds: float) -> bool:
        """Whether it ended in time."""
        deadline = time.monotonic() + grace_seconds
        while self.pid() == pid:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        if self._child is not None:
            # It may have ended a moment after it was asked, and be left as a zombie that nobody else reaps.
            self._child.wait()
        return True


def _start_time(pid: int) -> str | None:
    """When a process started, in a form only good for comparing; None if there is none or it is a zombie."""
    try:
        # Behind the name, which is in parentheses and may hold anything: state is field 3, start time field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except ProcessLookupError:
        return None
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()
