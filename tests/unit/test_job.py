"""The state machine of a job: single rules, and what no sequence of events may bring about."""

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from services.batcher import job as jobs
from services.batcher.job import Action, Answer, Failure, Job, Lane, Limits, Settlement, SettlementState, State

LIMITS = Limits(attempts_max=3, uncharged_finish_reasons=frozenset({"content_filter"}))
ANSWER = Answer("a cat", "stop", 10, 2)
BROKEN = Failure("server_error", "It broke.")
DEADLINE_US = 1_000
HELD_US = 5_000


def job(state: State = State.ADMITTING, **fields) -> Job:
    defaults = {
        "uid": "u1",
        "account_id": "alice",
        "job_id": "cat-1",
        "payer_account_id": "alice",
        "lane": Lane.BATCH,
        "model": "gpt-x",
        "price": 1,
        "price_version": "1",
        "line_bytes": 100,
        "deadline_us": DEADLINE_US,
        "hold_duration_us": HELD_US,
        "create_time_us": 0,
        "update_time_us": 0,
        "queue_time_us": 0,
        "not_before_us": 0,
        "hold_expire_time_us": 0,
        "attempt": 0 if state in (State.ADMITTING, State.REJECTED) else 1,
        "batch_id": "b1" if state in (State.BATCHED, State.RUNNING) else "",
        "cancel_requested": False,
        "last_revision": 1,
    }
    return Job(**{**defaults, "state": state, **fields})


def test_a_held_batch_job_queues_and_an_instant_one_runs():
    queued = jobs.hold(job(), HELD_US, 7)
    running = jobs.hold(job(lane=Lane.INSTANT), HELD_US, 7)

    assert queued is not None
    assert queued.job.state is State.QUEUED
    assert not queued.opened
    assert running is not None
    assert running.job.state is State.RUNNING
    assert running.opened
    assert running.job.attempt == 1


def test_a_rejected_job_releases_its_id_in_the_wallet():
    change = jobs.refuse(job(), Failure("insufficient_funds", ""), 7)

    assert change is not None
    assert (change.job.state, change.settlement) == (State.REJECTED, jobs.RELEASE)


def test_an_answer_after_deadline_and_cancel_still_counts_and_is_charged():
    change = jobs.succeed(job(State.RUNNING, cancel_requested=True), 1, ANSWER, LIMITS, DEADLINE_US + 1)

    assert change is not None
    assert change.job.state is State.SUCCEEDED
    assert change.settlement == Settlement(Action.COMMIT, 1, SettlementState.PENDING)


def test_an_answer_with_an_uncharged_finish_reason_is_given_away():
    change = jobs.succeed(job(State.RUNNING), 1, ANSWER._replace(finish_reason="content_filter"), LIMITS, 7)

    assert change is not None
    assert change.settlement == jobs.RELEASE


def test_an_answer_of_an_old_attempt_is_dropped():
    assert jobs.succeed(job(State.RUNNING, attempt=2), 1, ANSWER, LIMITS, 7) is None
    assert jobs.lose(job(State.QUEUED, attempt=2), 2, BROKEN, True, LIMITS, 7) is None


def test_a_lost_attempt_queues_again_until_attempts_or_time_run_out():
    again = jobs.lose(job(State.RUNNING, attempt=2), 2, BROKEN, True, LIMITS, 7)
    spent = jobs.lose(job(State.RUNNING, attempt=3), 3, BROKEN, True, LIMITS, 7)
    late = jobs.lose(job(State.RUNNING), 1, BROKEN, True, LIMITS, DEADLINE_US)
    final = jobs.lose(job(State.RUNNING), 1, BROKEN, False, LIMITS, 7)
    unwanted = jobs.lose(job(State.RUNNING, cancel_requested=True), 1, BROKEN, True, LIMITS, 7)

    assert again is not None
    assert (again.job.state, again.job.attempt, again.job.batch_id) == (State.QUEUED, 3, "")
    assert spent is not None
    assert (spent.job.state, spent.failure) == (State.FAILED, BROKEN)
    assert late is not None
    assert (late.job.state, late.failure) == (State.EXPIRED, jobs.DEADLINE)
    assert final is not None
    assert final.job.state is State.FAILED
    assert unwanted is not None
    assert unwanted.job.state is State.CANCELLED


