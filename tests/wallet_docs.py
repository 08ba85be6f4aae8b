"""What the wallet's protos promise in their comments, as data: the errors of each method, and what each carries."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

PROTOSET: Final = Path(__file__).parents[1] / "gen" / "punchcard.protoset"
PACKAGE: Final = "punchcard/wallet/v1"
_PREFIX: Final = "ERROR_REASON_"
# Paths into a FileDescriptorProto: its enums and their values, its services and their methods.
_ENUM, _VALUE, _SERVICE, _METHOD = 5, 2, 6, 2


class Reason(NamedTuple):
    """What the comment of an enum value says."""

    code: str
    metadata: frozenset[str]


class Promise(NamedTuple):
    """What the comment of a method says."""

    errors: frozenset[str]
    """Of the call itself, those that every call may give included."""
    item_errors: frozenset[str]
    """Of each item of a batch."""
    changes_nothing: bool
    one_at_a_time: bool
    """Whether SERVER_BUSY may come because of another call of the same method."""


def reasons() -> dict[str, Reason]:
    """Each reason of the enum, without its prefix."""
    file = _file("error_reason.proto")
    comments = _comments(file)
    found = {}
    for place, value in enumerate(file.enum_type[0].value):
        if value.number:
            comment = comments[_ENUM, 0, _VALUE, place]
            shown = re.search(r"Metadata: (\{.*?\})", comment)
            assert shown is not None, f"{value.name} does not show its metadata"
            code = comment.split(".")[0].split(",")[0]
            found[value.name.removeprefix(_PREFIX)] = Reason(code, frozenset(json.loads(shown[1])))
    return found


def promises() -> dict[str, Promise]:
    """Each method of the wallet's services, by its name."""
    return {name: promise for file in _files() if file.service for name, promise in _promises_of(file).items()}


def _promises_of(file: FileDescriptorProto) -> dict[str, Promise]:
    comments = _comments(file)
    known = reasons().keys()
    methods = [method.name for method in file.service[0].method]
    streams = {method.name for method in file.service[0].method if method.server_streaming}
    texts = {name: comments[_SERVICE, 0, _METHOD, place] for place, name in enumerate(methods)}
    common = _named(comments[_SERVICE, 0].partition("Every call may also fail with")[2], known)
    assert common, "the service's comment does not say what every call may fail with"
    own = {name: _errors_of(name, texts, known) for name in methods}
    return {
        name: Promise(
            errors=common if "errors of an item" in text else own[name] | common,
            item_errors=own[name] | {"INVALID_FIELD"} if "errors of an item" in text else frozenset(),
            changes_nothing="a read" in text or "nothing is changed" in text or name in streams,
            one_at_a_time=bool(re.search(r"Limits:.*one .* at a time \(SERVER_BUSY\)", text)),
        )
        for name, text in texts.items()
    }


def _errors_of(name: str, texts: Mapping[str, str], known: Collection[str]) -> frozenset[str]:
    """The reasons named behind "Errors", and those of the methods that it refers to by "as"."""
    said = re.search(r"Errors(?: of|:).*?Retry:", texts[name])
    assert said is not None, f"{name} does not say its errors"
    found = set(_named(said[0], known))
    for referred in re.findall(r"\bas ((?:[A-Z][a-z]\w*(?:, | and )?)+)", said[0]):
        for other in re.findall(r"\w+", referred):
            if other in texts:
                found |= _errors_of(other, texts, known)
    return frozenset(found)


def _named(text: str, known: Collection[str]) -> frozenset[str]:
    return frozenset(word for word in re.findall(r"\b[A-Z_]{4,}\b", text) if word in known)


def _file(name: str) -> FileDescriptorProto:
    (file,) = [file for file in _files() if file.name == f"{PACKAGE}/{name}"]
    return file


def _files() -> list[FileDescriptorProto]:
    files = FileDescriptorSet.FromString(PROTOSET.read_bytes()).file
    return [file for file in files if file.name.startswith(f"{PACKAGE}/")]


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """The comments above each thing, as one line."""
    return {tuple(each.path): " ".join(each.leading_comments.split()) for each in file.source_code_info.location}
