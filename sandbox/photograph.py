"""An image on its way through the batcher: what is known of it, and what there is to show."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from punchcard.batcher.v1 import batcher_pb2
from sandbox.display import Step

JOB_NAME_CHARS_MAX: Final = 100
RUNNING_SHARE: Final = 0.5

# The word for each state of a job, and how far it is then, from 0 to 1. While it runs, its batch's progress is added.
_STAGES: Final = {
    batcher_pb2.JOB_STATE_UNSPECIFIED: ("submitted", 0.15),
    batcher_pb2.JOB_STATE_ADMITTING: ("admitting", 0.15),
    batcher_pb2.JOB_STATE_QUEUED: ("queued", 0.2),
    batcher_pb2.JOB_STATE_BATCHED: ("batched", 0.3),
    batcher_pb2.JOB_STATE_RUNNING: ("running", 0.4),
    batcher_pb2.JOB_STATE_SUCCEEDED: ("answered", 0.9),
    batcher_pb2.JOB_STATE_FAILED: ("failed", 0.9),
    batcher_pb2.JOB_STATE_EXPIRED: ("expired", 0.9),
    batcher_pb2.JOB_STATE_CANCELLED: ("cancelled", 0.9),
    batcher_pb2.JOB_STATE_REJECTED: ("rejected", 0.9),
}


@dataclass
class Photograph:
    """One image, its job, and what became of them."""

    at: int
    path: Path
    state: batcher_pb2.JobState.ValueType = batcher_pb2.JOB_STATE_UNSPECIFIED
    waiting_for: str = ""
    progress: batcher_pb2.BatchProgress | None = None
    settlement: batcher_pb2.Settlement = field(default_factory=batcher_pb2.Settlement)
    answer: batcher_pb2.Answer = field(default_factory=batcher_pb2.Answer)
    failure: str = ""

    @property
    def job_id(self) -> str:
        """The key of its job: its number and its name, as far as an id allows."""
        return f"{self.at + 1}-{re.sub(r'[^A-Za-z0-9._-]', '_', self.path.name)[:JOB_NAME_CHARS_MAX]}"

    @property
    def problem(self) -> str:
        """Why it did not end well; empty if it did."""
        if self.state != batcher_pb2.JOB_STATE_SUCCEEDED:
            return self.failure or f"its job is {batcher_pb2.JobState.Name(self.state)}"
        if self.settlement.state != batcher_pb2.SETTLEMENT_STATE_SETTLED:
            return f"its settlement is {batcher_pb2.SettlementState.Name(self.settlement.state)}"
        return "" if self.answer.text else "its answer is empty"

    def hear(self, message: batcher_pb2.WatchJobResponse) -> None:
        """Takes over what a message of the watch tells."""
        match message.WhichOneof("event"):
            case "snapshot":
                self.read(message.snapshot)
            case "change":
                self._take(message.change)
                self.waiting_for = ""
            case "progress":
                self.progress = message.progress

    def read(self, job: batcher_pb2.Job) -> None:
        """Takes over a job as it is."""
        self._take(job)
        self.waiting_for = job.waiting_for

    def wait_for(self, job: batcher_pb2.Job) -> None:
        """Takes over what a job waits for, unless it is in another state by now, which the watch will tell."""
        if job.state == self.state:
            self.waiting_for = job.waiting_for

    def _take(self, told: batcher_pb2.Job | batcher_pb2.JobChange) -> None:
        self.state = told.state
        self.settlement.CopyFrom(told.settlement)
        if told.HasField("answer"):
            self.answer.CopyFrom(told.answer)
        if told.HasField("failure"):
            self.failure = told.failure.message or told.failure.code

    def step(self) -> Step:
        """Where it is now."""
        word, fraction = _STAGES[self.state]
        if self.settlement.state == batcher_pb2.SETTLEMENT_STATE_REFUSED:
            return Step("uncollected", "the wallet refused the settlement", fraction)
        if self.settlement.state == batcher_pb2.SETTLEMENT_STATE_SETTLED:
            if self.state == batcher_pb2.JOB_STATE_SUCCEEDED:
                return Step("settled", _taken(self.settlement.charged), 1.0)
            return Step(word, f"{self.failure}; {_taken(self.settlement.charged)}".lstrip("; "), fraction)
        if self.state == batcher_pb2.JOB_STATE_RUNNING and self.progress is not None and self.progress.total:
            done = self.progress.completed + self.progress.failed
            detail = f"{self.progress.provider_state}, {done} of {self.progress.total} done"
            share = RUNNING_SHARE * done / self.progress.total
            return Step(word, detail, fraction + share, group=f"batch {self.progress.batch_id[-4:]}")
        return Step(word, self.failure or self.waiting_for, fraction)


def _taken(charged: int) -> str:
    """How many tokens were taken, in words."""
    if charged == 0:
        return "nothing taken"
    return f"{charged} token{'' if charged == 1 else 's'} taken"
