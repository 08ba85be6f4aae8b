"""Log lines: structlog in front, one thread that writes behind.

No handler waits for a disk or a pipe: a line is a dictionary on a bounded queue. Every 20 ms the event loop renders
what waits in one go, and the thread writes it. (One by one, between the calls, rendering costs three times as much, and
so it does in the thread, which then fights for the interpreter's lock.) Lines beyond the bound are dropped and counted.
Every line that is logged while a call is served carries that call's request_id.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO, TypeVar, cast

import structlog

LINES_WAITING_MAX: Final = 100_000
TEXTS_WAITING_MAX: Final = 500
GATHER_SECONDS: Final = 0.02
IDLE_SECONDS: Final = 1.0

LineFormat = Literal["auto", "json", "console"]
Line = MutableMapping[str, Any]
T = TypeVar("T")

_call_fields: ContextVar[dict[str, Any]] = ContextVar("call_fields")


class LineWriter:
    """The queue and its thread, which also renders what is logged where no event loop runs."""

    def __init__(self, render: Callable[[Line], str], stream: TextIO) -> None:
        self._render = render
        self._stream = stream
        self._lines: deque[Line] = deque()
        self._texts: deque[str] = deque()
        self._dropped = 0
        self._gathering = False
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, line: Line) -> None:
        """Queue `line`, which is the writer's from now on; never blocks."""
        if len(self._lines) >= LINES_WAITING_MAX:
            self._dropped += 1
            return
        line["time"] = time.time()
        self._lines.append(line)
        if not self._gathering:
            self._gather()

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _gather(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._wake.set()
        else:
            self._gathering = True
            loop.call_later(GATHER_SECONDS, self._hand_over)

    def _hand_over(self) -> None:
        self._gathering = False
        self._render_waiting()
        self._wake.set()

    def _render_waiting(self) -> None:
        """Turn lines into a text for the thread; if that is stuck, they are lost rather than heaped up."""
        lines = _taken(self._lines)
        if len(self._texts) >= TEXTS_WAITING_MAX:
            self._dropped += len(lines)
        elif lines:
            self._texts.append("".join([self._text(line) for line in lines]))

    def _text(self, line: Line) -> str:
        """A line that can't be rendered, whose values may be anything, takes no other line down."""
        event = line.get("event")
        try:
            return self._render(line) + "\n"
        except Exception as error:
            return (
                self._render({"time": time.time(), "level": "error", "event": str(event), "lost": repr(error)}) + "\n"
            )

    def _run(self) -> None:
        while not self._closing:
            # The pause ends by itself in case that an event loop ended before it rendered its last lines.
            self._wake.wait(IDLE_SECONDS)
            self._wake.clear()
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        if self._closing or not self._texts:
            self._render_waiting()
        texts = _taken(self._texts)
        dropped, self._dropped = self._dropped, 0
        if dropped:
            texts.append(
                self._text({"time": time.time(), "level": "error", "event": "log_lines_dropped", "lines": dropped})
            )
        if not texts:
            return
        # Whoever read our lines may be gone; a service goes on without a log rather than not at all.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write("".join(texts))
            self._stream.flush()


def _taken(queue: deque[T]) -> list[T]:
    """All that waits in `queue`, which another thread may be emptying too."""
    taken: list[T] = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(queue.popleft())
    return taken


class _StandardHandler(logging.Handler):
    """Takes what libraries log by the standard library to the same place."""

    def emit(self, record: logging.LogRecord) -> None:
        # A library may number its levels as it likes; the next lower one of the standard five stands for it.
        level = logging.getLevelName(min(record.levelno, logging.CRITICAL) // 10 * 10).lower()
        try:
            event = record.getMessage()
        except Exception as error:
            # The arguments do not fit the message, which is no reason to fail in the library that logged it.
            event = f"{record.msg!r} % {record.args!r}: {error!r}"
        line = {"module": record.name, "level": level, "event": event}
        if record.exc_info:
            line["exception"] = logging.Formatter().formatException(record.exc_info)
        put(line)


_writer: LineWriter | None = None
_levels: frozenset[str] = frozenset()
_atexit_known = False


def configure(level: str = "INFO", line_format: LineFormat = "auto", stream: TextIO | None = None) -> None:
    """Send log lines of at least `level` to `stream` (standard error); "auto" is JSON when that is not a terminal."""
    global _writer, _levels, _atexit_known
    close()
    out = stream or sys.stderr
    as_json = line_format == "json" or (line_format == "auto" and not out.isatty())
    _writer = LineWriter(render_json if as_json else _console_renderer(out.isatty()), out)
    if not _atexit_known:
        atexit.register(close)
        _atexit_known = True
    numbers = logging.getLevelNamesMapping()
    number = numbers[level.upper()]
    _levels = frozenset(name.lower() for name in numbers if numbers[name] >= number)
    logging.basicConfig(handlers=[_StandardHandler()], level=max(number, logging.WARNING), force=True)
    structlog.configure(
        processors=[
            _add_call_fields,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _hand_over,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )


def close() -> None:
    """Write what waits; logging again needs configure()."""
    global _writer
    if _writer is not None:
        _writer.close()
        _writer = None


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `module=name`: `log.info("event_name", key=value)`."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(module=name))


def put(line: Line) -> None:
    """Queue a ready line with its level and event, if that level is logged; silent until configure() was called."""
    if _writer is not None and line["level"] in _levels:
        _writer.put(line)


def begin_call(fields: dict[str, Any]) -> None:
    """Make `fields` those of the call that this task serves: annotate() adds to them, they end on the call's line."""
    _call_fields.set(fields)


def annotate(**fields: object) -> None:
    """Add ids or counts to the log line of the call that runs; without a call it does nothing."""
    known = _call_fields.get(None)
    if known is not None:
        known.update(fields)


def _add_call_fields(_logger: object, _method: str, line: Line) -> Line:
    known = _call_fields.get(None)
    return {**known, **line} if known else line


def _hand_over(_logger: object, _method: str, line: Line) -> str:
    put(line)
    return ""


_encode: Final = json.JSONEncoder(default=str).encode
_second: tuple[int, str] = (0, "")


def _moment(seconds: float) -> str:
    """RFC 3339 with milliseconds; the part that changes once a second is kept."""
    global _second
    whole = int(seconds)
    if whole != _second[0]:
        _second = (whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)))
    return f"{_second[1]}.{int((seconds - whole) * 1000):03d}Z"


def render_json(line: Line) -> str:
    """One JSON object that starts with time, level and event."""
    moment, level, event = _moment(line.pop("time")), line.pop("level"), line.pop("event")
    return _encode({"time": moment, "level": level, "event": event, **line})


def _console_renderer(colors: bool) -> Callable[[Line], str]:
    console = structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time")

    def render(line: Line) -> str:
        line["time"] = _moment(line["time"])[11:-1]
        return str(console(None, "", line))

    return render
