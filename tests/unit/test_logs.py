"""services.chassis.logs"""

import asyncio
import io
import json
import logging
import threading

import pytest

from services.chassis import logs


@pytest.fixture
def stream():
    yield io.StringIO()
    logs.close()


def lines(stream):
    logs.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_that_starts_with_time_level_and_event(stream):
    logs.configure(stream=stream)
    logs.get_logger("here").info("something_happened", job_id="cat-1")

    (line,) = lines(stream)
    assert list(line)[:3] == ["time", "level", "event"]
    assert line["time"].endswith("Z")
    assert {**line, "time": ""} == {
        "time": "", "level": "info", "event": "something_happened", "module": "here", "job_id": "cat-1"
    }  # fmt: skip


def test_lines_below_the_level_are_not_written(stream):
    logs.configure("WARNING", stream=stream)
    log = logs.get_logger("here")
    log.info("quiet")
    log.warning("loud")

    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_a_ready_line_below_the_level_is_not_written_either(stream):
    """The lines of calls are ready ones, and they are most of a log."""
    logs.configure("WARNING", stream=stream)
    logs.put({"level": "info", "event": "rpc"})
    logs.put({"level": "error", "event": "rpc", "code": "INTERNAL"})

    assert [line.get("code") for line in lines(stream)] == ["INTERNAL"]


def test_an_exception_is_written_with_its_traceback(stream):
    logs.configure(stream=stream)
    logs.get_logger("here").error("failed", exc_info=ValueError("why"))

    assert "ValueError: why" in lines(stream)[0]["exception"]


def test_what_libraries_log_takes_the_same_way(stream):
    logs.configure(stream=stream)
    logging.getLogger("library").warning("careful: %d", 7)

    assert [(line["module"], line["event"]) for line in lines(stream)] == [("library", "careful: 7")]


def test_lines_of_a_call_carry_its_fields_and_add_to_them(stream):
    logs.configure(stream=stream)
    fields = {"request_id": "r-1"}

    def call():
        logs.begin_call(fields)
        logs.annotate(job_id="cat-1")
        logs.get_logger("here").info("inside")

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

    assert fields == {"request_id": "r-1", "job_id": "cat-1"}
    assert lines(stream)[0]["request_id"] == "r-1"


def test_outside_of_a_call_annotating_does_nothing():
    logs.annotate(job_id="cat-1")


async def test_too_many_lines_are_dropped_and_counted_rather_than_waited_for(stream, monkeypatch):
    monkeypatch.setattr(logs, "LINES_WAITING_MAX", 3)
    logs.configure(stream=stream)
    for number in range(10):
        logs.put({"level": "info", "event": str(number)})

    written = lines(stream)
    assert [line["event"] for line in written] == ["0", "1", "2", "log_lines_dropped"]
    assert written[-1]["lines"] == 7


def test_a_closed_stream_does_not_stop_the_service(stream):
    logs.configure(stream=stream)
    stream.close()
    logs.put({"level": "info", "event": "lost"})
    logs.close()


def test_on_a_terminal_lines_are_for_people():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    logs.configure(stream=terminal)
    logs.get_logger("here").info("hello", job_id="cat-1")
    logs.close()

    assert "hello" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_before_logs_are_configured_lines_vanish():
    logs.put({"level": "info", "event": "nobody listens"})


def test_a_value_that_cannot_be_written_takes_no_other_line_down(stream):
    class Sulking:
        def __str__(self):
            raise RuntimeError("no")

    logs.configure(stream=stream)
    logs.put({"level": "info", "event": "bad", "value": Sulking()})
    logs.put({"level": "info", "event": "good"})

    written = lines(stream)
    assert [line["event"] for line in written] == ["bad", "good"]
    assert "RuntimeError" in written[0]["lost"]


async def test_lines_of_an_event_loop_leave_in_order_and_without_a_close():
    arrived, loop = asyncio.Event(), asyncio.get_running_loop()

    class Watched(io.StringIO):
        def flush(self):
            if "second" in self.getvalue():
                loop.call_soon_threadsafe(arrived.set)

    watched = Watched()
    logs.configure(line_format="json", stream=watched)
    logs.put({"level": "info", "event": "first"})
    logs.put({"level": "info", "event": "second"})
    await asyncio.wait_for(arrived.wait(), 5)
    logs.close()

    assert [json.loads(line)["event"] for line in watched.getvalue().splitlines()] == ["first", "second"]


def test_what_a_library_logs_badly_is_written_and_does_not_fail_the_library(stream):
    """Arguments that do not fit, and a level of its own, are the library's affair."""
    logs.configure(stream=stream)
    logging.getLogger("library").warning("%d jobs", "many")
    logging.getLogger("library").log(35, "odd")

    first, second = lines(stream)
    assert "'%d jobs' % ('many',)" in first["event"]
    assert (second["level"], second["event"]) == ("warning", "odd")
