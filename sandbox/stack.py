"""All of Punchcard on this machine: S3, the provider's twin, the wallet and the batcher, each a process.

    python -m sandbox.stack up        start what does not run, and return
    python -m sandbox.stack status    say what runs, and where
    python -m sandbox.stack down      stop it all
    python -m sandbox.stack run       start it and stay; Ctrl-C stops it

Everything lies under one folder, .punchcard or PUNCHCARD_DATA: databases, objects, keys, logs.
"""

import argparse
import concurrent.futures
import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

from sandbox.keys import Keys
from sandbox.launches import Launch, Launches
from sandbox.openai_twin.batch_worker import Pace
from sandbox.openai_twin.command_line import add_fault_options, script_of
from sandbox.openai_twin.faults import FaultMistake
from sandbox.plan import HOST, PARTS, Part, Plan, Ports, Provider, data_folder, default_provider
from sandbox.probes import answers_http, listening, serving
from sandbox.process import ROOT, ManagedProcess, StartFailed

START_TIMEOUT_SECONDS: Final = 30.0
MIGRATE_TIMEOUT_SECONDS: Final = 60.0
STOP_GRACE_SECONDS: Final = 8.0
WATCH_SECONDS: Final = 0.2

# Slow enough to be watched, quick enough not to be waited for.
PACE: Final = Pace(validating_seconds=0.5, finalizing_seconds=0.5, image_seconds=0.8, lines_at_once=2)


