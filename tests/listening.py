"""A stub of the real wallet that a test can listen at, and whose single methods it can lead elsewhere."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from google.protobuf.message import Message


class Listener:
    """Passes each call on; keeps the requests, and tells when a method is asked and when it has answered."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._elsewhere: dict[str, Any] = {}
        self.requests: list[Any] = []
        self.asked: dict[str, asyncio.Queue[Message]] = defaultdict(asyncio.Queue)
        self.answers: dict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)

    def lead(self, method: str, stub: Any) -> None:
        """From now on calls of this method go to another stub."""
        self._elsewhere[method] = stub

    def sent(self, kind: type[Message]) -> list[Any]:
        """The requests of this type, in order."""
        return [request for request in self.requests if isinstance(request, kind)]

    def __getattr__(self, name: str) -> Any:
        async def call(request: Message, *, timeout: float) -> Any:
            self.requests.append(request)
            self.asked[name].put_nowait(request)
            answer = await getattr(self._elsewhere.get(name, self._stub), name)(request, timeout=timeout)
            self.answers[name].put_nowait(answer)
            return answer

        return call
