"""How jobs come in: decoded, stored with their price, admitted. Once stored a job is safe, whatever its client does."""

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from services.batcher import order as orders
from services.batcher.errors import AccountNotFound, BatcherError, JobNotDead, JobNotFound
from services.batcher.grpc_messages import Asked, tiers_of
from services.batcher.grpc_uploads import Uploads
from services.batcher.job import DEAD, Job, Lane, State, is_final, uid_of
from services.batcher.pricing import Terms
from services.batcher.store import NewJob, Store, Submitted
from services.batcher.store_rows import JobView
from services.chassis.auth import Principal
from services.chassis.fields import Checks
from services.chassis.group_commit import GroupCommitter

DEADLINE_US_MIN: Final = 60 * 1_000_000
DEADLINE_US_MAX: Final = 30 * 24 * 3600 * 1_000_000

Admit = Callable[[Sequence[Job], float], Awaitable[Sequence[Job | Exception]]]


class Defaults(NamedTuple):
    """What the server adds to an order, pinned when the job is stored. models: those that a job may name."""

    model: str
    models: frozenset[str]
    max_output_tokens: int
    deadline_us: int
    hold_durations_us: Mapping[Lane, int]
    admission_wait_seconds: float


class Submissions:
    """Takes jobs. admit: hands jobs to the admitter and waits for a while for what comes of it."""

    def __init__(
        self,
        store: Store,
        committer: GroupCommitter[NewJob, Submitted],
        admit: Admit,
        uploads: Uploads,
        defaults: Defaults,
    ) -> None:
        self._store = store
        self._committer = committer
        self._admit = admit
        self._uploads = uploads
        self._defaults = defaults

    async def submit(self, asked: Asked, principal: Principal) -> tuple[JobView, bool]:
        """Stores and admits a job; gives it and whether it was there before. Raises the refusal."""
        _check_accounts(asked, principal)
        if asked.inline:
            stored = [await self._uploads.store(asked.account_id, data) for data in asked.inline]
            asked = asked._replace(order=asked.order._replace(image_ids=tuple(image.image_id for image, _ in stored)))
        await self._check_new(asked, "")
        command = self._command(asked, principal)
        submitted = await self._committer.submit(command)
        (outcome,) = await self._admitted([submitted])
        if isinstance(outcome, Exception):
            raise outcome
        if submitted.replayed or is_final(outcome):
            return await self._store.view_of(outcome.uid), submitted.replayed
        return JobView(outcome, asked.order, command.detail, command.max_output_tokens, None, None, None), False

    async def retry(
        self, account_id: str, job_id: str, new_job_id: str, terms: Terms, principal: Principal
    ) -> tuple[JobView, bool]:
        """Submits what a dead job asked as a job of its own; gives it and whether it was there before. Raises
        JobNotFound, JobNotDead and what a submission raises.
        """
        dead = await self._store.view(account_id, job_id)
        if dead.job.state not in DEAD:
            raise JobNotDead(job_id, dead.job.state)
        order = orders.again(dead.order, job_id, dead.job.model, dead.max_output_tokens)
        return await self.submit(Asked(account_id, new_job_id, order, (), terms), principal)

    async def submit_many(
        self, asked: Sequence[Asked | Exception], principal: Principal
    ) -> list[tuple[Job, bool] | Exception]:
        """Many jobs in one transaction and one call to the wallet; each has its own result, in order."""
        checked = [await self._checked(item, place, principal) for place, item in enumerate(asked)]
        commands = [self._command(item, principal) for item in checked if not isinstance(item, Exception)]
        stored = await self._committer.submit_many(commands)
        admitted = iter(await self._admitted([item for item in stored if isinstance(item, Submitted)]))
        results: list[tuple[Job, bool] | Exception] = []
        of_stored = iter(stored)
        for item in checked:
            result: Submitted | Exception = item if isinstance(item, Exception) else next(of_stored)
            if isinstance(result, Exception):
                results.append(result)
                continue
            outcome = next(admitted)
            results.append(outcome if isinstance(outcome, Exception) else (outcome, result.replayed))
        return results

    async def _checked(self, item: Asked | Exception, place: int, principal: Principal) -> Asked | Exception:
        if isinstance(item, Exception):
            return item
        try:
            _check_accounts(item, principal)
            await self._check_new(item, f"items[{place}].")
        except Exception as error:
            # It is this item's refusal, and not the call's.
            return error
        return item

    async def _admitted(self, submitted: Sequence[Submitted]) -> list[Job | BatcherError]:
        """The jobs after admission, or the wallet's refusals. Who has no answer in time stays ADMITTING."""
        waiting = [item.job for item in submitted if item.job.state is State.ADMITTING]
        if not waiting:
            return [item.job for item in submitted]
        answers = await self._admit(waiting, self._defaults.admission_wait_seconds)
        outcomes = {job.uid: answer for job, answer in zip(waiting, answers, strict=True)}
        results: list[Job | BatcherError] = []
        for item in submitted:
            outcome = outcomes.get(item.job.uid)
            results.append(outcome if isinstance(outcome, Job | BatcherError) else item.job)
        return results

    def _command(self, asked: Asked, principal: Principal) -> NewJob:
        order, defaults = asked.order, self._defaults
        now_us = time.time_ns() // 1000
        lane, model = Lane(order.lane), order.model or defaults.model
        job = Job(
            uid=uid_of(now_us, secrets.randbits(74)),
            account_id=asked.account_id,
            job_id=asked.job_id,
            payer_account_id=order.payer_account_id or asked.account_id,
            lane=lane,
            model=model,
            price=0,
            price_version="",
            line_bytes=0,
            deadline_us=order.deadline_us or now_us + defaults.deadline_us,
            hold_duration_us=defaults.hold_durations_us[lane],
            create_time_us=now_us,
            update_time_us=now_us,
            queue_time_us=0,
            not_before_us=0,
            hold_expire_time_us=0,
            state=State.ADMITTING,
            attempt=0,
            batch_id="",
            cancel_requested=False,
            last_revision=0,
        )
        max_output_tokens = order.max_output_tokens or defaults.max_output_tokens
        encoded, actor = orders.encode(order), principal.subject
        terms = asked.terms._replace(tiers=tiers_of(principal), falls_back=order.allow_batch_fallback)
        return NewJob(job, encoded, order.image_ids, order.detail, max_output_tokens, actor, terms)

    async def _check_new(self, asked: Asked, prefix: str) -> None:
        """What a new job must keep to: a model that we price, a deadline that lies ahead.

        A job that is there already is past that: a retry of a submit must not fail by its age, nor by a new list.
        """
        order, checks = asked.order, Checks(prefix)
        if order.model and order.model not in self._defaults.models:
            checks.fail("model", order.model, f"must be one of {', '.join(sorted(self._defaults.models))}")
        ahead_us = DEADLINE_US_MAX if order.deadline_us is None else order.deadline_us - time.time_ns() // 1000
        if not DEADLINE_US_MIN <= ahead_us <= DEADLINE_US_MAX:
            seconds = (order.deadline_us or 0) // 1_000_000
            checks.fail("deadline", seconds, "must be a minute to 30 days ahead, in seconds")
        if checks.violations and not await self._is_there(asked):
            checks.done()

    async def _is_there(self, asked: Asked) -> bool:
        try:
            view = await self._store.view(asked.account_id, asked.job_id)
        except JobNotFound:
            return False
        return view.job.state is not State.REJECTED and view.order == asked.order


def _check_accounts(asked: Asked, principal: Principal) -> None:
    """Who submits must be allowed to act for the owner, and for the payer: the tokens are the payer's."""
    for account_id in (asked.account_id, asked.order.payer_account_id):
        if account_id and not principal.may_act_for(account_id):
            raise AccountNotFound(account_id)
