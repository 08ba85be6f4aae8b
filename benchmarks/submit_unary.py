"""How many jobs a second are accepted one by one, durable, with their tokens held, against the echo behind the chassis.

Everything runs: the batcher, the wallet that it reserves in, the object store. Each answer waits for the job's
transaction, the wallet's, and that of the admission. The batcher and the echo take turns within one run.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import chassis_echo, stacks
from benchmarks.load import Load, run_load
from benchmarks.processes import load_process, server_process
from benchmarks.registry import Result

CLIENTS: Final = 64
ROUNDS: Final = 5
ROUND_SECONDS: Final = 2.0


async def run(scale: float) -> Result:
    """Jobs a second; `scale` stretches the rounds."""
    secret = secrets.token_bytes(32)
    seconds = ROUND_SECONDS * scale
    echoes: list[float] = []
    jobs: list[float] = []
    acknowledged = 0
    with tempfile.TemporaryDirectory() as name, load_process() as in_load_process:
        async with (
            stacks.stack() as bench,
            server_process(chassis_echo.serve_behind_chassis, secret, Path(name) / "echo.log") as echo_port,
        ):
            echo_call = (echo_port, chassis_echo.METHOD, chassis_echo.authorization(secret), chassis_echo.make_messages)
            submit_call = (bench.port, stacks.SUBMIT, bench.authorization, stacks.Submits(bench.image_id))
            for _ in range(ROUNDS):
                echo: Load = await in_load_process(run_load, *echo_call, CLIENTS, seconds)
                load: Load = await in_load_process(run_load, *submit_call, CLIENTS, seconds)
                assert echo.failures + load.failures == 0, (echo, load)
                echoes.append(echo.calls_per_second)
                jobs.append(load.calls_per_second)
                acknowledged += load.calls
            admitted = stacks.count_admitted(bench.batcher_database)
    assert admitted >= acknowledged, f"{acknowledged} were acknowledged and {admitted} are there"
    # The first round of each warmed it up.
    value, baseline = statistics.median(jobs[1:]), statistics.median(echoes[1:])
    return Result(
        name="submit_unary",
        value=round(value),
        unit="jobs/s",
        baseline=f"echo behind the chassis, {round(baseline)} calls/s",
        ratio=round(value / baseline, 3),
    )
