"""Which jobs form the next batches."""

from hypothesis import given
from hypothesis import strategies as st

from services.batcher.planner import Limits, Planned, Waiting, fair_order, next_cycle_us, plan

LIMITS = Limits(jobs_per_batch=3, jobs_per_batch_max=50, bytes_per_batch_max=1_000, creates_left=10)


def queue(count: int, account_id: str = "alice", model: str = "m", line_bytes: int = 10) -> list[Waiting]:
    return [Waiting(f"{account_id}-{n:05}", account_id, model, line_bytes, n) for n in range(count)]


def test_a_full_batch_starts_at_once_and_the_rest_waits_for_the_cycle():
    assert plan(queue(4), False, LIMITS) == [Planned("m", ("alice-00000", "alice-00001", "alice-00002"))]
    assert [len(batch.uids) for batch in plan(queue(4), True, LIMITS)] == [3, 1]


def test_each_model_has_batches_of_its_own():
    batches = plan([*queue(2, model="b"), *queue(2, model="a")], True, LIMITS)

    assert [batch.model for batch in batches] == ["a", "b"]


def test_batches_grow_when_the_hour_has_few_creates_left():
    batches = plan(queue(20), True, LIMITS._replace(creates_left=2))

    assert [len(batch.uids) for batch in batches] == [10, 10]


def test_no_create_left_plans_nothing():
    assert plan(queue(20), True, LIMITS._replace(creates_left=0)) == []


def test_the_last_create_goes_to_the_model_that_has_waited_longest():
    young = [Waiting("young", "alice", "a", 10, 2)]
    old = [Waiting("newest", "bob", "b", 10, 3), Waiting("oldest", "bob", "b", 10, 1)]

    assert plan([*young, *old], True, LIMITS._replace(creates_left=1)) == [Planned("b", ("oldest", "newest"))]


def test_bytes_cut_a_batch_too():
    batches = plan(queue(3, line_bytes=600), False, LIMITS)

    assert [len(batch.uids) for batch in batches] == [1, 1]


def test_a_long_queue_of_one_account_delays_another_by_one_line():
    ordered = fair_order([*queue(1_000), Waiting("bob-0", "bob", "m", 10, 999_999)])

    assert ordered[1].account_id == "bob"


def test_accounts_share_by_bytes_and_not_by_count():
    ordered = fair_order([*queue(10, line_bytes=100), *queue(100, "bob", line_bytes=10)])

    shares = [sum(job.line_bytes for job in ordered[:55] if job.account_id == name) for name in ("alice", "bob")]
    assert abs(shares[0] - shares[1]) <= 100


def test_cycles_lie_on_whole_multiples():
    assert next_cycle_us(301, 300) == 600
    assert next_cycle_us(600, 300) == 900


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("mn"), st.integers(1, 400), st.integers(0, 50)), max_size=80
    ),
    st.integers(0, 6),
)
def test_a_plan_takes_each_job_once_within_all_limits(jobs, creates_left):
    """No job twice, none unknown, no batch over its size or bytes, no more batches than creates."""
    waiting = [Waiting(str(n), account, model, size, age) for n, (account, model, size, age) in enumerate(jobs)]
    by_uid = {job.uid: job for job in waiting}
    limits = LIMITS._replace(creates_left=creates_left)
    batches = plan(waiting, True, limits)

    taken = [uid for batch in batches for uid in batch.uids]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(by_uid)
    assert len(batches) <= creates_left
    assert sorted(job.uid for job in fair_order(waiting)) == sorted(by_uid)
    for batch in batches:
        assert len(batch.uids) <= limits.jobs_per_batch_max
        assert sum(by_uid[uid].line_bytes for uid in batch.uids) <= limits.bytes_per_batch_max
        assert {by_uid[uid].model for uid in batch.uids} == {batch.model}
