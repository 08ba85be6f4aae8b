"""What reconciling has found, told once a process: counted, logged one by one, and told to whoever looks after it."""

from collections.abc import Iterable

from prometheus_client import Counter

from services.batcher.reconciliation import Finding
from services.chassis import logs

RECONCILED = Counter("batcher_reconciled", "Differences to the provider's or the wallet's books.", ["finding"])
TOLD_MAX = 100_000
QUIET = frozenset({Finding.SHORTER_HOLD})
"""What heals without a trace is no reason to call anybody."""

_log = logs.get_logger(__name__)


class Told:
    """What was told already: a difference that can't be mended is met in every reading."""

    def __init__(self) -> None:
        self._told: set[tuple[Finding, str]] = set()

    def tell(self, finding: Finding, subject: str, **more: object) -> None:
        """Counts and logs a finding about a batch, the first time."""
        if self._is_new(finding, subject):
            RECONCILED.labels(finding.value).inc()
            _log.error("reconciled", finding=finding.value, subject=subject, alert=finding not in QUIET, **more)

    def tell_jobs(self, found: Iterable[tuple[str, Finding]]) -> None:
        """The same about many jobs: a line for each, and one alert for each finding."""
        counts: dict[Finding, int] = {}
        for uid, finding in found:
            if self._is_new(finding, uid):
                counts[finding] = counts.get(finding, 0) + 1
                _log.warning("job_reconciled", finding=finding.value, job=uid)
        for finding, count in counts.items():
            RECONCILED.labels(finding.value).inc(count)
            if finding not in QUIET:
                _log.error("reconciled", finding=finding.value, jobs=count, alert=True)

    def _is_new(self, finding: Finding, subject: str) -> bool:
        if (finding, subject) in self._told:
            return False
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add((finding, subject))
        return True
