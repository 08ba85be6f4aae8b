"""How much memory the batcher needs for a batch of the largest size: one of 50,000 lines, and one of 200 MB of images.

Each is submitted, built, sent, ingested and settled in a stack of its own. The memory is the peak of the batcher's
resident set over its whole life, where the system keeps it (Linux: VmHWM); elsewhere the largest that was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image

from benchmarks import stacks
from benchmarks.registry import Result
from punchcard.batcher.v1 import batcher_pb2
from punchcard_client import upload_image

LINES: Final = 50_000
FILE_BYTES: Final = 200_000_000
LINES_BYTES: Final = 150_000_000
SIDE_PIXELS: Final = 600
OVERHEAD_BYTES: Final = 2_048
"""What a line holds beside its image, at most: the prompt, and what the planner adds for names and brackets."""

LOOK_SECONDS: Final = 0.25
MIB: Final = 1024 * 1024


class Life(NamedTuple):
    """What one batch took. idle_bytes: the batcher's peak before its first job. seconds: after the last submission."""

    lines: int
    file_bytes: int
    seconds: float
    idle_bytes: int
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.lines:,} lines of {self.file_bytes / 1e6:.1f} MB in {self.seconds:.0f} s"
            f" with {self.peak_bytes / MIB:.0f} MiB"
        )


async def run(scale: float) -> Result:
    """The peak in MiB, the higher of both batches; `scale` makes them smaller."""
    lives = [await _many_lines(max(1, int(LINES * scale))), await _large_images(int(FILE_BYTES * scale))]
    peak = max(life.peak_bytes for life in lives)
    idle = max(life.idle_bytes for life in lives)
    return Result(
        name="batch_max",
        value=round(peak / MIB, 1),
        unit="MiB",
        baseline=f"{idle / MIB:.0f} MiB before the first job; {' and '.join(map(str, lives))}",
        ratio=round(peak / idle, 3),
    )


async def _many_lines(lines: int) -> Life:
    """A batch of so many jobs about one small image."""
    buffer = BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(buffer, "PNG")
    return await _life(lines, [buffer.getvalue()], LINES_BYTES)


async def _large_images(file_bytes: int) -> Life:
    """A batch whose file is as large as that, of jobs about an image each, of noise that nothing can make smaller."""
    size_bytes = len(_noise())
    lines = max(1, file_bytes // (size_bytes * 4 // 3 + OVERHEAD_BYTES))
    return await _life(lines, [_noise() for _ in range(lines)], FILE_BYTES)


def _noise() -> bytes:
    buffer = BytesIO()
    pixels = os.urandom(SIDE_PIXELS * SIDE_PIXELS * 3)
    Image.frombytes("RGB", (SIDE_PIXELS, SIDE_PIXELS), pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


async def _life(lines: int, images: Sequence[bytes], bytes_max: int) -> Life:
    """Takes one batch through its life: it starts by itself when its last job is there."""
    settings = {
        "BATCHER_BATCH_JOBS": str(lines),
        "BATCHER_BATCH_BYTES_MAX": str(bytes_max),
        "BATCHER_IMAGE_TRANSPORT": "inline",
    }
    async with stacks.stack(**settings) as bench:
        idle_bytes = _peak_bytes(bench.batcher_pid)
        image_ids = [(await upload_image(bench.stub, stacks.ACCOUNT, image)).image_id for image in images]
        await _submit(bench, lines, image_ids)
        started = time.perf_counter()
        peak_bytes = await _until_settled(bench, lines)
        seconds = time.perf_counter() - started
        batches = _number(bench.batcher_database, "SELECT count(*) FROM batches WHERE state = 'CLOSED'")
        answered = _number(bench.batcher_database, "SELECT count(*) FROM jobs WHERE state = 'SUCCEEDED'")
        assert (batches, answered) == (1, lines), f"{batches} batches brought {answered} answers"
        # The file itself is deleted at the provider when its batch has ended.
        file_bytes = _number(bench.batcher_database, "SELECT sum(line_bytes) FROM jobs")
    return Life(lines, file_bytes, seconds, idle_bytes, peak_bytes)


async def _submit(bench: stacks.Bench, lines: int, image_ids: Sequence[str]) -> None:
    """Submits jobs about the images in turn, as many a call as it takes."""
    makers = [stacks.Submits(image_id) for image_id in image_ids]
    for start in range(0, lines, stacks.ITEMS):
        numbers = range(start, min(start + stacks.ITEMS, lines))
        items = [makers[number % len(makers)].job("max", number) for number in numbers]
        await bench.stub.SubmitJobs(batcher_pb2.SubmitJobsRequest(items=items))


async def _until_settled(bench: stacks.Bench, lines: int) -> int:
    """Waits until the tokens of all jobs are settled and the batch is closed; the batcher's peak until then."""
    settled = "SELECT count(*) FROM settlements WHERE state = 'SETTLED'"
    open_batches = "SELECT count(*) FROM batches WHERE state <> 'CLOSED'"
    peak_bytes = 0
    while _number(bench.batcher_database, settled) < lines or _number(bench.batcher_database, open_batches):
        peak_bytes = max(peak_bytes, _peak_bytes(bench.batcher_pid))
        await asyncio.sleep(LOOK_SECONDS)
    return max(peak_bytes, _peak_bytes(bench.batcher_pid))


def _peak_bytes(pid: int) -> int:
    """The largest resident set that a process had so far; that of now where the system keeps no account of it."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    command = ["ps", "-o", "rss=", "-p", str(pid)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024


def _number(database: Path, query: str) -> int:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (number,) = connection.execute(query).fetchone()
    return int(number)
