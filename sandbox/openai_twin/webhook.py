"""What a webhook says and how it is signed: OpenAI's events of a batch's end, as Standard Webhooks."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from standardwebhooks.webhooks import Webhook

from sandbox.openai_twin.batch import ENDED, Batch

ATTEMPTS_MAX: Final = 8
RETRY_SECONDS: Final = 0.5
RETRY_SECONDS_MAX: Final = 60.0


class WebhookMistake(ValueError):
    """A target that cannot be one, in a sentence that says why."""


class Target(NamedTuple):
    """Who is told. secret: whsec_ and base64. Tries are `retry_seconds` apart at first, and twice as long each time."""

    url: str
    secret: str
    retry_seconds: float = RETRY_SECONDS
    attempts_max: int = ATTEMPTS_MAX

    @classmethod
    def read(cls, asked: object) -> Self:
        """A target from its JSON; raises WebhookMistake."""
        if not isinstance(asked, dict) or not {"url", "secret"} <= set(asked) <= set(cls._fields):
            raise WebhookMistake(f"a webhook is an object of {', '.join(cls._fields)}, of which the first two must be")
        target = cls(**asked)
        _check_url(asked["url"])
        _check_secret(asked["secret"])
        seconds, attempts = asked.get("retry_seconds", RETRY_SECONDS), asked.get("attempts_max", ATTEMPTS_MAX)
        if type(seconds) not in (int, float) or not 0 <= seconds <= RETRY_SECONDS_MAX:
            raise WebhookMistake(f"retry_seconds must be a number from 0 to {RETRY_SECONDS_MAX:g}")
        if type(attempts) is not int or attempts < 1:
            raise WebhookMistake("attempts_max must be a whole number, at least 1")
        return target

    def wait_seconds(self, tries: int) -> float:
        """How long to wait after so many tries."""
        return min(self.retry_seconds * 2.0 ** (tries - 1), RETRY_SECONDS_MAX)


def _check_url(url: object) -> None:
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https"):
        raise WebhookMistake("url must be an http or https URL")


def _check_secret(secret: object) -> None:
    if not isinstance(secret, str) or not secret.startswith("whsec_"):
        raise WebhookMistake("secret must be whsec_ and base64")
    try:
        Webhook(secret)
    except Exception as error:
        # The library raises what its decoder raises, or an Exception of its own.
        raise WebhookMistake("secret must be whsec_ and base64") from error


class Event(NamedTuple):
    """An event: its id, which stays the same over all tries and restarts, its type, and the JSON text that is sent."""

    id: str
    type: str
    body: str


def event_of(batch: Batch) -> Event:
    """The event of a batch that has ended."""
    assert batch.status in ENDED
    event_id = f"evt_{hashlib.sha256(batch.id.encode()).hexdigest()[:32]}"
    kind = f"batch.{batch.status}"
    body: dict[str, Any] = {
        "id": event_id,
        "object": "event",
        "created_at": batch.reached[f"{batch.status}_at"],
        "type": kind,
        "data": {"id": batch.id},
    }
    return Event(event_id, kind, json.dumps(body))


def headers_of(event: Event, secret: str, now: float) -> dict[str, str]:
    """The headers of a delivery at `now`, in unix seconds."""
    # The library reads a time without a zone as the machine's, and one with a zone as it stands.
    at = datetime.fromtimestamp(int(now), UTC)
    return {
        "content-type": "application/json",
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": Webhook(secret).sign(event.id, at, event.body),
    }
