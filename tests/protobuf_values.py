"""Hypothesis strategies for any protobuf message, made from its descriptor: plausible values, and the odd ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

Words = Mapping[str, Sequence[str]]
"""Plausible strings by the name of a field; those under "" are for all others."""

ODD_TEXTS: Final = [
    "",
    "\0",
    "a\0b",
    "@issue",
    "@revenue",
    "@wallet",
    " ",
    "a b",
    "a/b",
    "-a",
    "A.B_c:d-e",
    "a" * 128,
    "a" * 129,
    "x" * 256,
    "x" * 257,
    "y" * 5_000,
    "\N{GRINNING FACE}" * 256,
    "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    "\ufeff\uffff\u0000",
    "e\u0301",
    "'; DROP TABLE accounts; --",
    '{"a":["',
    "%s%n\\",
    "\n\r\t",
    "null",
    "0",
]
BOUNDARIES: Final = [0, 1, 2, 5, 10, 100, 101, 1000, 1001, 10**15, 10**15 + 1, 10**18, -1, -2]
SECONDS: Final = [0, 1, 60, 3600, 45 * 86400, 45 * 86400 + 1, 10 * 366 * 86400, -1, 315_576_000_000, 315_576_000_001]
TIMES: Final = [
    0,
    1_700_000_000,
    1_795_500_000,
    4_000_000_000,
    -62_135_596_800,
    -62_135_596_801,
    253_402_300_799,
    253_402_300_800,
]
NANOS: Final = [0, 0, 0, 1, 999, 1000, 500_000_000, 999_999_999, 1_000_000_000, -1, -999_999_999, 2**31 - 1, -(2**31)]
MANY: Final = [999, 1000, 1001]
_ABSENT: Final = object()
_INT_BITS: Final = {
    FieldDescriptor.TYPE_INT32: 32,
    FieldDescriptor.TYPE_SINT32: 32,
    FieldDescriptor.TYPE_SFIXED32: 32,
    FieldDescriptor.TYPE_INT64: 64,
    FieldDescriptor.TYPE_SINT64: 64,
    FieldDescriptor.TYPE_SFIXED64: 64,
}
_UINT_BITS: Final = {
    FieldDescriptor.TYPE_UINT32: 32,
    FieldDescriptor.TYPE_FIXED32: 32,
    FieldDescriptor.TYPE_UINT64: 64,
    FieldDescriptor.TYPE_FIXED64: 64,
}


def messages(descriptor: Descriptor, words: Words) -> st.SearchStrategy[Message]:
    """Any message of this type: one that may well be meant, one with a single odd field, or one with many."""
    tame, wild = _messages(descriptor, words, tame=True), _messages(descriptor, words, tame=False)
    spiced = st.builds(_with_field_of, tame, wild, st.integers(0, max(len(descriptor.fields) - 1, 0)))
    return _weighted((7, tame), (3, spiced), (1, wild))


def _weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of several, some of them more often: `one_of` would drop what is named twice."""
    named = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.sampled_from(range(len(named))).flatmap(named.__getitem__)


def _with_field_of(message: Message, other: Message, place: int) -> Message:
    """The message, but for one field that comes from another of its type."""
    if not message.DESCRIPTOR.fields:
        return message
    name = message.DESCRIPTOR.fields[place].name
    donor = type(message)()
    donor.CopyFrom(other)
    for field in message.DESCRIPTOR.fields:
        if field.name != name:
            donor.ClearField(field.name)
    message.ClearField(name)
    message.MergeFrom(donor)
    return message


def _messages(descriptor: Descriptor, words: Words, *, tame: bool) -> st.SearchStrategy[Message]:
    if descriptor.full_name == "google.protobuf.Duration":
        return _pairs(descriptor, SECONDS, tame=tame)
    if descriptor.full_name == "google.protobuf.Timestamp":
        return _pairs(descriptor, TIMES, tame=tame)
    made = GetMessageClass(descriptor)
    plain = [field for field in descriptor.fields if not _is_choice(field)]
    values = [_maybe(field, _field_values(field, words, tame=tame), tame=tame) for field in plain]
    # Of a oneof any field may be set, or none.
    choices = [
        st.one_of(
            *([] if tame else [st.just({})]),
            *(_field_values(field, words, tame=tame).map(_under(field.name)) for field in oneof.fields),
        )
        for oneof in descriptor.oneofs
        if len(oneof.fields) > 1
    ]

    def assemble(given: Sequence[Any], chosen: Sequence[Mapping[str, Any]]) -> Message:
        fields = {field.name: value for field, value in zip(plain, given, strict=True) if value is not _ABSENT}
        for choice in chosen:
            fields |= choice
        return made(**fields)

    return st.builds(assemble, st.tuples(*values), st.tuples(*choices))


