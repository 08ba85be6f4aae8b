"""What becomes of every outcome of the provider: THE table, on which all that retries, waits, fails or alerts stands.

An outcome is a *signal*: the place where it appeared, and what it said (an HTTP status, a code, a sentence). The table
is read from the top, and the first row whose place is the signal's, and of whose codes, statuses or words one is the
signal's, decides; the last row of each place takes whatever is left. Outcomes that have no word of the provider have
one of ours, in capitals below.

`sources` are the numbers of the failures that users of the API have met; `tests/unit/test_outcome.py` lists them all,
and says which row each has.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class Place(StrEnum):
    """Where an outcome appears. FAILED: in the errors of a batch that `failed`. ENDED: in how a batch's end fits its
    files. LINE: in a line of a result file. INSTANT: in the answer to a call that waits for it.
    """

    UPLOAD = "UPLOAD"
    CREATE = "CREATE"
    LIST = "LIST"
    RETRIEVE = "RETRIEVE"
    CANCEL = "CANCEL"
    DOWNLOAD = "DOWNLOAD"
    DELETE = "DELETE"
    FAILED = "FAILED"
    ENDED = "ENDED"
    LINE = "LINE"
    INSTANT = "INSTANT"


class Action(StrEnum):
    """What is done.

    RETRY_LINE      the job is asked again, in another batch or call
    RETRY_BATCH     the same step of the same batch is done again, after a pause that grows; nothing is bought twice
    SPLIT_BATCH     the batch is cut in two; a batch of one job fails it
    WAIT_UNTIL      nothing is wrong with us: again when the provider says, or after a pause that grows
    FAIL_JOB        the job fails and its tokens are given back
    HOLD_AND_ALERT  nothing is bought or given up; whoever runs this is told, and it is looked at again seldom
    DOUBT           nobody knows what was done: it is found out before anything is done again
    DROP            it changes nothing
    """

    RETRY_LINE = "RETRY_LINE"
    RETRY_BATCH = "RETRY_BATCH"
    SPLIT_BATCH = "SPLIT_BATCH"
    WAIT_UNTIL = "WAIT_UNTIL"
    FAIL_JOB = "FAIL_JOB"
    HOLD_AND_ALERT = "HOLD_AND_ALERT"
    DOUBT = "DOUBT"
    DROP = "DROP"


class Signal(NamedTuple):
    """An outcome. code: of the provider, or one of ours; status: None where no HTTP status came with it."""

    place: Place
    code: str = ""
    status: int | None = None
    message: str = ""


class Row(NamedTuple):
    """One row. Without codes, statuses and words it takes every signal of its places.

    counts: whether the try counts against `attempts_max`. afterwards: what is done instead once the tries for one batch
    have reached their bound; None: `action` for ever, whose end is the deadline of the jobs, or a person.
    """

    name: str
    places: frozenset[Place]
    action: Action
    why: str
    sources: tuple[int, ...] = ()
    codes: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    words: tuple[str, ...] = ()
    counts: bool = True
    afterwards: Action | None = None


NO_CONNECTION: Final = "NO_CONNECTION"
CIRCUIT_OPEN: Final = "CIRCUIT_OPEN"
NO_ANSWER: Final = "NO_ANSWER"
CONNECTION_LOST: Final = "CONNECTION_LOST"
UNREADABLE: Final = "UNREADABLE"
OVER_LIMIT: Final = "OVER_LIMIT"
ALONE_TOO_LARGE: Final = "ALONE_TOO_LARGE"
BESIDE_BAD_LINE: Final = "BESIDE_BAD_LINE"
UNFINISHED: Final = "UNFINISHED"
BAD_COUNT: Final = "BAD_COUNT"
NO_FILE: Final = "NO_FILE"
SHORT_FILES: Final = "SHORT_FILES"
FOREIGN_LINE: Final = "FOREIGN_LINE"
DUPLICATE_LINE: Final = "DUPLICATE_LINE"

PROVIDER_ERROR: Final = "provider_error"
INVALID_RESPONSE: Final = "invalid_response"

_CALLS = frozenset(
    {Place.UPLOAD, Place.CREATE, Place.LIST, Place.RETRIEVE, Place.CANCEL, Place.DOWNLOAD, Place.DELETE, Place.INSTANT}
)
_BROKEN_STATUSES = frozenset({408, *range(500, 600)})
_BROKEN_CODES = frozenset({NO_ANSWER, CONNECTION_LOST, UNREADABLE})
_PURSE_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_QUEUE_CODES = frozenset({"token_limit_exceeded", "enqueued_token_limit_exceeded", "request_limit_exceeded"})
_SIZE_CODES = frozenset({"file_too_large", "too_many_tasks", "too_many_requests_in_file", OVER_LIMIT})
_SIZE_WORDS = ("too large", "too many tasks", "number of tasks", "number of requests in", "maximum number of requests")
_ILL_CODES = frozenset({"server_error", "internal_error", PROVIDER_ERROR})


def _at(*places: Place) -> frozenset[Place]:
    return frozenset(places)


# fmt: off
TABLE: Final[tuple[Row, ...]] = (
    # What any call may meet.
    Row(
        "never_sent", _CALLS, Action.WAIT_UNTIL, "The request has not left us, so that nothing was done.",
        codes=frozenset({NO_CONNECTION, CIRCUIT_OPEN}), counts=False,
    ),
    Row(
        "purse_empty", _CALLS, Action.HOLD_AND_ALERT,
        "Our money at the provider is spent, which it says with a 429 or a 400 that no patience heals.",
        (31,), codes=_PURSE_CODES, counts=False,
    ),
    Row(
        "purse_emptied", _at(Place.FAILED, Place.LINE), Action.WAIT_UNTIL,
        "Our money ran out while the batch ran: no job is to blame, and each waits for it.",
        (31,), codes=_PURSE_CODES, counts=False,
    ),
    Row(
        "key_refused", _CALLS, Action.HOLD_AND_ALERT,
        "The key is wrong or may not do this, as after a change of project.",
        (29,), statuses=frozenset({401, 403}), counts=False,
    ),
    # The size of what is sent.
    Row(
        "too_large_alone", _at(Place.UPLOAD, Place.CREATE, Place.FAILED), Action.FAIL_JOB,
        "A batch of one job can't be cut, so that the job is larger than the provider takes.",
        (15,), codes=frozenset({ALONE_TOO_LARGE}),
    ),
    Row(
        "queue_full", _at(Place.UPLOAD, Place.CREATE, Place.FAILED), Action.WAIT_UNTIL,
        "The provider's queue of tokens or requests is full, said late and released late: its place comes with time.",
        (3, 4, 5), codes=_QUEUE_CODES, words=("enqueued",), counts=False,
    ),
    Row(
        "too_large", _at(Place.UPLOAD, Place.CREATE, Place.FAILED), Action.SPLIT_BATCH,
        "The batch is over a limit of bytes, lines or tokens, which is lower than documented or badly told; its halves"
        " may not be.",
        (15, 16), codes=_SIZE_CODES, statuses=frozenset({413}), words=_SIZE_WORDS, counts=False,
    ),
    # A create.
    Row(
        "create_lost", _at(Place.CREATE, Place.INSTANT), Action.DOUBT,
        "There is no idempotency key, so that a lost answer may hide a purchase: it is looked for first.",
        (1, 2), codes=_BROKEN_CODES, statuses=_BROKEN_STATUSES,
    ),
    Row(
        "file_not_visible", _at(Place.CREATE), Action.DOUBT,
        "A file may be unknown for a while after its upload, and the create come through all the same.",
        (14,), statuses=frozenset({404}), counts=False,
    ),
    Row(
        "file_not_accessible", _at(Place.CREATE), Action.RETRY_BATCH,
        "The same said as a definite no: another upload makes another file.",
        (14,), words=("cannot find file", "does not have access"), counts=False, afterwards=Action.HOLD_AND_ALERT,
    ),
    Row(
        "rate_limited", _CALLS, Action.WAIT_UNTIL, "Too many calls or creates in this hour; nothing was done.",
        (20,), codes=frozenset({"rate_limit_exceeded"}), statuses=frozenset({429}), counts=False,
    ),
    Row(
        "model_unknown", _at(Place.CREATE, Place.INSTANT, Place.FAILED, Place.LINE), Action.FAIL_JOB,
        "A model may be listed and yet not be served here: no other try finds it.",
        (24,), codes=frozenset({"model_not_found"}),
    ),
    Row(
        "conflict", _at(Place.UPLOAD, Place.CREATE), Action.RETRY_BATCH,
        "A definite no to this moment and not to the request.",
        codes=frozenset({"conflict"}), statuses=frozenset({409, 425}), counts=False, afterwards=Action.HOLD_AND_ALERT,
    ),
    # An upload.
    Row(
        "upload_broke", _at(Place.UPLOAD), Action.RETRY_BATCH,
        "Uploads time out, hang and break; a file that nobody asks for costs nothing and expires.",
        (17, 18), codes=_BROKEN_CODES, statuses=_BROKEN_STATUSES, counts=False, afterwards=Action.HOLD_AND_ALERT,
    ),
    Row(
        "request_refused", _at(Place.UPLOAD, Place.CREATE), Action.FAIL_JOB,
        "A definite no to what was asked, such as the kind of the file or the endpoint.", (19, 23),
    ),
    # Following a batch.
    Row(
        "batch_unknown", _at(Place.RETRIEVE, Place.CANCEL), Action.HOLD_AND_ALERT,
        "A batch that was paid for is not seen by this key: another project's, or gone; it is never bought again.",
        (29,), statuses=frozenset({404}), counts=False,
    ),
    Row(
        "cancel_late", _at(Place.CANCEL), Action.DROP,
        "The batch has ended or is being cancelled: its state will tell.",
        (27,), statuses=frozenset({400, 409}), counts=False,
    ),
    Row(
        "file_gone_already", _at(Place.DELETE), Action.DROP, "What was to be deleted is not there.",
        statuses=frozenset({404}), counts=False,
    ),
    Row(
        "results_gone", _at(Place.DOWNLOAD), Action.RETRY_BATCH,
        "A file may be named before it can be read; one that stays away is lost, and nobody pays for it.",
        (8, 14), statuses=frozenset({404}), afterwards=Action.FAIL_JOB,
    ),
    Row(
        "download_broke", _at(Place.DOWNLOAD), Action.RETRY_BATCH,
        "Downloads break off or answer 502 for hours; the file is kept for 30 days, and fetched until then.",
        (30,), codes=_BROKEN_CODES, statuses=_BROKEN_STATUSES, counts=False, afterwards=Action.HOLD_AND_ALERT,
    ),
    Row(
        "unfinished", _at(Place.RETRIEVE), Action.WAIT_UNTIL,
        "A batch may say that all is done and be finalizing for long: only its state says that it has ended.",
        (25,), codes=frozenset({UNFINISHED}), counts=False,
    ),
    Row(
        "bad_count", _at(Place.RETRIEVE), Action.DROP, "Counts go below zero and back while lines are tried again.",
        (33,), codes=frozenset({BAD_COUNT}), counts=False,
    ),
    Row(
        "reading_broke", _at(Place.LIST, Place.RETRIEVE, Place.CANCEL, Place.DELETE), Action.RETRY_BATCH,
        "Asking again changes nothing at the provider.",
        codes=_BROKEN_CODES, statuses=_BROKEN_STATUSES, counts=False, afterwards=Action.HOLD_AND_ALERT,
    ),
    Row(
        "reading_refused", _at(Place.LIST, Place.RETRIEVE, Place.CANCEL, Place.DELETE, Place.DOWNLOAD),
        Action.HOLD_AND_ALERT, "A no to a harmless question is none that we know, and the batch is paid for.",
        counts=False,
    ),
    # A batch that failed.
    Row(
        "beside_bad_line", _at(Place.FAILED), Action.RETRY_LINE,
        "Another line of the file was refused, for which this one is not to blame.",
        (19,), codes=frozenset({BESIDE_BAD_LINE}), counts=False,
    ),
    Row(
        "batch_broke", _at(Place.FAILED), Action.RETRY_LINE, "The provider failed, or gave no reason.",
        (11,), codes=_ILL_CODES,
    ),
    Row(
        "input_lost", _at(Place.FAILED), Action.RETRY_LINE, "The input file was not seen when the batch began.",
        (14,), codes=frozenset({"file_not_found"}), words=("cannot find file",),
    ),
    Row(
        "batch_refused", _at(Place.FAILED), Action.FAIL_JOB,
        "Lines are looked at only after the create: what is wrong with them stays wrong.", (19, 22, 23),
    ),
    # A batch that ended: what its members without a line lose.
    Row(
        "files_short", _at(Place.ENDED), Action.RETRY_BATCH,
        "The files hold fewer lines than were counted: read too early, or broken off unnoticed.",
        (25, 32, 33), codes=frozenset({SHORT_FILES}), afterwards=Action.FAIL_JOB,
    ),
    Row(
        "no_file", _at(Place.ENDED), Action.DROP, "An absent or empty id means that there is no such file.",
        (6, 8), codes=frozenset({NO_FILE}), counts=False,
    ),
    Row(
        "unanswered_expired", _at(Place.ENDED), Action.RETRY_LINE,
        "The batch had no time for the job; what is in its files was paid for and counts.",
        (9,), codes=frozenset({"expired"}), counts=False,
    ),
    Row(
        "unanswered_cancelled", _at(Place.ENDED), Action.RETRY_LINE,
        "The batch was cancelled before the job's turn, which is not the job's doing; what is in its files counts.",
        (10,), codes=frozenset({"cancelled"}), counts=False,
    ),
    Row(
        "unanswered", _at(Place.ENDED), Action.RETRY_LINE, "Neither file holds a line for the job, and both were read.",
        (6, 7),
    ),
    # A line of a file, and an instant answer.
    Row(
        "line_foreign", _at(Place.LINE), Action.DROP,
        "Lines are joined by custom_id alone, as their order says nothing: one that names nobody is nobody's.",
        (13,), codes=frozenset({FOREIGN_LINE}), counts=False,
    ),
    Row(
        "line_duplicate", _at(Place.LINE), Action.DROP,
        "A custom_id may come twice, and an attempt takes one outcome: an answer before a failure.",
        (12,), codes=frozenset({DUPLICATE_LINE}), counts=False,
    ),
    Row(
        "line_expired", _at(Place.LINE), Action.RETRY_LINE, "The batch had no time for the line: no attempt is lost.",
        (9,), codes=frozenset({"batch_expired"}), counts=False,
    ),
    Row(
        "line_cancelled", _at(Place.LINE), Action.RETRY_LINE, "The batch was cancelled before the line's turn.",
        (10,), codes=frozenset({"batch_cancelled"}), counts=False,
    ),
    Row(
        "image_slow", _at(Place.LINE, Place.INSTANT), Action.RETRY_LINE,
        "The image's server was slow, said as a 400 of a bad address: only its words tell.",
        (21,), words=("download",),
    ),
    Row(
        "line_broke", _at(Place.LINE), Action.RETRY_LINE,
        "The provider failed this line, said nothing of it, or said what can't be read.",
        (11,), codes=_ILL_CODES | {"request_timeout", INVALID_RESPONSE}, statuses=_BROKEN_STATUSES,
    ),
    Row(
        "line_limited", _at(Place.LINE, Place.INSTANT), Action.RETRY_LINE,
        "A no to this moment and not to the request.",
        codes=frozenset({"rate_limit_exceeded"}), statuses=frozenset({409, 425, 429}),
    ),
    Row(
        "line_of_our_key", _at(Place.LINE), Action.RETRY_LINE, "The key lost its rights while the batch ran.",
        (29,), statuses=frozenset({401, 403}),
    ),
    Row(
        "instant_lost", _at(Place.INSTANT), Action.RETRY_LINE, "What was not found may be found by another try.",
        statuses=frozenset({404}),
    ),
    Row(
        "line_refused", _at(Place.LINE, Place.INSTANT), Action.FAIL_JOB,
        "The request itself is at fault, as by an image that is none or a body of another endpoint.", (22,),
    ),
)
# fmt: on

_BY_PLACE: Final = {place: tuple(row for row in TABLE if place in row.places) for place in Place}


def classify(signal: Signal) -> Row:
    """The row that decides about an outcome; every outcome has one."""
    said = signal.message.lower()
    return next(row for row in _BY_PLACE[signal.place] if _matches(row, signal, said))


def row(name: str) -> Row:
    """The row of a name. KeyError: there is none."""
    return _BY_NAME[name]


_BY_NAME: Final = {row.name: row for row in TABLE}


def _matches(row: Row, signal: Signal, said: str) -> bool:
    if not (row.codes or row.statuses or row.words):
        return True
    return signal.code in row.codes or signal.status in row.statuses or any(word in said for word in row.words)