class Stack:
    """The processes of one data folder.

    `tied` processes die with this one whatever kills it (on Linux); others go on until someone stops them. Methods
    block, may be called from any thread, and raise StartFailed with the end of the log that explains it.
    """

    def __init__(self, data: Path, plan: Plan | None = None, *, tied: bool = True) -> None:
        self.data = data.absolute()
        self.data.mkdir(parents=True, exist_ok=True)
        self._plan_path = self.data / "stack.json"
        self.plan = plan or Plan.read(self._plan_path) or Plan()
        self.keys = Keys(self.data)
        self._tied = tied
        self._processes = {part: ManagedProcess(part, self.data) for part in PARTS}
        # A tied process dies with the thread that started it, so one thread starts all of them and lives as long as we.
        self._starter = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="stack")

    def __enter__(self) -> Self:
        """Starts everything."""
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops everything."""
        self.down()

    @property
    def wallet_address(self) -> str:
        """host:port of the wallet."""
        return f"{HOST}:{self.plan.ports.wallet}"

    @property
    def batcher_address(self) -> str:
        """host:port of the batcher."""
        return f"{HOST}:{self.plan.ports.batcher}"

    @property
    def s3_endpoint(self) -> str:
        """The object store's URL."""
        return f"http://{HOST}:{self.plan.ports.s3}"

    @property
    def openai_base_url(self) -> str:
        """The twin's URL, as the `openai` client takes it."""
        return f"http://{HOST}:{self.plan.ports.openai_twin}/v1"

    def running(self) -> tuple[Part, ...]:
        """The parts that run."""
        return tuple(part for part in PARTS if self._processes[part].pid() is not None)

    def pid(self, part: Part) -> int | None:
        """The pid of a part that runs."""
        return self._processes[part].pid()

    def log_path(self, part: Part) -> Path:
        """Where a part's log is."""
        return self._processes[part].log_path

    def log_tail(self, part: Part) -> str:
        """The end of a part's log, as the end of a message."""
        return self._processes[part].log_tail()

    def up(self) -> tuple[Part, ...]:
        """Starts what does not run, in order, each when the one before is ready; returns what was started.

        A stack that is up already keeps its plan. If a part does not start, those that this call started are stopped.
        """
        started: list[Part] = []
        with self._locked():
            running = self.running()
            if running:
                self.plan = Plan.read(self._plan_path) or self.plan
            self.plan.write(self._plan_path)
            try:
                for part in self.plan.wanted:
                    if part not in running:
                        started.append(part)
                        self.start(part)
            except BaseException:
                self._stop(started)
                raise
        return tuple(started)

    def down(self) -> tuple[Part, ...]:
        """Stops everything, the last started first; returns what was stopped."""
        stopped = self.running()
        self._stop(PARTS)
        return stopped

    def start(self, part: Part) -> None:
        """Starts a part that does not run, and returns when it is ready."""
        port = getattr(self.plan.ports, part)
        if listening(HOST, port):
            raise StartFailed(
                f"{part} cannot start: port {port} is taken. Stop who listens there, or use --free-ports."
            )
        launch = Launches(self.data, self.plan, self.keys).of(part)
        if launch.migration is not None:
            _migrate(part, launch.migration, launch)
        self._launch(part, launch)
        self._processes[part].wait_ready(self._probe(part), START_TIMEOUT_SECONDS)

    def stop(self, part: Part) -> None:
        """SIGTERM and time to drain."""
        self._processes[part].stop(STOP_GRACE_SECONDS)

    def kill(self, part: Part) -> None:
        """SIGKILL, as a crash would."""
        self._processes[part].kill()

    def restart(self, part: Part) -> None:
        """Stops a part if it runs, and starts it again at the same address."""
        self.stop(part)
        self.start(part)

    def _launch(self, part: Part, launch: Launch) -> None:
        process = self._processes[part]
        start = self._starter.submit(process.start, launch.command, launch.environment, tied=self._tied)
        try:
            start.result()
        except BaseException:
            # Ctrl-C does not reach that thread: what it starts must be known before anyone can stop it.
            concurrent.futures.wait([start])
            raise

    def _probe(self, part: Part) -> Callable[[], bool]:
        """What tells that a part is ready."""
        probes: dict[Part, Callable[[], bool]] = {
            "s3": lambda: answers_http(self.s3_endpoint),
            "openai_twin": lambda: answers_http(self.openai_base_url.removesuffix("v1") + "twin/health"),
            "wallet": lambda: serving(self.wallet_address),
            "batcher": lambda: serving(self.batcher_address),
        }
        return probes[part]

    def _stop(self, parts: Iterable[Part]) -> None:
        for part in reversed(tuple(parts)):
            self.stop(part)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` at a time."""
        with (self.data / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _migrate(part: Part, migration: list[str], launch: Launch) -> None:
    """Brings a database up to date; raises StartFailed with what was printed."""
    done = subprocess.run(
        migration,
        cwd=ROOT,
        env=launch.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MIGRATE_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise StartFailed(f"{part} could not bring its database up to date:\n{done.stdout}")


def exit_on_sigterm() -> None:
    """Makes SIGTERM and SIGHUP end this process as Ctrl-C does: with all that is in `finally`."""

    def leave(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, leave)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "up": _up,
        "down": _down,
        "status": _status,
        "run": _run,
    }
    exit_on_sigterm()
    try:
        return commands[options.command](options)
    except (StartFailed, FaultMistake, OSError, json.JSONDecodeError) as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _up(options: argparse.Namespace) -> int:
    stack = Stack(data_folder(), _plan(options), tied=False)
    started = stack.up()
    print("Punchcard is up:" if started else "Punchcard is up already:")
    _print_status(stack)
    return 0


def _down(_: argparse.Namespace) -> int:
    stopped = Stack(data_folder(), tied=False).down()
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    return 0


def _status(_: argparse.Namespace) -> int:
    stack = Stack(data_folder(), tied=False)
    if not stack.running():
        print("Punchcard is down: start it with `make up`")
        return 1
    _print_status(stack)
    return 0 if set(stack.plan.wanted) <= set(stack.running()) else 1


def _run(options: argparse.Namespace) -> int:
    """Stays until Ctrl-C, or until a part ends by itself."""
    stack = Stack(data_folder(), _plan(options))
    if running := stack.running():
        print(f"Punchcard is up already ({', '.join(running)}): stop it with `make down`", file=sys.stderr)
        return 1
    try:
        stack.up()
        print("Punchcard is up, Ctrl-C stops it:")
        _print_status(stack)
        while not (ended := [part for part in stack.plan.wanted if stack.pid(part) is None]):
            time.sleep(WATCH_SECONDS)
        raise StartFailed(f"{ended[0]} ended{stack.log_tail(ended[0])}")
    finally:
        stack.down()


def _print_status(stack: Stack) -> None:
    addresses: dict[Part, str] = {
        "s3": stack.s3_endpoint,
        "openai_twin": stack.openai_base_url,
        "wallet": stack.wallet_address,
        "batcher": stack.batcher_address,
    }
    for part in stack.plan.wanted:
        pid = stack.pid(part)
        state = f"pid {pid}" if pid else "DOWN"
        print(f"  {part:12} {addresses[part]:28} {state:12} {stack.log_path(part)}")
    if stack.plan.provider == "openai":
        print("  answers come from OpenAI and cost money; unset OPENAI_API_KEY for its twin")


def _plan(options: argparse.Namespace) -> Plan:
    pace = Pace(
        validating_seconds=PACE.validating_seconds,
        finalizing_seconds=PACE.finalizing_seconds,
        image_seconds=options.image_seconds,
        lines_at_once=PACE.lines_at_once,
    )
    return Plan(
        faults=script_of(options.fault, options.faults, options.storm),
        webhook_url=options.webhook_url,
        ports=Ports.free() if options.free_ports else Ports(),
        provider=options.provider or default_provider(),
        pace=pace,
        wallet_database_url=options.wallet_database_url,
        batcher_database_url=options.batcher_database_url,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.stack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("down", "status"):
        commands.add_parser(name)
    for name in ("up", "run"):
        command = commands.add_parser(name)
        command.add_argument("--free-ports", action="store_true", help="listen where nobody does, not at the defaults")
        providers: tuple[Provider, ...] = ("twin", "openai")
        command.add_argument("--provider", choices=providers, help="openai if OPENAI_API_KEY is set, else its twin")
        command.add_argument("--wallet-database-url", metavar="URL", help="postgres://..., instead of a SQLite file")
        command.add_argument("--batcher-database-url", metavar="URL", help="postgres://..., instead of a SQLite file")
        add_fault_options(command)
        command.add_argument(
            "--image-seconds", type=float, default=PACE.image_seconds, help="the time an image takes the twin"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
