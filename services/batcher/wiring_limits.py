"""What the settings mean for each part: durations in microseconds, and bounds that follow from several settings."""

from typing import Final

from services.batcher.grpc_submissions import Defaults
from services.batcher.instant_runner import InstantLimits
from services.batcher.job import Lane
from services.batcher.poller import PollerLimits
from services.batcher.settings import BatcherSettings
from services.batcher.submitter import SubmitterLimits

SECOND_US: Final = 1_000_000
HOUR_US: Final = 3600 * SECOND_US
WINDOW_HOURS: Final = 24
INSTANT_ATTEMPTS_MAX: Final = 2


def microseconds(seconds: float) -> int:
    """Seconds in microseconds."""
    return int(seconds * SECOND_US)


def instant_limits(settings: BatcherSettings) -> InstantLimits:
    """An instant try is left to its process for four times the pause in which that tells that it lives."""
    job_limits = settings.job_limits()._replace(attempts_max=min(INSTANT_ATTEMPTS_MAX, settings.attempts_max))
    lease_us = microseconds(2 * settings.instant_timeout_seconds)
    return InstantLimits(settings.instant_concurrency, settings.instant_timeout_seconds, lease_us, job_limits)


def poller_limits(settings: BatcherSettings) -> PollerLimits:
    """How often the poller asks about a batch, and how long it is patient."""
    return PollerLimits(microseconds(settings.poll_seconds), settings.patience(), settings.job_limits())


def submitter_limits(settings: BatcherSettings) -> SubmitterLimits:
    """A hold must outlast the provider's window by half of the margin when its batch is bought."""
    return SubmitterLimits(
        cycle_us=microseconds(settings.cycle_seconds),
        jobs_per_batch=settings.batch_jobs,
        jobs_per_batch_max=settings.batch_jobs_max,
        bytes_per_batch_max=settings.batch_bytes_max,
        creates_per_hour_max=settings.batches_per_hour_max,
        create_timeout_seconds=settings.submit_timeout_seconds,
        settle_us=microseconds(settings.submit_settle_seconds),
        window_us=microseconds((WINDOW_HOURS + settings.hold_margin_hours / 2) * 3600),
        patience=settings.patience(),
        job=settings.job_limits(),
    )


def defaults(settings: BatcherSettings) -> Defaults:
    """What a submission that says nothing else gets. An instant job's hold lasts for the margin alone."""
    margin_us = microseconds(settings.hold_margin_hours * 3600)
    return Defaults(
        model=settings.model_default,
        models=settings.model_names(),
        max_output_tokens=settings.max_output_tokens_default,
        deadline_us=microseconds(settings.deadline_default_hours * 3600),
        hold_durations_us={Lane.BATCH: WINDOW_HOURS * HOUR_US + margin_us, Lane.INSTANT: margin_us},
        admission_wait_seconds=settings.admission_wait_seconds,
    )
