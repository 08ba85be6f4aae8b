"""How often a process that serves looks for garbage in cycles, which Python's reference counts do not find."""

from __future__ import annotations

import gc
from typing import Final

COLLECT_OBJECTS: Final = 50_000
"""After so many new objects that live, those that are new are looked through."""


def collect_seldom() -> None:
    """To be called once all is set up, of which nothing will be looked through again.

    A crowd of calls or a group of commands makes ten thousand objects, none of them in a cycle: to look every 700, as
    Python does, costs a call a fifteenth of its time and a command a tenth.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_OBJECTS)
