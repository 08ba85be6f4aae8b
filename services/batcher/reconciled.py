"""What reconciling has found, told once a process: counted, and logged for whoever looks after it."""

from prometheus_client import Counter

from services.batcher.reconciliation import Finding
from services.chassis import logs

RECONCILED = Counter(
    "batcher_reconciled", "Differences to the provider's or the wallet's books, by finding.", ["finding"]
)
TOLD_MAX = 100_000
ALERTS = frozenset(Finding) - {Finding.SHORTER_HOLD}

_log = logs.get_logger(__name__)


class Told:
    """What was told already: a difference that can't be mended is met in every reading."""

    def __init__(self) -> None:
        self._told: set[tuple[Finding, str]] = set()

    def tell(self, finding: Finding, subject: str, **more: object) -> None:
        """Counts and logs a finding about a batch, job or reservation, the first time."""
        if (finding, subject) in self._told:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add((finding, subject))
        RECONCILED.labels(finding.value).inc()
        if finding in ALERTS:
            _log.error("reconciled", finding=finding.value, subject=subject, alert=True, **more)
        else:
            _log.info("reconciled", finding=finding.value, subject=subject, **more)
