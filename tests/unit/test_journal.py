"""The hash chain: any change of any row shows, and times never fall."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.chassis import journal
from services.chassis.journal import FIRST_HASH, Entry, Head, Row

HEAD = Head("epoch", 0, FIRST_HASH, 0)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
entries = st.builds(Entry, texts, texts, st.sampled_from("abc"), st.just(0), texts)


@given(st.lists(st.tuples(st.lists(entries, max_size=5), st.integers(0, 10)), max_size=5))
def test_transactions_make_one_chain_whatever_their_clocks_say(transactions):
    head, rows = HEAD, list[Row]()
    for group, now_us in transactions:
        head, added = journal.chain(head, group, now_us)
        rows += added

    assert journal.verify_chain(rows) is None
    assert [row.revision for row in rows] == list(range(1, len(rows) + 1))
    assert [row.time_us for row in rows] == sorted(row.time_us for row in rows)
    assert head.revision == len(rows)
    assert head.hash == (rows[-1].hash if rows else FIRST_HASH)


@given(st.lists(entries, min_size=1, max_size=8), st.data())
def test_a_change_of_any_field_breaks_the_chain_at_that_row(group, data):
    _, rows = journal.chain(HEAD, group, 5)
    place = data.draw(st.integers(0, len(rows) - 1))
    field = data.draw(st.sampled_from(Row._fields[1:]))
    value = getattr(rows[place], field)
    forged = rows[place]._replace(**{field: value + 1 if isinstance(value, int) else value + "x"})

    found = journal.verify_chain([*rows[:place], forged, *rows[place + 1 :]])

    assert found is not None
    assert found.revision == place + 1


def test_a_missing_row_breaks_the_chain():
    _, rows = journal.chain(HEAD, [Entry("k", "a", "s", 0, "{}")] * 3, 1)

    assert journal.verify_chain([rows[0], rows[2]]) == rows[2]
    assert journal.verify_chain(rows[1:]) == rows[1]
    assert journal.verify_chain(rows[1:], rows[0].hash) is None


def test_rows_of_one_subject_in_one_transaction_point_at_each_other():
    _, rows = journal.chain(
        Head("epoch", 7, FIRST_HASH, 0),
        [Entry("k", "a", "bob", 3, "1"), Entry("k", "a", "eve", 0, "2"), Entry("k", "a", "bob", 3, "3")],
        1,
    )

    assert [(row.revision, row.previous) for row in rows] == [(8, 3), (9, 0), (10, 8)]
