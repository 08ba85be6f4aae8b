"""Ports for servers that are started later, or again where they were: nobody else on the machine gets them meanwhile.

A port of the kernel's choice is the next caller's as soon as it is closed, and many tests run at once, all of whose
servers and clients ask for some port. So these lie below all that the kernel hands out by itself, and each is marked as
taken by a UDP socket of the same number, which TCP does not mind and every other process that looks here comes upon.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from sandbox.plan import HOST, Ports

FIRST: Final = 20_000
COUNT: Final = 10_000
KEPT: Final = 256
"""More than are in use at once by any test, and fewer than a process may have open."""

_marks: deque[socket.socket] = deque()
# Where processes begin to look, so that they seldom meet.
_numbers: Final[Iterator[int]] = itertools.count(os.getpid() * 97)


def free_port() -> int:
    """A TCP port of this machine's own address that nobody listens on, and that is ours until many later ones are."""
    for number in itertools.islice(_numbers, COUNT):
        port = FIRST + number % COUNT
        with suppress(OSError):
            mark = _marked(port)
            _marks.append(mark)
            if len(_marks) > KEPT:
                _marks.popleft().close()
            return port
    raise RuntimeError("no port is free")


def free_ports() -> Ports:
    """One for each part of a stack."""
    return Ports(*(free_port() for _ in range(6)))


def _marked(port: int) -> socket.socket:
    """The mark of a port; raises OSError if another process has it, or somebody listens there."""
    mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        mark.bind((HOST, port))
        socket.create_server((HOST, port)).close()
    except OSError:
        mark.close()
        raise
    return mark
