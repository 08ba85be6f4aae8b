"""The demo, run as a newcomer runs it: as a process, against real services, on this machine."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.openai_twin.batch_worker import Pace
from sandbox.plan import Plan
from sandbox.stack import Stack
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sandbox" / "samples"
NAMES = ("astronaut.jpg", "cameraman.jpg", "cat.webp", "coffee.png", "galaxies.jpg", "rocket.jpg")
TIMEOUT_SECONDS = 120


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that is up, whose twin answers at once."""
    with Stack(tmp_path_factory.mktemp("stack"), Plan(ports=free_ports())) as running:
        yield running


def environment(data: Path) -> dict[str, str]:
    # An empty key is none, whatever the .env of whoever runs this test says.
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "PYTHONUNBUFFERED": "1",
        "PUNCHCARD_DATA": str(data),
        "OPENAI_API_KEY": "",
    }


def demo(data: Path, *images: object) -> tuple[int, str]:
    """Runs it to its end: exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "sandbox.demo", *map(str, images)],
        cwd=ROOT,
        env=environment(data),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def books(stack: Stack) -> list[dict[str, Any]]:
    """What was bought of the twin."""
    url = stack.openai_base_url.removesuffix("v1") + "twin/books"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {stack.keys.openai_twin()}"})
    with urllib.request.urlopen(request) as response:
        batches: list[dict[str, Any]] = json.load(response)["batches"]
    return batches


def answers_bought(stack: Stack) -> int:
    return sum(batch["answered"] for batch in books(stack))


def tokens(output: str, name: str) -> int:
    """A number of the demo's last table."""
    found = re.search(rf"^  {name} +(-?\d+)", output, re.MULTILINE)
    assert found, output
    return int(found[1])


def test_the_six_samples_are_answered_and_paid_for(stack: Stack) -> None:
    """Each is told step by step, each answer is about its own image, and 10 - 6 = 4."""
    bought = answers_bought(stack)

    code, output = demo(stack.data)

    assert code == 0, output
    for name in NAMES:
        for stage in ("uploaded", "queued", "answered", "settled"):
            assert re.search(rf"^  {re.escape(name)} +{stage}", output, re.MULTILINE), (name, stage)
    answers = dict(re.findall(r"^  (\S+\.\w+)\n      (.+)$", output, re.MULTILINE))
    assert set(answers) == set(NAMES)
    assert "WEBP image of 451 x 300 pixels, mostly brown" in answers["cat.webp"]
    assert "dark JPEG image of 1000 x 872 pixels, mostly black" in answers["galaxies.jpg"]
    assert (tokens(output, "before"), tokens(output, "taken"), tokens(output, "after")) == (10, -6, 4)
    assert "80% of the 30" in output
    assert answers_bought(stack) == bought + 6


def test_more_images_than_tokens_are_paid_by_a_grant(stack: Stack, tmp_path: Path) -> None:
    """A pattern names them, whatever their names; the operator grants what is missing, and says so."""
    for number in range(12):
        shutil.copy(SAMPLES / "rocket.jpg", tmp_path / f"rocket [{number}].jpg")

    code, output = demo(stack.data, tmp_path / "*.jpg")

    assert code == 0, output
    assert "2 tokens by the operator" in output
    assert (tokens(output, "before"), tokens(output, "taken"), tokens(output, "after")) == (12, -12, 0)


def test_a_broken_image_fails_the_demo_and_costs_nothing(stack: Stack, tmp_path: Path) -> None:
    """It is named with a reason, the others are answered all the same."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((SAMPLES / "rocket.jpg").read_bytes()[:5000])

    code, output = demo(stack.data, SAMPLES / "cat.webp", broken)

    assert code == 1
    assert "The demo failed: broken.jpg: " in output
    assert "IMAGE_UNREADABLE" in output
    assert "451 x 300" in output
    assert (tokens(output, "taken"), tokens(output, "after")) == (-1, 9)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before anything is started."""
    code, output = demo(tmp_path, tmp_path / "nothing.jpg")

    assert code == 1
    assert "there is no file" in output
    assert not (tmp_path / "stack.json").exists()


@pytest.mark.slow
def test_it_starts_and_stops_its_own_stack_and_does_so_twice(tmp_path: Path) -> None:
    """As on a fresh clone, and again over what the first run left."""
    for _ in range(2):
        code, output = demo(tmp_path, SAMPLES / "cat.webp")

        assert code == 0, output
        assert "started   s3, openai_twin, wallet, batcher" in output
        assert Stack(tmp_path).running() == ()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of a batch."""
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox.demo"],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "in_progress" not in (line := process.stdout.readline()):
            assert line
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert Stack(tmp_path).running() == ()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["batcher", "wallet", "openai_twin", "s3"])
async def test_a_crash_of_any_part_in_the_middle_delays_and_costs_nothing(tmp_path: Path, part: Any) -> None:
    """Kill -9 while the batch runs, and a restart: the demo ends well, and every answer was bought once.

    A line whose image could not be fetched meanwhile has failed at the provider, and is sent again in a second batch.
    """
    pace = Pace(image_seconds=0.5, lines_at_once=1)
    with Stack(tmp_path, Plan(ports=free_ports(), pace=pace)) as running:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sandbox.demo",
            cwd=ROOT,
            env=environment(tmp_path),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        while b"in_progress" not in (line := await process.stdout.readline()):
            assert line
        await asyncio.to_thread(running.kill, part)
        await asyncio.to_thread(running.start, part)
        rest, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_SECONDS)

        assert process.returncode == 0, rest.decode()
        assert answers_bought(running) == 6
