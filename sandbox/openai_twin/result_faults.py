"""What faults do to the two result files of a batch, line by line, before they are written."""

import json
from typing import Any, Final, NamedTuple

from sandbox.openai_twin.faults import Strike

Json = dict[str, Any]

NOBODY: Final = "nobody-asked-for-this"


class Results(NamedTuple):
    """The records of both files, in order; text that is no record stands as bytes."""

    output: list[Json | bytes]
    error: list[Json | bytes]

    def lines(self, file: str) -> list[bytes]:
        """A file's lines."""
        return [each if isinstance(each, bytes) else json.dumps(each).encode() for each in getattr(self, file)]


def spoil(results: Results, strike: Strike) -> bool:
    """Lets a fault strike the results; False when there is nothing that it could strike."""
    if strike.name == "results_reversed":
        results.output.reverse()
        results.error.reverse()
        return len(results.output) > 1 or len(results.error) > 1
    records: list[Json | bytes] = getattr(results, strike.parameters.get("file", "output"))
    at = next((at for at, record in enumerate(records) if isinstance(record, dict) and "custom_id" in record), None)
    if at is None:
        return False
    record = records[at]
    assert isinstance(record, dict)
    match strike.name:
        case "garbage_line":
            whole = json.dumps(record).encode()
            records[at : at + strike.parameters["instead"]] = [whole[: len(whole) // 2]]
        case "line_without_outcome":
            records[at] = {**record, "response": None, "error": None}
        case "custom_id_missing":
            records[at] = {name: value for name, value in record.items() if name != "custom_id"}
        case "custom_id_unknown":
            records[at] = {**record, "custom_id": NOBODY}
        case "custom_id_duplicated":
            return _duplicate(records, at, record, other_answer=strike.parameters["other_answer"])
        case "result_missing":
            del records[at]
        case _:
            return False
    return True


def _duplicate(records: list[Json | bytes], at: int, record: Json, *, other_answer: bool) -> bool:
    """Adds a second line of a record's custom_id at the end, with the same answer or another line's."""
    last = records[-1]
    if not other_answer:
        records.append({**record, "id": f"{record['id']}2"})
    elif len(records) - 1 > at and isinstance(last, dict):
        records.append({**last, "custom_id": record["custom_id"], "id": f"{last['id']}2"})
    else:
        return False
    return True
