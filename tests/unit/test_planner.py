"""Which jobs form the next batches."""

from hypothesis import given
from hypothesis import strategies as st

from services.batcher.allowance import Room
from services.batcher.planner import Limits, Planned, Waiting, fair_order, may_start, next_cycle_us, plan

LIMITS = Limits(jobs_per_batch=3, jobs_per_batch_max=50, bytes_per_batch_max=1_000, creates_left=10)


def queue(
    count: int, account_id: str = "alice", model: str = "m", line_bytes: int = 10, tokens: int = 0
) -> list[Waiting]:
    return [Waiting(f"{account_id}-{n:05}", account_id, model, line_bytes, n, tokens) for n in range(count)]


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


def test_no_more_is_planned_than_the_providers_queue_has_room_for():
    """Nine tenths of the limit are filled, since tokens are estimates."""
    rooms = {"m": Room(1_000, 500)}

    assert [len(batch.uids) for batch in plan(queue(20, tokens=100), True, LIMITS, rooms)] == [3, 1]
    assert plan(queue(20, tokens=100), True, LIMITS, {"m": Room(1_000, 900)}) == []
    assert len(plan(queue(20, model="other", tokens=100), True, LIMITS, {"m": Room(1_000, 900)})) == 7


def test_a_job_over_the_limit_goes_alone_once_nothing_else_is_enqueued():
    jobs = queue(2, tokens=5_000)

    assert plan(jobs, True, LIMITS, {"m": Room(1_000, 1)}) == []
    assert [len(batch.uids) for batch in plan(jobs, True, LIMITS, {"m": Room(1_000, 0)})] == [1]


def test_a_model_that_was_refused_waits_for_its_pause():
    rooms = {"m": Room(None, 0, not_before_us=100)}

    assert plan(queue(4), True, LIMITS, rooms, now_us=99) == []
    assert len(plan(queue(4), True, LIMITS, rooms, now_us=100)) == 2


def test_a_full_batch_is_left_to_the_cycle_while_the_providers_queue_is_half_full():
    assert may_start({"m": 3}, 3, {}, 0)
    assert not may_start({"m": 2}, 3, {}, 0)
    assert may_start({"m": 3}, 3, {"m": Room(100, 50)}, 0)
    assert not may_start({"m": 3}, 3, {"m": Room(100, 51)}, 0)
    assert not may_start({"m": 3}, 3, {"m": Room(None, 0, 9)}, 8)


def test_cycles_lie_on_whole_multiples():
    assert next_cycle_us(301, 300) == 600
    assert next_cycle_us(600, 300) == 900


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("mn"), st.integers(1, 400), st.integers(0, 50)), max_size=80
    ),
    st.integers(0, 6),
    st.integers(1, 2_000),
    st.integers(0, 300),
)
def test_a_plan_takes_each_job_once_within_all_limits(jobs, creates_left, tokens_max, taken):
    """No job twice, none unknown, no batch over its size or bytes, no more batches than creates or tokens than fit."""
    waiting = [Waiting(str(n), account, model, size, age, size) for n, (account, model, size, age) in enumerate(jobs)]
    room = Room(tokens_max, taken)
    by_uid = {job.uid: job for job in waiting}
    limits = LIMITS._replace(creates_left=creates_left)
    batches = plan(waiting, True, limits, {"m": room})

    enqueued = [by_uid[uid].tokens for batch in batches if batch.model == "m" for uid in batch.uids]
    assert sum(enqueued) <= (room.left or 0) or (len(enqueued) == 1 and not room.taken)
    taken = [uid for batch in batches for uid in batch.uids]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(by_uid)
    assert len(batches) <= creates_left
    assert sorted(job.uid for job in fair_order(waiting)) == sorted(by_uid)
    for batch in batches:
        assert len(batch.uids) <= limits.jobs_per_batch_max
        assert sum(by_uid[uid].line_bytes for uid in batch.uids) <= limits.bytes_per_batch_max
        assert {by_uid[uid].model for uid in batch.uids} == {batch.model}
