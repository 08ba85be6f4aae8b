"""What every stream of a watch does, whatever it tells: where it begins, how long it waits, how it ends.

A watch waits for rows, says a bookmark when none come, and ends with TOKEN_EXPIRED when its token does and with
SERVER_DRAINING when the server stops; both have a resume token to go on from elsewhere.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Final

from services.chassis.auth import Principal
from services.chassis.errors import ServerDraining, TokenExpired
from services.chassis.journal import Head
from services.chassis.watch import Page, RevisionUnknown, Subscription, decode_token, encode_token

BOOKMARK_SECONDS: Final = 25.0


class WatchStreams:
    """All watches of a server. epoch: this life of the database; draining: set when the server stops."""

    def __init__(self, epoch: str, draining: asyncio.Event) -> None:
        self._epoch = epoch
        self._draining = draining
        self._waits: set[asyncio.Timeout] = set()

    async def end_when_draining(self) -> None:
        """Wakes every watch once the server drains, so that it ends with its last word."""
        await self._draining.wait()
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)

    def begin(self, resume_token: str, head: Head) -> int:
        """The revision behind which a watch begins: the token's, or the head's without one. Raises RevisionUnknown."""
        if not resume_token:
            return head.revision
        revision = decode_token(resume_token, self._epoch, head.revision)
        if revision > head.revision:
            raise RevisionUnknown(str(revision), head.revision)
        return revision

    def place(self, revision: int) -> dict[str, Any]:
        """What each message of a watch carries: the revision that it brings the watcher to, and its resume token."""
        return {"revision": revision, "resume_token": encode_token(self._epoch, revision)}

    def check(self, principal: Principal) -> float:
        """The seconds that a watch may go on; raises TokenExpired or ServerDraining when it may not."""
        token_seconds = principal.expire_time_seconds - time.time()
        if token_seconds <= 0:
            raise TokenExpired(principal.expire_time_seconds)
        if self._draining.is_set():
            raise ServerDraining
        return token_seconds

    async def next(self, subscription: Subscription, principal: Principal) -> Page:
        """The next rows, or none when a bookmark is due; ends the watch when the token or the server does."""
        token_seconds = self.check(principal)
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                # Jitter keeps ten thousand watchers from asking for their bookmark in the same instant.
                pause = BOOKMARK_SECONDS * (0.8 + random.random() / 5)  # noqa: S311
                return await subscription.next(min(pause, token_seconds))
        except TimeoutError:
            raise ServerDraining from None
        finally:
            self._waits.discard(wait)
