"""The ways in which users of the Batch API saw it fail, or themselves with it, by a number that faults and tests name.

Those that no provider can play are mistakes on the client's side; `FOR_THE_CLIENT` names them.
"""

from typing import Final

KNOWN_FAILURES: Final[dict[int, str]] = {
    1: "a crash between upload, create and record leaves a paid batch that nobody knows of",
    2: "a create tried again after a lost answer buys a second batch, for want of an idempotency key",
    3: "token_limit_exceeded comes after the create, and leaves the input file behind",
    4: "the enqueued limit stays full for hours after batches ended",
    5: "the limit of enqueued requests is not documented",
    6: "every line failed: completed, without an output file",
    7: "who reads the output file alone drops the failures",
    8: "error_file_id is an empty string",
    9: "an expired batch's partial output is thrown away though it was paid for",
    10: "a cancelled batch with finished lines is taken for one without",
    11: "an expired batch has opaque server errors in its error file",
    12: "a custom_id comes twice",
    13: "results joined by their order give an image the answer of another",
    14: "a file cannot be found right after its upload",
    15: "413 for a file within the limit",
    16: "more lines than the limit give a misleading error",
    17: "uploads time out under load",
    18: "an upload hangs without an error",
    19: "malformed lines are taken at the upload and fail the batch later",
    20: "the limit of creates an hour is a 429, which a gateway may turn into a 500",
    21: "an image's URL times out or cannot be reached, with a code that says bad request",
    22: "image parts of the wrong shape for the endpoint",
    23: "a line's url is not the batch's endpoint",
    24: "a model that is listed answers 404 on each line",
    25: "a long finalizing shows 100 % and no file",
    26: "spend is counted once per poll, or never",
    27: "a cancel gets lost, and trying it again is refused",
    28: "a batch stays in progress forever",
    29: "a batch of another key or project answers 404",
    30: "a result file answers 502 again and again",
    31: "insufficient_quota is a 429 and is taken for a rate limit",
    32: "completed work is lost when a loop ends before its calls do",
    33: "counts go below zero, or backwards",
    34: "a truncated result file makes everything run again",
    35: "a rescue by elapsed time runs a second time what still runs",
}
FOR_THE_CLIENT: Final[frozenset[int]] = frozenset({26, 32})
