"""The closed vocabulary of faults: what each is called, where it can strike, what it does, and its parameters.

A fault strikes at an operation. Those with a route strike in the moment of a request; the others inside, on a batch's
way through its states (drawn once for each batch, and all that match strike together) or at the sending of a webhook.
`plays` are the numbers of what it repeats among the failures that users of the real API met (`known_failures`).

Parameters that end in _seconds are how long something is held back; null means until the fault is taken away over
DELETE /twin/faults, which ends every wait at once and is what a test uses in place of a sleep.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

HTTP_OPERATIONS: Final = (
    "files.create",
    "files.list",
    "files.retrieve",
    "files.delete",
    "files.content",
    "batches.create",
    "batches.list",
    "batches.retrieve",
    "batches.cancel",
    "chat.create",
)
BATCH_OPERATIONS: Final = ("batch.validate", "batch.run", "batch.finish")
OPERATIONS: Final = (*HTTP_OPERATIONS, *BATCH_OPERATIONS, "batch.line", "webhook.send")
# Those of which the twin knows the model in the moment of the strike.
MODEL_OPERATIONS: Final = ("chat.create", *BATCH_OPERATIONS, "batch.line")

ASKED: Final = ("chat.create", "batch.line")
_FILES: Final = ("files.retrieve", "files.content", "files.delete")
_OWNED: Final = ("batches.retrieve", "batches.list", "batches.cancel", *_FILES)


class Kind(NamedTuple):
    """A word of the vocabulary. storm: whether a storm may draw it, because what it does passes by itself."""

    name: str
    operations: tuple[str, ...]
    does: str
    plays: tuple[int, ...] = ()
    parameters: Mapping[str, Any] = MappingProxyType({})
    storm: bool = True


_AT_REQUESTS: Final = (
    Kind("reply_lost_before", HTTP_OPERATIONS, "closes the connection, nothing is done", (17, 18)),
    Kind("reply_lost_after", HTTP_OPERATIONS, "does it, then closes the connection without an answer", (1, 2)),
    Kind("late_act", HTTP_OPERATIONS, "holds a request back and then does it, though the client may have left",
         (2, 17, 18), {"late_seconds": 0.5}),
    Kind("late_reply", HTTP_OPERATIONS, "does it at once and holds the answer back", (1, 2), {"late_seconds": 0.5}),
    Kind("reply_garbled", HTTP_OPERATIONS, "does it, and answers 200 with `text` that is no JSON",
         (), {"text": '{"id": "'}),
    Kind("rate_limited", HTTP_OPERATIONS, "429 rate_limit_exceeded with Retry-After, nothing is done",
         (20,), {"retry_after_seconds": 1}),
    Kind("insufficient_quota", HTTP_OPERATIONS, "429 insufficient_quota, nothing is done", (31,)),
    Kind("server_error", HTTP_OPERATIONS, "500 server_error, nothing is done", (20,)),
    Kind("bad_gateway", HTTP_OPERATIONS, "502 with an HTML page, nothing is done", (30,)),
    Kind("unavailable", HTTP_OPERATIONS, "503 with Retry-After, nothing is done", (), {"retry_after_seconds": 1}),
    Kind("key_rejected", HTTP_OPERATIONS, "401 invalid_api_key, or another `status`", (), {"status": 401}, storm=False),
    Kind("payload_too_large", ("files.create",), "413 for more than `bytes_max` bytes, though the file is within the "
         "limit", (15,), {"bytes_max": 0}, storm=False),
    Kind("file_too_large", ("files.create",), "400 File is too large", (15, 16), storm=False),
    Kind("file_not_found_yet", ("batches.create", *_FILES), "404, as if an upload had not arrived yet", (14,)),
    Kind("other_key", _OWNED, "404 for what there is, and an empty page for a list, as if of another key", (29,),
         storm=False),
    Kind("empty_list", ("batches.list", "files.list"), "an empty page, as a list that lags far behind"),
    Kind("batch_listed_late", ("batches.create",), "the next `walks` readings of the list from its start, and the "
         "pages that follow, do not show the new batch", (1, 2), {"walks": 1}),
    Kind("creates_per_hour", ("batches.create",), "429 once `creates_max` batches were created within an hour", (20,),
         {"creates_max": 2000, "retry_after_seconds": 1}, storm=False),
    Kind("counts_wrong", ("batches.retrieve",), "request_counts that cannot be: negative, or of another total", (33,),
         {"total": 0, "completed": -1, "failed": -1}),
    Kind("stale_status", ("batches.retrieve",), "the batch as it was just after its creation", (33,)),
    Kind("cancel_refused", ("batches.cancel",), "400, or another `status`, nothing is done", (27,), {"status": 400}),
    Kind("cancel_ignored", ("batches.cancel",), "answers cancelling, and goes on as if not asked", (27,)),
    Kind("truncated_download", ("files.content",), "closes the connection after `fraction` of the promised bytes",
         (30,), {"fraction": 0.5}),
    Kind("short_download", ("files.content",), "a file cut after `fraction` of its bytes, with an honest length; "
         "whole_lines: cut between two lines", (), {"fraction": 0.5, "whole_lines": False}),
)  # fmt: skip
_ON_BATCHES: Final = (
    Kind("validation_failed", ("batch.validate",), "fails the batch with `code` at `lines`, counted from 1",
         (16, 19, 22, 23), {"code": "invalid_json_line", "message": "This line is not parseable as valid JSON.",
                            "param": None, "lines": [1]}, storm=False),
    Kind("token_limit_exceeded", ("batch.validate",), "fails the batch, long after the create was answered", (3, 4, 5)),
    Kind("enqueued_limit", ("batch.validate",), "the same while the batches of its model that have not ended have more "
         "than `tokens_max` tokens, at `line_tokens` a line", (3, 4, 5),
         {"tokens_max": 90_000, "line_tokens": 1000}, storm=False),
    Kind("input_file_lost", ("batch.validate",), "fails the batch: cannot find its input file", (14,)),
    Kind("ends_expired", ("batch.run",), "expires after `after_lines` lines, which are in the output file", (9,),
         {"after_lines": 1}),
    Kind("ends_expired_opaquely", ("batch.run",), "the same, but the lines that were not come to are opaque server "
         "errors and not batch_expired", (11,), {"after_lines": 1}),
    Kind("ends_cancelled", ("batch.run",), "is cancelled by somebody else after `after_lines` lines", (10,),
         {"after_lines": 1}),
    Kind("stalls", ("batch.run",), "stays in progress after `after_lines` lines; a cancel ends it", (28, 35),
         {"after_lines": 1, "late_seconds": 0.5}),
    Kind("all_lines_failed", ("batch.run",), "each line suffers the fault `line`: completed, and no output file", (6,),
         {"line": "line_server_error"}),
    Kind("line_model_not_found", ASKED, "404 model_not_found", (24,), storm=False),
    Kind("line_image_unreachable", ASKED, "400 invalid_image_url, or a time-out of the download", (21,),
         {"timeout": False}),
    Kind("line_bad_request", ASKED, "400 as for a part of the wrong shape", (22,), storm=False),
    Kind("line_server_error", ASKED, "500 server_error", (11,)),
    Kind("line_rate_limited", ASKED, "429 rate_limit_exceeded", (31,)),
    Kind("line_request_timeout", ("batch.line",), "no response, and the error request_timeout"),
    Kind("answer_cut", ASKED, "an answer that is cut short, with its finish_reason", (), {"finish_reason": "length"}),
    Kind("slow_finalizing", ("batch.finish",), "all lines counted, and no file yet", (25,), {"late_seconds": 0.5}),
    Kind("results_reversed", ("batch.finish",), "the lines of both files stand backwards", (13,)),
    Kind("file_id_empty", ("batch.finish",), "the id of a file that there is not is an empty string, not null", (8,)),
    Kind("file_id_null", ("batch.finish",), "the id of `file`, output or error, is null though lines are counted in it",
         (6, 7), {"file": "error"}, storm=False),
    Kind("result_file_gone", ("batch.finish",), "the id of `file` names a file that was deleted", (30,),
         {"file": "output"}, storm=False),
    Kind("garbage_line", ("batch.finish",), "a line of `file` is cut; instead: of a good one, else beside it", (34,),
         {"file": "output", "instead": True}),
    Kind("line_without_outcome", ("batch.finish",), "a line of `file` has neither response nor error", (),
         {"file": "output"}),
    Kind("custom_id_missing", ("batch.finish",), "a line of `file` has no custom_id", (13,), {"file": "output"}),
    Kind("custom_id_unknown", ("batch.finish",), "a line of `file` has a custom_id that nobody asked for", (13,),
         {"file": "output"}),
    Kind("custom_id_duplicated", ("batch.finish",), "a custom_id of `file` comes twice; other_answer: the second time "
         "with the answer to another line", (12,), {"file": "output", "other_answer": False}),
    Kind("result_missing", ("batch.finish",), "a line is counted, and in no file", (7,), {"file": "output"}),
)  # fmt: skip
_AT_WEBHOOKS: Final = (
    Kind("webhook_duplicated", ("webhook.send",), "is sent `copies` times more", (), {"copies": 1}),
    Kind("webhook_late", ("webhook.send",), "is held back", (), {"late_seconds": 0.5}),
    Kind("webhook_reordered", ("webhook.send",), "is held back until another was sent, or for late_seconds", (),
         {"late_seconds": 0.5}),
    Kind("webhook_missigned", ("webhook.send",), "is signed with another secret"),
    Kind("webhook_stale", ("webhook.send",), "is signed as of `age_seconds` ago", (), {"age_seconds": 3600}),
    Kind("webhook_lost", ("webhook.send",), "is not sent, and not tried again", (27,)),
)  # fmt: skip

KINDS: Final[dict[str, Kind]] = {kind.name: kind for kind in (*_AT_REQUESTS, *_ON_BATCHES, *_AT_WEBHOOKS)}
