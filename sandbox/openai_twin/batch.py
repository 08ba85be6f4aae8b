"""A batch and a file, as the API shows them and as they are kept::

validating ──► in_progress ──► finalizing ──► completed
    │  │           │   └── 24 hours pass ───► expired
    │  └─ cancel ──┴─────► cancelling ──────► cancelled
    └──► failed
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Json = dict[str, Any]

ENDED: Final[frozenset[Status]] = frozenset({"failed", "completed", "expired", "cancelled"})
CANCELLABLE: Final[frozenset[Status]] = frozenset({"validating", "in_progress", "cancelling"})


@dataclass
class StoredFile:
    """An uploaded or written file. Times are unix seconds; `sequence` is its place among all that was ever created."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None
    sequence: int

    def to_api(self) -> Json:
        """The file object of the API."""
        shown = asdict(self)
        del shown["sequence"]
        return {**shown, "object": "file", "status": "processed", "status_details": None}


@dataclass
class Batch:
    """A batch. Times are unix seconds; `sequence` is its place among all that was ever created."""

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    sequence: int
    metadata: dict[str, str] | None = None
    output_file_seconds: int | None = None
    status: Status = "validating"
    model: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: list[Json] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: Json | None = None
    reached: dict[str, int] = field(default_factory=dict)
    # What faults were drawn for it at which operation, so that a restart does not draw again.
    strikes: dict[str, list[list[Any]]] = field(default_factory=dict)
    # Whether a webhook has still to tell of its end.
    untold: bool = False

    def enter(self, status: Status, now: int) -> None:
        """Moves on to another status at `now`, in unix seconds."""
        self.status = status
        self.reached[f"{status}_at"] = now

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED

    def as_created(self) -> Json:
        """The batch object of the API as it was just after the creation."""
        first = Batch(
            self.id, self.endpoint, self.input_file_id, self.created_at, self.expires_at, self.sequence, self.metadata
        )
        return first.to_api()

    def to_api(self) -> Json:
        """The batch object of the API."""
        times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "model": self.model,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{name}_at": self.reached.get(f"{name}_at") for name in times},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": self.usage,
            "metadata": self.metadata,
        }
