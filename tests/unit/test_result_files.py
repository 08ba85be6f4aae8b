"""What the lines of a batch's files mean for its jobs."""

import json
from io import BytesIO

from services.batcher import result_files
from services.batcher.batch_file import custom_id_of
from services.batcher.job import Answer
from services.batcher.result_files import LEFTOVER_SECONDS, delete_leftovers, read_lines, results_in
from services.batcher.store_batches import Loss

NOW_US = 1_000
WAIT_US = 60


def line(custom_id, **fields):
    return json.dumps({"custom_id": custom_id, "response": None, "error": None, **fields}).encode() + b"\n"


def test_an_answer_reaches_the_attempt_that_its_line_names():
    body = {"choices": [{"message": {"content": "a cat"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5}}
    (result,) = results_in(
        [line(custom_id_of("u-1", 2), response={"status_code": 200, "body": body}), b"\n"], NOW_US, WAIT_US
    )

    assert (result.uid, result.attempt) == ("u-1", 2)
    assert result.outcome == Answer("a cat", "stop", 5, 0)


def test_a_line_that_its_batch_had_no_time_for_costs_no_attempt_and_a_broken_one_does():
    lines = [
        line(custom_id_of("u-1", 1), error={"code": "batch_expired", "message": "Late."}),
        line(custom_id_of("u-2", 1), response={"status_code": 500, "body": {"error": {"message": "Oh."}}}),
        line(
            custom_id_of("u-3", 1), response={"status_code": 400, "body": {"error": {"code": "bad", "message": "No."}}}
        ),
    ]
    expired, broken, refused = [result.outcome for result in results_in(lines, NOW_US, WAIT_US)]

    assert isinstance(expired, Loss)
    assert (expired.retryable, expired.not_before_us) == (True, NOW_US)
    assert (broken.retryable, broken.not_before_us) == (True, 0)
    assert (refused.failure.code, refused.retryable) == ("bad", False)


def test_lines_that_name_nobody_are_told_from_those_that_do():
    assert results_in([b"garbage\n", line("not-ours"), b" \n"], NOW_US, WAIT_US) == [None, None]


def test_a_line_that_met_an_empty_purse_waits_and_costs_no_attempt():
    (broke,) = results_in([line(custom_id_of("u-1", 1), error={"code": "insufficient_quota"})], NOW_US, WAIT_US)

    assert (broke.outcome.retryable, broke.outcome.not_before_us) == (True, NOW_US + WAIT_US)


def pages(content):
    """The pages in which a file is read, to its end."""
    file = BytesIO(content)
    return list(iter(lambda: read_lines(file), []))


def test_a_file_is_read_in_pages_that_are_bounded_by_lines_and_by_bytes(monkeypatch):
    monkeypatch.setattr(result_files, "LINES_MAX", 3)
    monkeypatch.setattr(result_files, "PAGE_BYTES", 10)

    assert pages(b"a\n\nb\n \nc\nd\n") == [[b"a\n", b"b\n", b"c\n"], [b"d\n"]]
    assert pages(b"aaaaaa\nbbbbbb\ncc") == [[b"aaaaaa\n", b"bbbbbb\n"], [b"cc"]]
    assert pages(b"") == pages(b"\n \n") == []


def test_a_line_without_an_end_is_never_whole_in_memory_and_names_nobody(monkeypatch):
    """It counts as a line all the same, so that the files are not taken for short."""
    monkeypatch.setattr(result_files, "LINE_BYTES_MAX", 16)
    monkeypatch.setattr(result_files, "PAGE_BYTES", 8)
    (long, *rest) = [lines for page in pages(b"x" * 100 + b"\nlast\n") for lines in page]
    (endless,) = pages(b"x" * 100)

    assert (long, rest) == (b"...\n", [b"last\n"])
    assert endless == [b"...\n"]
    assert results_in([long], NOW_US, WAIT_US) == [None]


def test_what_a_killed_process_left_behind_is_deleted_once_nobody_can_need_it(tmp_path):
    """By its age, as a replica that shares the folder may be at work."""
    for name in ("batch-1-output-7.jsonl.part", "batch-1-1.jsonl", "notes.txt"):
        (tmp_path / name).write_text("x")
    written = (tmp_path / "notes.txt").stat().st_mtime
    delete_leftovers(tmp_path, written + LEFTOVER_SECONDS / 2)
    young = len(list(tmp_path.iterdir()))
    delete_leftovers(tmp_path, written + LEFTOVER_SECONDS + 60)

    assert young == 3
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
