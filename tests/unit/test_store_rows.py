"""store_rows: the journal's JSON, which is written by hand and read back by json."""

from hypothesis import given
from hypothesis import strategies as st

from services.chassis import journal
from services.wallet.holdings import POINT, TOKEN, Entry
from services.wallet.store_rows import encode, entry_of, journal_entry

NUMBERS = st.integers(-(10**18), 10**18)
TEXTS = st.text(max_size=20)
FACTS = st.dictionaries(
    st.sampled_from(["for", "hold_us", "expire_time_us", "price_version", "reference", "pins", "lots", "ended"]),
    NUMBERS | TEXTS | st.none() | st.booleans() | st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3),
)


# No id can hold a slash, which parts an asset from its account.
ACCOUNTS = st.text(max_size=20).map(lambda text: text.replace("/", ""))


@given(
    st.builds(
        Entry, TEXTS, TEXTS, ACCOUNTS, NUMBERS, *[NUMBERS] * 4, *[TEXTS] * 4, FACTS, st.sampled_from([TOKEN, POINT])
    )
)
def test_an_entry_reads_back_as_it_was_written_and_its_json_is_compact(entry):
    row = journal.Row(1, 2, *journal_entry(entry), "hash")
    read = entry_of(row)
    assert read._replace(facts={}) == entry._replace(facts={})
    assert encode(read.facts) == encode(entry.facts)
    assert f'"balance":{entry.balance},' in row.body