def _is_choice(field: FieldDescriptor) -> bool:
    return field.containing_oneof is not None and len(field.containing_oneof.fields) > 1


def _under(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: value}


def _maybe(field: FieldDescriptor, values: st.SearchStrategy[Any], *, tame: bool) -> st.SearchStrategy[Any]:
    """Absent at times; where absence says something, as often as not."""
    optional = field.has_presence and field.message_type is None
    presence = 1 if optional else 39 if tame else 3
    return _weighted((presence, values), (1, st.just(_ABSENT)))


def _field_values(field: FieldDescriptor, words: Words, *, tame: bool) -> st.SearchStrategy[Any]:
    if not field.is_repeated:
        return _values(field, words, tame=tame)
    # An item has neighbours of both kinds.
    item = messages(field.message_type, words) if field.message_type else _values(field, words, tame=tame)
    few = st.lists(item, min_size=int(tame), max_size=6)
    many = st.builds(lambda value, count: [value] * count, item, st.sampled_from(MANY))
    return _weighted((19, few), (1, many))


def _values(field: FieldDescriptor, words: Words, *, tame: bool) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _messages(field.message_type, words, tame=tame)
    if field.enum_type is not None:
        return st.sampled_from([*(value.number for value in field.enum_type.values), 99, -1, 2**31 - 1])
    if field.type in _INT_BITS:
        return _integers(-(2 ** (_INT_BITS[field.type] - 1)), 2 ** (_INT_BITS[field.type] - 1) - 1, tame=tame)
    if field.type in _UINT_BITS:
        return _integers(0, 2 ** _UINT_BITS[field.type] - 1, tame=tame)
    if field.type == FieldDescriptor.TYPE_STRING:
        plausible = st.sampled_from(list(words.get(field.name) or words[""]))
        odd = st.one_of(st.sampled_from(ODD_TEXTS), st.text(st.characters(codec="utf-8"), max_size=40))
        return plausible if tame else _weighted((1, plausible), (3, odd))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=100)
    return st.floats()


def _integers(least: int, most: int, *, tame: bool) -> st.SearchStrategy[int]:
    small = st.integers(1, 9)
    if tame:
        return _weighted((9, small), (1, st.sampled_from([100, 1000])))
    edges = [value for value in BOUNDARIES if least <= value <= most]
    return st.one_of(small, st.sampled_from([*edges, least, most]), st.integers(least, most))


def _pairs(descriptor: Descriptor, seconds: Sequence[int], *, tame: bool) -> st.SearchStrategy[Message]:
    """Seconds and nanos: whole and plausible (a time is now, or not long ago), or at and beyond the ends."""
    made = GetMessageClass(descriptor)
    if tame and seconds is TIMES:
        return st.builds(lambda age: made(seconds=int(time.time()) - age), st.sampled_from([0, 1, 3600]))
    if tame:
        return st.builds(lambda value: made(seconds=value), st.sampled_from(seconds[1:4]))
    whole = st.sampled_from([*seconds, 2**63 - 1, -(2**63)])
    return st.builds(lambda value, nanos: made(seconds=value, nanos=nanos), whole, st.sampled_from(NANOS))


def garbled(descriptor: Descriptor, words: Words) -> st.SearchStrategy[bytes]:
    """Bytes that are no message of this type, or hardly: noise, broken ones, and fields of another wire type."""
    good = messages(descriptor, words).map(lambda message: message.SerializeToString()[:4096])
    tags = st.builds(
        lambda number, wire_type, payload: bytes([number << 3 | wire_type]) + payload,
        st.integers(0, 15),
        st.integers(0, 7),
        st.binary(max_size=12),
    )
    return st.one_of(
        st.binary(max_size=64),
        st.builds(_with_byte, good, st.integers(0, 4096), st.integers(0, 255)),
        st.builds(lambda raw, end: raw[: end % (len(raw) + 1)], good, st.integers(0, 4096)),
        st.builds(lambda raw, tag: raw + tag, good, tags),
        st.lists(tags, max_size=4).map(b"".join),
    )


def _with_byte(raw: bytes, place: int, value: int) -> bytes:
    place %= len(raw) + 1
    return raw[:place] + bytes([value]) + raw[place + 1 :]