def test_waiting_for_the_provider_costs_no_attempt():
    change = jobs.lose(job(State.RUNNING, attempt=9), 9, BROKEN, True, LIMITS, 7, not_before_us=50)

    assert change is not None
    assert (change.job.state, change.job.not_before_us) == (State.QUEUED, 50)


def test_an_instant_job_tries_again_at_once():
    change = jobs.lose(job(State.RUNNING, lane=Lane.INSTANT, batch_id=""), 1, BROKEN, True, LIMITS, 7)

    assert change is not None
    assert (change.job.state, change.job.attempt, change.opened, change.ended) == (
        State.RUNNING,
        2,
        True,
        "server_error",
    )


def instant(**fields) -> Job:
    return job(State.RUNNING, **{"lane": Lane.INSTANT, "batch_id": "", "price": 5, "fallback_price": 1, **fields})


def test_an_instant_job_whose_tries_are_used_up_goes_on_as_a_batch_job_for_the_price_of_one():
    change = jobs.lose(instant(attempt=3), 3, BROKEN, True, LIMITS, 7)

    assert change is not None
    after = change.job
    assert (change.kind, change.ended, change.opened, change.lowered) == ("job.fell_back", "server_error", False, True)
    assert (after.state, after.lane, after.price, after.attempt) == (State.QUEUED, Lane.BATCH, 1, 4)
    assert (after.queue_time_us, change.settlement) == (7, None)


def test_a_job_falls_back_only_where_it_may_and_only_for_what_is_not_its_fault():
    first = jobs.lose(instant(), 1, BROKEN, True, LIMITS, 7)
    forbidden = jobs.lose(instant(attempt=3, fallback_price=0), 3, BROKEN, True, LIMITS, 7)
    own_fault = jobs.lose(instant(attempt=3), 3, BROKEN, False, LIMITS, 7)
    late = jobs.lose(instant(attempt=3), 3, BROKEN, True, LIMITS, DEADLINE_US)
    unwanted = jobs.lose(instant(attempt=3, cancel_requested=True), 3, BROKEN, True, LIMITS, 7)
    ends = [forbidden, own_fault, late, unwanted]

    assert first is not None
    assert (first.job.state, first.job.lane, first.opened) == (State.RUNNING, Lane.INSTANT, True)
    assert [change and change.job.state for change in ends] == [
        State.FAILED, State.FAILED, State.EXPIRED, State.CANCELLED,
    ]  # fmt: skip


def test_a_hold_that_is_not_too_large_is_not_lowered():
    change = jobs.lose(instant(attempt=3, fallback_price=5), 3, BROKEN, True, LIMITS, 7)

    assert change is not None
    assert (change.job.lane, change.lowered) == (Lane.BATCH, False)


def test_a_job_that_fell_back_takes_no_answer_of_its_instant_tries_and_is_charged_for_the_batch():
    fallen = jobs.lose(instant(attempt=2), 2, BROKEN, True, LIMITS._replace(attempts_max=2), 7)
    assert fallen is not None
    batched = jobs.plan(fallen.job, "b2", 8)
    assert batched is not None
    answered = jobs.succeed(batched.job, 3, ANSWER, LIMITS, 9)

    assert jobs.succeed(batched.job, 2, ANSWER, LIMITS, 9) is None
    assert answered is not None
    assert answered.settlement == Settlement(Action.COMMIT, 1, SettlementState.PENDING)


def test_a_cancel_ends_a_job_that_nobody_has_and_is_a_wish_after_that():
    waiting = [jobs.cancel(job(state), False, 7) for state in (State.ADMITTING, State.QUEUED, State.BATCHED)]
    bought = [jobs.cancel(job(State.BATCHED), True, 7), jobs.cancel(job(State.RUNNING), False, 7)]

    assert all(c is not None and c.job.state is State.CANCELLED and c.settlement == jobs.RELEASE for c in waiting)
    assert all(c is not None and c.job.cancel_requested and c.settlement is None for c in bought)
    assert jobs.cancel(job(State.RUNNING, cancel_requested=True), True, 7) is None
    assert jobs.cancel(job(State.SUCCEEDED), True, 7) is None


