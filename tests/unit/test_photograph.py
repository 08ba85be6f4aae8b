"""What the demo shows of a photograph follows from the messages of its watch."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from punchcard.batcher.v1 import batcher_pb2
from sandbox.display import Step, say, showing
from sandbox.photograph import Photograph

PENDING, SETTLED, REFUSED = (
    batcher_pb2.SETTLEMENT_STATE_PENDING,
    batcher_pb2.SETTLEMENT_STATE_SETTLED,
    batcher_pb2.SETTLEMENT_STATE_REFUSED,
)
SUCCEEDED, FAILED = batcher_pb2.JOB_STATE_SUCCEEDED, batcher_pb2.JOB_STATE_FAILED


def change(state: Any, settlement: Any = None, charged: int = 0, **more: Any) -> batcher_pb2.WatchJobResponse:
    settled = batcher_pb2.Settlement(state=settlement, charged=charged)
    return batcher_pb2.WatchJobResponse(change=batcher_pb2.JobChange(state=state, settlement=settled, **more))


def heard(*messages: batcher_pb2.WatchJobResponse) -> Photograph:
    photograph = Photograph(0, Path("photos/cat one.webp"))
    for message in messages:
        photograph.hear(message)
    return photograph


def test_a_waiting_job_says_what_it_waits_for() -> None:
    """The snapshot's sentence is shown until the job moves on."""
    job = batcher_pb2.Job(state=batcher_pb2.JOB_STATE_QUEUED, waiting_for="next cycle at 12:05:00Z")
    photograph = heard(batcher_pb2.WatchJobResponse(snapshot=job))

    assert photograph.step() == Step("queued", "next cycle at 12:05:00Z", 0.2)
    photograph.hear(change(batcher_pb2.JOB_STATE_BATCHED))
    assert photograph.step() == Step("batched", "", 0.3)
    photograph.wait_for(job)
    assert photograph.step() == Step("batched", "", 0.3)


def test_a_running_job_is_as_far_as_its_batch() -> None:
    """The provider's counts move the bar between running and answered, shared by the whole batch."""
    told = batcher_pb2.BatchProgress(batch_id="b-12345", provider_state="in_progress", total=8, completed=3, failed=1)
    photograph = heard(change(batcher_pb2.JOB_STATE_RUNNING), batcher_pb2.WatchJobResponse(progress=told))

    assert photograph.step() == Step("running", "in_progress, 4 of 8 done", 0.65, group="batch 2345")


@pytest.mark.parametrize(
    ("last", "step", "problem"),
    [
        (change(SUCCEEDED, SETTLED, charged=1), Step("settled", "1 token taken", 1.0), ""),
        (change(SUCCEEDED, SETTLED, charged=0), Step("settled", "nothing taken", 1.0), ""),
        (
            change(SUCCEEDED, REFUSED),
            Step("uncollected", "the wallet refused the settlement", 0.9),
            "its settlement is SETTLEMENT_STATE_REFUSED",
        ),
        (change(SUCCEEDED, PENDING), Step("answered", "", 0.9), "its settlement is SETTLEMENT_STATE_PENDING"),
        (
            change(FAILED, SETTLED, failure=batcher_pb2.Failure(code="gone", message="it is gone")),
            Step("failed", "it is gone; nothing taken", 0.9),
            "it is gone",
        ),
    ],
)
def test_an_end_is_good_only_when_answered_and_settled(
    last: batcher_pb2.WatchJobResponse, step: Step, problem: str
) -> None:
    """Everything else is a problem with a sentence."""
    answered = change(SUCCEEDED, PENDING, answer=batcher_pb2.Answer(text="a cat"))

    photograph = heard(answered, last)

    assert (photograph.step(), photograph.problem) == (step, problem)


def test_an_empty_answer_is_a_problem() -> None:
    """Even if it is settled."""
    assert heard(change(SUCCEEDED, SETTLED, charged=1)).problem == "its answer is empty"


def test_a_job_id_is_made_of_number_and_name() -> None:
    """Two files of one name are two jobs, and no character of a name breaks an id."""
    assert Photograph(0, Path("a/cat one.webp")).job_id == "1-cat_one.webp"
    assert Photograph(1, Path("b/cat one.webp")).job_id == "2-cat_one.webp"
    assert len(Photograph(0, Path("x" * 250)).job_id) <= 128


def test_plain_lines_tell_a_step_once_and_a_group_s_once_for_all() -> None:
    """Log files are not filled with what is known already."""
    output = io.StringIO()
    with showing(Console(file=output), ["a.jpg", "[red].jpg"]) as display:
        for at in (0, 1, 0):
            display.step(at, Step("queued", "next cycle", 0.2))
        for at in (0, 1):
            display.step(at, Step("running", "1 of 2 done", 0.5, group="batch 17"))

    assert output.getvalue().splitlines() == [
        "  a.jpg      queued     next cycle",
        "  [red].jpg  queued     next cycle",
        "  batch 17   running    1 of 2 done",
    ]


def test_a_terminal_shows_a_bar_for_each_photograph() -> None:
    """At the end all of them stand there, with what became of them."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, color_system=None)
    with showing(console, ["a.jpg", "[red].jpg"]) as display:
        display.step(0, Step("settled", "1 token taken", 1.0))
        display.step(1, Step("failed", "[bold]no", 0.9))

    a_line, other_line = output.getvalue().splitlines()[-3:-1]
    assert a_line.rstrip().endswith("settled    1 token taken")
    assert "[red].jpg" in other_line
    assert other_line.rstrip().endswith("failed     [bold]no")


def test_what_looks_like_markup_is_said_as_it_is() -> None:
    """Answers come from a model, names from a disk."""
    output = io.StringIO()
    say(Console(file=output), "[bold]an answer[/bold] :cat:")

    assert output.getvalue() == "[bold]an answer[/bold] :cat:\n"
