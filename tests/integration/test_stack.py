"""The stack starts real processes, finds them again, and leaves none behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
from minio import Minio
from minio.error import MinioException

from sandbox import keys, s3, stack, token
from sandbox.plan import HOST, Plan, Ports, default_provider
from sandbox.process import ManagedProcess, StartFailed
from sandbox.stack import Stack
from services.chassis.auth import Verifier
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", "PYTHONUNBUFFERED": "1"}


def plan(*parts: str) -> Plan:
    return Plan(ports=free_ports(), parts=parts)  # type: ignore[arg-type]


def wait_until_gone(*pids: int | None) -> None:
    """Polls, at most 30 seconds: these are not our children, so nobody tells us of their end."""
    deadline = time.monotonic() + 30
    for pid in pids:
        while pid is not None and alive(pid):
            assert time.monotonic() < deadline


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@contextmanager
def supervisor(data: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m sandbox.stack run` with S3 and the twin alone."""
    script = (
        "import signal, sys; from pathlib import Path; from sandbox import stack;"
        # As in a terminal: a shell lets what it runs in the background ignore Ctrl-C, and that is inherited.
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"stack._plan = lambda _: stack.Plan(ports=stack.{free_ports()}, parts=('s3', 'openai_twin'));"
        "sys.exit(stack.main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, "PUNCHCARD_DATA": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def test_parts_serve_when_up_returns_and_are_gone_after_down(tmp_path: Path) -> None:
    """Readiness is real: S3 takes an object and the twin answers at once."""
    with Stack(tmp_path, plan("s3", "openai_twin")) as running:
        http = urllib3.PoolManager()
        store = Minio(running.s3_endpoint.removeprefix("http://"), *running.keys.s3(), secure=False, http_client=http)
        presigned = store.presigned_get_object(s3.BUCKET, "a.txt")
        store.fput_object(s3.BUCKET, "a.txt", str(ROOT / "sandbox" / "samples" / "SOURCES.md"))
        with urllib.request.urlopen(presigned) as response:
            content = response.read()
        stranger = Minio(running.s3_endpoint.removeprefix("http://"), "who", "knows", secure=False, http_client=http)
        with pytest.raises(MinioException, match="InvalidAccessKeyId"):
            stranger.list_buckets()
        http.clear()
        pids = [running.pid("s3"), running.pid("openai_twin")]
        assert running.running() == ("s3", "openai_twin")

    assert content == (ROOT / "sandbox" / "samples" / "SOURCES.md").read_bytes()
    assert running.running() == ()
    assert not any(pid and alive(pid) for pid in pids)


def test_a_second_up_finds_the_first(tmp_path: Path) -> None:
    """Another stack over the same folder starts nothing, and can stop what it found."""
    with Stack(tmp_path, plan("openai_twin")) as first:
        second = Stack(tmp_path, plan("openai_twin"))

        assert second.up() == ()
        assert second.openai_base_url == first.openai_base_url
        assert second.pid("openai_twin") == first.pid("openai_twin")
        assert second.down() == ("openai_twin",)
        assert first.running() == ()


def test_a_killed_part_is_started_again_where_it_was(tmp_path: Path) -> None:
    """Kill is a crash; up heals it; restart gives another process at the same address."""
    with Stack(tmp_path, plan("s3", "openai_twin")) as running:
        first = running.pid("openai_twin")
        running.kill("openai_twin")
        after_kill = running.running()
        healed = running.up()
        second = running.pid("openai_twin")
        running.restart("openai_twin")
        third = running.pid("openai_twin")

    assert after_kill == ("s3",)
    assert healed == ("openai_twin",)
    assert len({first, second, third}) == 3


def test_a_taken_port_is_named_and_nothing_stays(tmp_path: Path) -> None:
    """The error says which port; what this call had started before is stopped."""
    with socket.create_server((HOST, 0)) as taken:
        ports = free_ports()
        ports = Ports(s3=ports.s3, openai_twin=taken.getsockname()[1])
        running = Stack(tmp_path, Plan(ports=ports, parts=("s3", "openai_twin")))

        with pytest.raises(StartFailed, match=str(taken.getsockname()[1])):
            running.up()

    assert running.running() == ()


def test_a_failure_to_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    """What the process printed before it ended is in the message, and nothing of an earlier run."""
    process = ManagedProcess("s3", tmp_path)
    for word in ("before", "after"):
        process.start([sys.executable, "-c", f"print({word!r} * 2); raise SystemExit(3)"], ENVIRONMENT, tied=False)
        with pytest.raises(StartFailed) as failed:
            process.wait_ready(lambda: False, timeout_seconds=30)

    assert "afterafter" in str(failed.value)
    assert "before" not in str(failed.value)


def test_a_silent_process_is_given_up(tmp_path: Path) -> None:
    """The wait for readiness is bounded."""
    process = ManagedProcess("s3", tmp_path)
    process.start([sys.executable, "-c", "input()"], {**ENVIRONMENT}, tied=False)
    try:
        with pytest.raises(StartFailed, match=r"ended while starting|not ready after"):
            process.wait_ready(lambda: False, timeout_seconds=0.01)
    finally:
        process.kill()


def test_a_pid_that_was_given_to_another_process_is_not_ours(tmp_path: Path) -> None:
    """The start time must match, so that `down` never kills a stranger."""
    process = ManagedProcess("s3", tmp_path)
    (tmp_path / "run" / "s3.json").write_text(json.dumps({"pid": os.getpid(), "start_time": "1"}))

    assert process.pid() is None
    process.stop(grace_seconds=1)
    assert alive(os.getpid())


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """So are its children, which are in its group."""
    process = ManagedProcess("s3", tmp_path)
    script = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    )
    process.start([sys.executable, "-c", script], ENVIRONMENT, tied=False)
    process.wait_ready(lambda: process.log_path.read_text().endswith("\n"), timeout_seconds=30)
    child = int(process.log_path.read_text())

    process.stop(grace_seconds=0.01)

    assert process.pid() is None
    wait_until_gone(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_supervisor_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """`run` ended by Ctrl-C, by SIGTERM or by SIGKILL: S3 and the twin end with it."""
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    with supervisor(tmp_path, "run") as process:
        assert process.stdout is not None
        while "openai_twin" not in (line := process.stdout.readline()):
            assert line
        found = Stack(tmp_path)
        pids = [found.pid("s3"), found.pid("openai_twin")]
        process.send_signal(number)
        process.communicate()

    assert None not in pids
    wait_until_gone(*pids)
    assert found.running() == ()


def test_run_ends_when_a_part_ends(tmp_path: Path) -> None:
    """A crash is told with the part's name and exit code 1, and the rest is stopped."""
    with supervisor(tmp_path, "run") as process:
        assert process.stdout is not None
        while "openai_twin" not in (line := process.stdout.readline()):
            assert line
        found = Stack(tmp_path)
        found.kill("s3")
        _, problem = process.communicate()

    assert process.returncode == 1
    assert "s3 ended" in problem
    assert found.running() == ()


def test_up_status_and_down_are_separate_commands(tmp_path: Path) -> None:
    """What `up` started is found by `status`, a second `up` and `down`, each a process of its own."""

    def command(name: str) -> tuple[int | None, str]:
        with supervisor(tmp_path, name) as process:
            output, _ = process.communicate()
        return process.returncode, output.splitlines()[0]

    assert command("status") == (1, "Punchcard is down: start it with `make up`")
    try:
        assert command("up") == (0, "Punchcard is up:")
        assert command("up") == (0, "Punchcard is up already:")
        assert command("status")[0] == 0
    finally:
        stopped = command("down")
    assert stopped == (0, "stopped s3, openai_twin")
    assert command("down") == (0, "nothing was running")


def test_tokens_are_accepted_by_the_services_verifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m sandbox.token` prints a token that the key set in the folder vouches for."""
    monkeypatch.setenv("PUNCHCARD_DATA", str(tmp_path))
    token.main(["bob", "--service", "wallet", "--scope", "wallet.read act_for:team-*", "--ttl-seconds", "60"])

    verifier = Verifier.from_file(keys.Keys(tmp_path).jwks_path, keys.WALLET)
    principal = verifier.verify(capsys.readouterr().out.strip(), now_seconds=0)
    assert principal.subject == "bob"
    assert principal.may("wallet.read")
    assert principal.may_act_for("team-7")


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    """A second look finds the same keys; others on the machine cannot read them."""
    first, second = keys.Keys(tmp_path), keys.Keys(tmp_path)

    assert (first.s3(), first.openai_twin()) == (second.s3(), second.openai_twin())
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "keys").iterdir()} == {0}


def test_openai_is_chosen_only_when_there_is_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a stack made in code never chooses it by itself."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert default_provider() == "openai"
    assert Plan().provider == "twin"
    assert "openai_twin" not in Plan(provider="openai").wanted


def test_the_command_line_makes_a_plan() -> None:
    """Options reach the plan, and without --free-ports the documented ports are used."""
    options = stack._parser().parse_args(["up", "--provider", "twin", "--wallet-database-url", "postgres://x/y"])

    made = stack._plan(options)

    assert made.ports == Ports()
    assert (made.provider, made.wallet_database_url) == ("twin", "postgres://x/y")
