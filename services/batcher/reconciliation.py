"""What is done where our books, the provider's list and the wallet's ledger disagree, as pure functions.

The table of all disagreements is in ARCHITECTURE.md, "Reconciling". Nothing that we do not know is ended: the books
that were taken back in time may be ours.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from services.batcher.batch import ENDED, Batch, State, Submission, SubmissionState

UNKNOWN_PROBLEM: Final = "batch unknown"
"""How the problem of a batch begins that the provider says it has not got: the row's name in the table of outcomes."""


class Finding(StrEnum):
    """What was found and mended, or at least told; the label of `batcher_reconciled_total`."""

    SECOND_BATCH = "second_batch"
    LATE_BATCH = "late_batch"
    FORGOTTEN_BATCH = "forgotten_batch"
    UNKNOWN_BATCH = "unknown_batch"
    MISSING_BATCH = "missing_batch"
    IDENTITY_CHANGED = "identity_changed"
    FORGOTTEN_HOLD = "forgotten_hold"
    LOST_HOLD = "lost_hold"
    SHORTER_HOLD = "shorter_hold"
    PAID_HOLD = "paid_hold"
    FORGOTTEN_SETTLEMENT = "forgotten_settlement"
    CHARGED_WITHOUT_ANSWER = "charged_without_answer"
    UNKNOWN_WALLET = "unknown_wallet"


class Act(StrEnum):
    """What is done about a batch of the provider's list.

    ADOPT: it becomes the purchase of a batch that we know and have not bought. REBUILD: the same, of a batch that has
    to be made of the lines that were bought.
    """

    NOTHING = "NOTHING"
    ADOPT = "ADOPT"
    REBUILD = "REBUILD"
    CANCEL = "CANCEL"


class Listed(NamedTuple):
    """A batch as the provider lists it."""

    provider_batch_id: str
    status: str
    metadata: Mapping[str, str]

    @property
    def intent_id(self) -> str:
        """The submission that bought it, or empty."""
        return self.metadata.get("intent_id", "")

    @property
    def batch_id(self) -> str:
        """The batch of ours that it is, or empty."""
        return self.metadata.get("batch_id", "")


class Verdict(NamedTuple):
    """What is done, and what was found; None where all is as it should be."""

    act: Act
    finding: Finding | None


class HoldVerdict(NamedTuple):
    """What is written of an open job's hold: until when it lasts, or None where our record stands."""

    finding: Finding | None
    expire_time_us: int | None


FINE: Final = Verdict(Act.NOTHING, None)
_BOUGHT = frozenset({State.RUNNING, State.INGESTING, State.CLOSED})
_USELESS = frozenset({"failed"})
_GIVEN_UP = frozenset({"failed", "cancelling", "cancelled"})


def judge_batch(listed: Listed, deployment_id: str, submission: Submission | None, batch: Batch | None) -> Verdict:
    """What to do about a batch of the provider's list.

    submission: ours with its intent; batch: ours with its batch_id; None where we know none.
    """
    if not (listed.intent_id and listed.batch_id) or listed.metadata.get("deployment_id", "") != deployment_id:
        return FINE
    bought = batch is not None and batch.state in _BOUGHT
    if submission is None:
        return _of_unknown_intent(listed, batch, bought)
    if submission.state is SubmissionState.ADOPTED:
        is_it = submission.provider_batch_id == listed.provider_batch_id
        return FINE if is_it else _end(listed, Finding.SECOND_BATCH)
    if submission.state is SubmissionState.OPEN:
        # A create names an uploaded file, so that where none is written down our record is the older one.
        forgotten = not submission.input_file_id and not bought and listed.status not in _USELESS
        return Verdict(Act.ADOPT, Finding.FORGOTTEN_BATCH) if forgotten else FINE
    is_last = batch is not None and batch.state is State.PLANNED and batch.submission == submission.attempt
    if is_last and listed.status not in _GIVEN_UP:
        return Verdict(Act.ADOPT, Finding.FORGOTTEN_BATCH)
    return _end(listed, Finding.LATE_BATCH)


def _of_unknown_intent(listed: Listed, batch: Batch | None, bought: bool) -> Verdict:
    if bought:
        return _end(listed, Finding.SECOND_BATCH)
    if listed.status in _USELESS:
        return FINE
    return Verdict(Act.REBUILD if batch is None else Act.ADOPT, Finding.FORGOTTEN_BATCH)


def _end(listed: Listed, finding: Finding) -> Verdict:
    """Ends a batch that nobody waits for; one that has ended is left."""
    over = listed.status in ENDED or listed.status == "cancelling"
    return FINE if over else Verdict(Act.CANCEL, finding)


def judge_hold(state: str, expire_time_us: int, replayed: bool, known_expire_time_us: int) -> HoldVerdict:
    """What the wallet's answer to a repeated Reserve says of an open job's hold.

    state: in the words of the wallet, or empty where it was refused; known_expire_time_us: until when it is held as far
    as we know. A hold that is gone is written as one that has ended: then it is asked for before anything is bought.
    """
    if state == "COMMITTED":
        return HoldVerdict(Finding.PAID_HOLD, None)
    if state != "HELD":
        return HoldVerdict(Finding.LOST_HOLD, 0) if known_expire_time_us else HoldVerdict(None, None)
    if not replayed:
        return HoldVerdict(Finding.FORGOTTEN_HOLD, expire_time_us)
    if expire_time_us < known_expire_time_us - HOLD_SLACK_US:
        return HoldVerdict(Finding.SHORTER_HOLD, expire_time_us)
    return HoldVerdict(None, None)


HOLD_SLACK_US: Final = 60 * 1_000_000
"""The clocks of the two services, and a command on its way, may differ by so much."""


def obstacle_of(provider_batch_id: str, problem: str, provider_identity: str, identity: str) -> str:
    """Why nothing may be bought while a batch stands as it does, as a sentence; empty where it is no obstacle."""
    if problem.startswith(UNKNOWN_PROBLEM):
        return f"the provider does not know the batch {provider_batch_id} that it was paid for"
    if provider_identity != identity:
        return "a batch was bought under another provider identity than the configured one"
    return ""
