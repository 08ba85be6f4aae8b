"""How many jobs a second SubmitJobs accepts, 1,000 a call, durable and with their tokens held, against one by one.

Everything runs: the batcher, the wallet that it reserves in, the object store. The baseline are single SubmitJobs of 64
clients on the same stack; both take turns within one run.
"""

from __future__ import annotations

import statistics
from typing import Final

from benchmarks import stacks
from benchmarks.load import Load, run_large_load, run_load
from benchmarks.processes import load_process
from benchmarks.registry import Result

CLIENTS: Final = 3
SINGLE_CLIENTS: Final = 64
ROUNDS: Final = 4
ROUND_SECONDS: Final = 3.0


async def run(scale: float) -> Result:
    """Jobs a second; `scale` stretches the rounds."""
    seconds = ROUND_SECONDS * scale
    singles: list[float] = []
    jobs: list[float] = []
    acknowledged = 0
    async with stacks.stack() as bench:
        with load_process() as in_load_process:
            single_call = (bench.port, stacks.SUBMIT, bench.authorization, stacks.Submits(bench.image_id))
            bulk_call = (bench.port, stacks.SUBMIT_MANY, bench.authorization, stacks.SubmitsOfMany(bench.image_id))
            for _ in range(ROUNDS):
                single: Load = await in_load_process(run_load, *single_call, SINGLE_CLIENTS, seconds)
                bulk: Load = await in_load_process(run_large_load, *bulk_call, CLIENTS, seconds)
                singles.append(single.calls_per_second)
                jobs.append(bulk.calls_per_second * stacks.ITEMS)
                acknowledged += single.calls + bulk.calls * stacks.ITEMS
        admitted = stacks.count_admitted(bench.batcher_database)
    assert admitted >= acknowledged, f"{acknowledged} were acknowledged and {admitted} are there"
    value, baseline = statistics.median(jobs[1:]), statistics.median(singles[1:])
    return Result(
        name="submit_bulk",
        value=round(value),
        unit="jobs/s",
        baseline=f"one by one, {round(baseline)} jobs/s",
        ratio=round(value / baseline, 3),
    )
