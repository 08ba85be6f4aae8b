"""What an administrator's change of the price lists comes to, or why it is refused."""

from zoneinfo import ZoneInfo

import pytest

from services.batcher.errors import PriceListInForce, PriceListWithdrawn, RolloutShrinks
from services.batcher.job import Lane
from services.batcher.price_change import begin_us, rolled_out, withdraws
from services.batcher.price_list import PriceList, Rollout, plain_list

NOTICE_US = 60
CONTENT = plain_list("v2", {Lane.BATCH: 1, Lane.INSTANT: 5})


def kept(withdraw_us=0, percent=20, effective_us=1_000):
    """A list that begins at 1,000."""
    zone, steps = ZoneInfo("UTC"), (Rollout(percent, effective_us),)
    return PriceList(CONTENT, zone, effective_us, 0, withdraw_us, "admin", 1, 1, steps)


def test_a_list_begins_after_the_notice_or_at_a_later_time_of_its_own():
    assert begin_us(CONTENT, 100, NOTICE_US) == 160
    assert begin_us(CONTENT._replace(effective_time_us=160), 100, NOTICE_US) == 160
    assert begin_us(CONTENT._replace(effective_time_us=900), 100, NOTICE_US) == 900


def test_a_list_that_asks_for_less_than_the_notice_is_refused():
    assert begin_us(CONTENT._replace(effective_time_us=159), 100, NOTICE_US) is None


def test_a_list_grows_after_the_notice_and_not_before_it_begins():
    assert rolled_out(kept(), 50, 2_000, NOTICE_US) == Rollout(50, 2_060)
    assert rolled_out(kept(), 50, 100, NOTICE_US) == Rollout(50, 1_000)
    assert rolled_out(kept(), 20, 2_000, NOTICE_US) is None


def test_a_list_never_shrinks_nor_grows_once_it_was_withdrawn():
    with pytest.raises(RolloutShrinks):
        rolled_out(kept(), 10, 2_000, NOTICE_US)
    with pytest.raises(PriceListWithdrawn):
        rolled_out(kept(withdraw_us=5), 50, 100, NOTICE_US)


def test_a_list_is_withdrawn_once_and_only_until_it_begins():
    assert withdraws(kept(), 999)
    assert not withdraws(kept(withdraw_us=5), 2_000)
    with pytest.raises(PriceListInForce):
        withdraws(kept(), 1_000)
