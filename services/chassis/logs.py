"""Log lines: structlog in front, one thread that writes behind.

A line is rendered where it is logged and put on a bounded queue, so that no handler waits for a disk or a pipe.
(Rendered by the thread, it would cost a busy server several times as much, in waiting for the interpreter's lock.)
Lines beyond the bound are dropped and counted. Every line that is logged while a call is served carries that call's
request_id.
"""

from __future__ import annotations

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
from typing import Any, Final, Literal, TextIO, cast

import structlog

LINES_WAITING_MAX: Final = 100_000
GATHER_SECONDS: Final = 0.05

LineFormat = Literal["auto", "json", "console"]
Line = MutableMapping[str, Any]

_call_fields: ContextVar[dict[str, Any]] = ContextVar("call_fields")


class LineWriter:
    """The queue and its thread. It gathers for 50 ms after the first line, so that a busy server wakes it rarely."""

    def __init__(self, render: Callable[[Line], str], stream: TextIO) -> None:
        self._render = render
        self._stream = stream
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, line: Line) -> None:
        """Queue `line`, a dictionary that this may change; never blocks."""
        if len(self._lines) >= LINES_WAITING_MAX:
            self._dropped += 1
            return
        self._lines.append(self._render(line))
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._closing.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(GATHER_SECONDS)
            self._wake.clear()
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        waiting = [self._lines.popleft() for _ in range(len(self._lines))]
        dropped, self._dropped = self._dropped, 0
        if dropped:
            waiting.append(self._render({"level": "error", "event": "log_lines_dropped", "lines": dropped}))
        if not waiting:
            return
        # Whoever read our lines may be gone; a service goes on without a log rather than not at all.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write("\n".join(waiting) + "\n")
            self._stream.flush()


class _StandardHandler(logging.Handler):
    """Takes what libraries log by the standard library to the same place."""

    def emit(self, record: logging.LogRecord) -> None:
        line = {"module": record.name, "level": record.levelname.lower(), "event": record.getMessage()}
        if record.exc_info:
            line["exception"] = logging.Formatter().formatException(record.exc_info)
        put(line)


_writer: LineWriter | None = None
_atexit_known = False


def configure(level: str = "INFO", line_format: LineFormat = "auto", stream: TextIO | None = None) -> None:
    """Send log lines of at least `level` to `stream` (standard error); "auto" is JSON when that is not a terminal."""
    global _writer, _atexit_known
    close()
    out = stream or sys.stderr
    as_json = line_format == "json" or (line_format == "auto" and not out.isatty())
    _writer = LineWriter(render_json if as_json else _console_renderer(out.isatty()), out)
    if not _atexit_known:
        atexit.register(close)
        _atexit_known = True
    number = logging.getLevelNamesMapping()[level.upper()]
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
    """Queue a ready line with its level and event; silent until configure() was called."""
    if _writer is not None:
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


def _now() -> str:
    """The time as RFC 3339 with milliseconds; the part that changes once a second is kept."""
    global _second
    now = time.time()
    second = int(now)
    if second != _second[0]:
        _second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
    return f"{_second[1]}.{int((now - second) * 1000):03d}Z"


def render_json(line: Line) -> str:
    """One JSON object that starts with time, level and event."""
    return _encode({"time": _now(), "level": line.pop("level"), "event": line.pop("event"), **line})


def _console_renderer(colors: bool) -> Callable[[Line], str]:
    console = structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time")

    def render(line: Line) -> str:
        line["time"] = _now()[11:-1]
        return str(console(None, "", line))

    return render