def test_a_refused_settlement_charges_nothing():
    owed = Settlement(Action.COMMIT, 5, SettlementState.PENDING)
    refused = jobs.settle(job(State.SUCCEEDED), owed, False, 7)

    assert refused is not None
    assert refused.settlement is not None
    assert (refused.settlement.state, refused.settlement.charged) == (SettlementState.REFUSED, 0)


@given(st.integers(0, 2**47), st.integers(0, 2**74 - 1))
def test_uids_are_version_7_and_sort_by_time(time_us, bits):
    uid = jobs.uid_of(time_us, bits)

    assert UUID(uid).version == 7
    assert str(UUID(uid)) == uid
    assert int(uid.replace("-", "")[:12], 16) == time_us // 1000
    assert uid < jobs.uid_of(time_us + 1_000, 0)


def events():
    attempt = st.integers(1, 4)
    return st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "hold",
                    "refuse",
                    "plan",
                    "start",
                    "succeed",
                    "lose",
                    "fail",
                    "wait",
                    "leave",
                    "expire",
                    "lose_hold",
                    "cancel",
                    "settle",
                    "uncollect",
                ]
            ),
            attempt,
            st.booleans(),
            st.integers(0, 60),
        ),
        max_size=40,
    )


def happen(name, current, owed, attempt, frozen, now_us):
    """One event, by its name."""
    what = {
        "hold": lambda: jobs.hold(current, HELD_US, now_us),
        "refuse": lambda: jobs.refuse(current, BROKEN, now_us),
        "plan": lambda: jobs.plan(current, "b2", now_us),
        "start": lambda: jobs.start(current, attempt, now_us),
        "succeed": lambda: jobs.succeed(current, attempt, ANSWER, LIMITS, now_us),
        "lose": lambda: jobs.lose(current, attempt, BROKEN, True, LIMITS, now_us),
        "fail": lambda: jobs.lose(current, attempt, BROKEN, False, LIMITS, now_us),
        "wait": lambda: jobs.lose(current, attempt, BROKEN, True, LIMITS, now_us, now_us + 5),
        "leave": lambda: jobs.leave(current, attempt, jobs.HOLD_LOST, now_us),
        "expire": lambda: jobs.expire(current, now_us),
        "lose_hold": lambda: jobs.lose_hold(current, now_us),
        "cancel": lambda: jobs.cancel(current, frozen, now_us),
        "settle": lambda: owed and jobs.settle(current, owed, True, now_us),
        "uncollect": lambda: owed and jobs.settle(current, owed, False, now_us),
    }[name]
    return what()


@settings(max_examples=500)
@given(st.sampled_from(Lane), st.sampled_from([0, 1]), events())
def test_no_sequence_of_events_charges_twice_or_reopens_a_job(lane, fallback_price, sequence):
    """Whatever comes in whatever order: one settlement, final states stay, attempts grow, the price does not."""
    now_us, current, owed = 0, job(lane=lane, price=5, fallback_price=fallback_price), None
    for name, attempt, frozen, passed_us in sequence:
        now_us += passed_us
        change = happen(name, current, owed, attempt, frozen, now_us)
        if change is None:
            continue
        assert change.before == current
        assert change.lowered == (change.job.price < current.price) == (change.kind == "job.fell_back")
        assert change.job.price in {current.price, fallback_price}
        if jobs.is_final(current):
            assert change.kind in {"job.settled", "job.uncollected"}
            assert change.job.state is current.state
            assert owed is not None
            assert owed.state is SettlementState.PENDING
        else:
            assert (change.settlement is not None) == jobs.is_final(change.job)
            assert (change.answer is not None) == (change.job.state is State.SUCCEEDED)
            assert change.job.attempt in {current.attempt, current.attempt + 1}
            assert change.opened == (
                change.job.state in (State.BATCHED, State.RUNNING)
                and (current.state not in (State.BATCHED, State.RUNNING) or change.job.attempt > current.attempt)
            )
            at_work = current.state in (State.BATCHED, State.RUNNING)
            stays = change.job.state in (State.BATCHED, State.RUNNING) and change.job.attempt == current.attempt
            assert bool(change.ended) == (at_work and not stays)
        if change.settlement is not None:
            assert (change.settlement.action is Action.COMMIT) <= (change.job.state is State.SUCCEEDED)
            owed = change.settlement
        current = change.job
