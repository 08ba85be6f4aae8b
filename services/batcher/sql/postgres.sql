-- name: images_insert(account_id, image_id, media_type, width_pixels, height_pixels, size_bytes, object_key, create_time_us)!
INSERT INTO images (
    account_id, image_id, media_type, width_pixels, height_pixels, size_bytes, object_key, create_time_us
)
VALUES (:account_id, :image_id, :media_type, :width_pixels, :height_pixels, :size_bytes, :object_key, :create_time_us)
ON CONFLICT (account_id, image_id) DO NOTHING;

-- name: images_get(keys)
SELECT account_id, image_id, media_type, width_pixels, height_pixels, size_bytes, object_key, create_time_us
FROM images
WHERE (account_id, image_id) IN (SELECT value ->> 0, value ->> 1 FROM jsonb_array_elements(:keys::jsonb));

-- name: jobs_by_key(keys)
SELECT uid, account_id, job_id, payer_account_id, lane, model, price, price_version, line_bytes, deadline_us,
    hold_duration_us, create_time_us, update_time_us, queue_time_us, not_before_us, hold_expire_time_us, state,
    attempt, batch_id, cancel_requested, last_revision, fallback_price, request
FROM jobs
WHERE NOT superseded AND (account_id, job_id) IN (SELECT value ->> 0, value ->> 1 FROM
    jsonb_array_elements(:keys::jsonb))
ORDER BY uid FOR UPDATE;

-- name: jobs_lock(uids)
SELECT uid, account_id, job_id, payer_account_id, lane, model, price, price_version, line_bytes, deadline_us,
    hold_duration_us, create_time_us, update_time_us, queue_time_us, not_before_us, hold_expire_time_us, state,
    attempt, batch_id, cancel_requested, last_revision, fallback_price
FROM jobs
WHERE uid IN (SELECT jsonb_array_elements_text(:uids::jsonb))
ORDER BY uid FOR UPDATE;

-- name: jobs_read(uids)
SELECT uid, account_id, job_id, payer_account_id, lane, model, price, price_version, line_bytes, deadline_us,
    hold_duration_us, create_time_us, update_time_us, queue_time_us, not_before_us, hold_expire_time_us, state,
    attempt, batch_id, cancel_requested, last_revision, fallback_price
FROM jobs
WHERE uid IN (SELECT jsonb_array_elements_text(:uids::jsonb))
ORDER BY uid;

-- name: jobs_supersede(uid)!
UPDATE jobs SET superseded = TRUE WHERE uid = :uid AND state = 'REJECTED';

-- name: jobs_insert(uid, account_id, job_id, payer_account_id, lane, model, price, price_version, line_bytes, deadline_us, hold_duration_us, create_time_us, update_time_us, queue_time_us, not_before_us, hold_expire_time_us, state, attempt, batch_id, cancel_requested, last_revision, fallback_price, detail, max_output_tokens, request, prompt_tokens)!
INSERT INTO jobs (
    uid, account_id, job_id, payer_account_id, lane, model, price, price_version, line_bytes, deadline_us,
    hold_duration_us, create_time_us, update_time_us, queue_time_us, not_before_us, hold_expire_time_us, state,
    attempt, batch_id, cancel_requested, last_revision, fallback_price, detail, max_output_tokens, request,
    prompt_tokens
)
VALUES (
    :uid, :account_id, :job_id, :payer_account_id, :lane, :model, :price, :price_version, :line_bytes, :deadline_us,
    :hold_duration_us, :create_time_us, :update_time_us, :queue_time_us, :not_before_us, :hold_expire_time_us,
    :state, :attempt, :batch_id, :cancel_requested, :last_revision, :fallback_price, :detail, :max_output_tokens,
    :request, :prompt_tokens
);

-- name: jobs_update(rows)!
UPDATE jobs SET
    state = r.state, attempt = r.attempt, batch_id = r.batch_id, cancel_requested = r.cancel_requested,
    update_time_us = r.update_time_us, queue_time_us = r.queue_time_us, not_before_us = r.not_before_us,
    hold_expire_time_us = r.hold_expire_time_us, last_revision = r.last_revision, lane = r.lane, price = r.price
FROM jsonb_to_recordset(:rows::jsonb) AS r (
    uid text, was_state text, was_attempt integer, state text, attempt integer, batch_id text,
    cancel_requested boolean, update_time_us bigint, queue_time_us bigint, not_before_us bigint,
    hold_expire_time_us bigint, last_revision bigint, lane text, price bigint
)
WHERE jobs.uid = r.uid AND jobs.state = r.was_state AND jobs.attempt = r.was_attempt;

-- name: jobs_end(rows)!
UPDATE jobs SET
    state = r.state, cancel_requested = r.cancel_requested, update_time_us = r.update_time_us,
    last_revision = r.last_revision, answer = r.answer, finish_reason = r.finish_reason,
    input_tokens = r.input_tokens, output_tokens = r.output_tokens,
    failure_code = r.failure_code, failure_message = r.failure_message, end_time_us = r.update_time_us
FROM jsonb_to_recordset(:rows::jsonb) AS r (
    uid text, was_state text, was_attempt integer, state text, cancel_requested boolean, update_time_us bigint,
    last_revision bigint, answer text, finish_reason text, input_tokens bigint, output_tokens bigint,
    failure_code text, failure_message text
)
WHERE jobs.uid = r.uid AND jobs.state = r.was_state AND jobs.attempt = r.was_attempt;

-- name: jobs_settle(rows)!
UPDATE jobs SET update_time_us = r.update_time_us, last_revision = r.last_revision
FROM jsonb_to_recordset(:rows::jsonb) AS r (
    uid text, was_state text, update_time_us bigint, last_revision bigint
)
WHERE jobs.uid = r.uid AND jobs.state = r.was_state;

-- name: jobs_renew(rows)!
UPDATE jobs SET hold_expire_time_us = r.hold_expire_time_us
FROM jsonb_to_recordset(:rows::jsonb) AS r (
    uid text, hold_expire_time_us bigint
)
WHERE jobs.uid = r.uid AND jobs.hold_expire_time_us < r.hold_expire_time_us;

-- name: job_view_by_key(account_id, job_id)^
SELECT jobs.uid, jobs.account_id, jobs.job_id, jobs.payer_account_id, jobs.lane, jobs.model, jobs.price,
    jobs.price_version, jobs.line_bytes, jobs.deadline_us, jobs.hold_duration_us, jobs.create_time_us,
    jobs.update_time_us, jobs.queue_time_us, jobs.not_before_us, jobs.hold_expire_time_us, jobs.state, jobs.attempt,
    jobs.batch_id, jobs.cancel_requested, jobs.last_revision, jobs.fallback_price, jobs.detail, jobs.max_output_tokens, jobs.request,
    jobs.answer, jobs.finish_reason, jobs.input_tokens, jobs.output_tokens, jobs.failure_code, jobs.failure_message,
    settlements.action, settlements.amount, settlements.state AS settlement_state
FROM jobs LEFT JOIN settlements ON settlements.uid = jobs.uid
WHERE jobs.account_id = :account_id AND jobs.job_id = :job_id AND NOT jobs.superseded;

-- name: job_view(uid)^
SELECT jobs.uid, jobs.account_id, jobs.job_id, jobs.payer_account_id, jobs.lane, jobs.model, jobs.price,
    jobs.price_version, jobs.line_bytes, jobs.deadline_us, jobs.hold_duration_us, jobs.create_time_us,
    jobs.update_time_us, jobs.queue_time_us, jobs.not_before_us, jobs.hold_expire_time_us, jobs.state, jobs.attempt,
    jobs.batch_id, jobs.cancel_requested, jobs.last_revision, jobs.fallback_price, jobs.detail, jobs.max_output_tokens, jobs.request,
    jobs.answer, jobs.finish_reason, jobs.input_tokens, jobs.output_tokens, jobs.failure_code, jobs.failure_message,
    settlements.action, settlements.amount, settlements.state AS settlement_state
FROM jobs LEFT JOIN settlements ON settlements.uid = jobs.uid
WHERE jobs.uid = :uid;

-- name: job_views(account_id, state, before_uid, count)
SELECT jobs.uid, jobs.account_id, jobs.job_id, jobs.payer_account_id, jobs.lane, jobs.model, jobs.price,
    jobs.price_version, jobs.line_bytes, jobs.deadline_us, jobs.hold_duration_us, jobs.create_time_us,
    jobs.update_time_us, jobs.queue_time_us, jobs.not_before_us, jobs.hold_expire_time_us, jobs.state, jobs.attempt,
    jobs.batch_id, jobs.cancel_requested, jobs.last_revision, jobs.fallback_price, jobs.detail, jobs.max_output_tokens, jobs.request,
    jobs.answer, jobs.finish_reason, jobs.input_tokens, jobs.output_tokens, jobs.failure_code, jobs.failure_message,
    settlements.action, settlements.amount, settlements.state AS settlement_state
FROM jobs LEFT JOIN settlements ON settlements.uid = jobs.uid
WHERE jobs.account_id = :account_id AND NOT jobs.superseded
    AND (:state::text = '' OR jobs.state = :state::text) AND (:before_uid::text = '' OR jobs.uid < :before_uid::text)
ORDER BY jobs.uid DESC LIMIT :count::bigint;

-- name: jobs_dead(account_id, failure_code, since_us, before_us, before_uid, count)
SELECT jobs.uid, jobs.account_id, jobs.job_id, jobs.payer_account_id, jobs.lane, jobs.model, jobs.price,
    jobs.price_version, jobs.line_bytes, jobs.deadline_us, jobs.hold_duration_us, jobs.create_time_us,
    jobs.update_time_us, jobs.queue_time_us, jobs.not_before_us, jobs.hold_expire_time_us, jobs.state, jobs.attempt,
    jobs.batch_id, jobs.cancel_requested, jobs.last_revision, jobs.fallback_price, jobs.detail,
    jobs.max_output_tokens, jobs.request, jobs.answer, jobs.finish_reason, jobs.input_tokens, jobs.output_tokens,
    jobs.failure_code, jobs.failure_message, settlements.action, settlements.amount,
    settlements.state AS settlement_state, jobs.end_time_us
FROM jobs LEFT JOIN settlements ON settlements.uid = jobs.uid
WHERE jobs.state IN ('FAILED', 'EXPIRED') AND jobs.end_time_us >= :since_us
    AND (jobs.end_time_us, jobs.uid) < (:before_us::bigint, :before_uid::text)
    AND (:account_id::text = '' OR jobs.account_id = :account_id::text)
    AND (:failure_code::text = '' OR jobs.failure_code = :failure_code::text)
ORDER BY jobs.end_time_us DESC, jobs.uid DESC LIMIT :count::bigint;

-- name: attempts_last(uids, count)
SELECT a.uid, a.attempt, a.batch_id, a.start_time_us, a.end_time_us, a.outcome
FROM attempts a JOIN jobs j ON j.uid = a.uid
WHERE a.uid IN (SELECT jsonb_array_elements_text(:uids::jsonb)) AND a.attempt > j.attempt - :count::integer
ORDER BY a.uid, a.attempt;

-- name: jobs_admitting(before_us, count)
SELECT uid FROM jobs
WHERE state = 'ADMITTING' AND update_time_us <= :before_us ORDER BY uid LIMIT :count::bigint;

-- name: jobs_overdue(now_us, count)
SELECT uid FROM jobs
WHERE state IN ('ADMITTING', 'QUEUED') AND deadline_us <= :now_us ORDER BY deadline_us LIMIT :count::bigint;

-- name: jobs_renewable(before_us, count)
SELECT uid FROM jobs
WHERE state IN ('QUEUED', 'BATCHED', 'RUNNING') AND hold_expire_time_us < :before_us
ORDER BY hold_expire_time_us LIMIT :count::bigint;

-- name: queue_depths(now_us)
SELECT model, count(*) AS jobs FROM jobs
WHERE state IN ('ADMITTING', 'QUEUED') AND state = 'QUEUED' AND not_before_us <= :now_us GROUP BY model;

-- name: cycle_read()^
SELECT cycle_start_us FROM planner WHERE id = 1;

-- name: cycle_write(cycle_start_us)!
UPDATE planner SET cycle_start_us = :cycle_start_us WHERE id = 1 AND cycle_start_us < :cycle_start_us;

-- name: queue_page(now_us, count_per_account, count)
SELECT uid, account_id, model, line_bytes, queue_time_us, prompt_tokens FROM (
    SELECT uid, account_id, model, line_bytes, queue_time_us, prompt_tokens,
        row_number() OVER (PARTITION BY model, account_id ORDER BY queue_time_us, uid) AS place
    FROM jobs
WHERE state IN ('ADMITTING', 'QUEUED') AND state = 'QUEUED' AND not_before_us <= :now_us
) AS queue
WHERE place <= :count_per_account::bigint ORDER BY place, queue_time_us, uid LIMIT :count::bigint;

-- name: attempts_insert(uid, attempt, batch_id, start_time_us, lease_time_us)!
INSERT INTO attempts (uid, attempt, batch_id, start_time_us, end_time_us, lease_time_us, outcome)
VALUES (:uid, :attempt, :batch_id, :start_time_us, 0, :lease_time_us, '');

-- name: attempts_end(uid, attempt, end_time_us, outcome, counted)!
UPDATE attempts SET end_time_us = :end_time_us, outcome = :outcome, counted = :counted
WHERE uid = :uid AND attempt = :attempt AND outcome = '';

-- name: attempts_keep(keys, lease_time_us)!
UPDATE attempts SET lease_time_us = :lease_time_us
WHERE outcome = '' AND (uid, attempt) IN (SELECT value ->> 0, (value ->> 1)::integer FROM jsonb_array_elements(:keys::jsonb));

-- name: attempts_claim(now_us, lease_time_us, count)
UPDATE attempts SET lease_time_us = :lease_time_us
WHERE (uid, attempt) IN (
    SELECT uid, attempt FROM attempts
    WHERE batch_id = '' AND outcome = '' AND lease_time_us <= :now_us ORDER BY uid LIMIT :count::bigint
    FOR UPDATE SKIP LOCKED
)
RETURNING uid;

-- name: settlements_insert(uid, action, amount, create_time_us)!
INSERT INTO settlements (uid, action, amount, state, create_time_us, update_time_us, refusal)
VALUES (:uid, :action, :amount, 'PENDING', :create_time_us, :create_time_us, '');

-- name: settlements_pending(after_uid, count)
SELECT s.uid, s.action, s.amount, s.state, j.state AS job_state FROM settlements s JOIN jobs j ON j.uid = s.uid
WHERE s.state = 'PENDING' AND s.uid > :after_uid
ORDER BY s.uid LIMIT :count::bigint;

-- name: settlements_lock(uids)
SELECT uid, action, amount, state FROM settlements WHERE uid IN (SELECT jsonb_array_elements_text(:uids::jsonb))
    ORDER BY uid FOR UPDATE;

-- name: settlements_update(uid, state, update_time_us, refusal)!
UPDATE settlements SET state = :state, update_time_us = :update_time_us, refusal = :refusal
WHERE uid = :uid AND state = 'PENDING';

-- name: settlements_uncollect(uid, update_time_us, refusal)!
UPDATE settlements SET state = 'REFUSED', update_time_us = :update_time_us, refusal = :refusal
WHERE uid = :uid AND state = 'SETTLED';

-- name: settlements_settled(before, floor, count)
SELECT n.revision, s.uid, s.action, s.amount, s.state, j.state AS job_state
FROM (
    SELECT revision, subject FROM journal
    WHERE revision < :before AND revision >= :floor AND kind = 'job.settled'
    ORDER BY revision DESC LIMIT :count::bigint
) AS n JOIN settlements s ON s.uid = n.subject JOIN jobs j ON j.uid = n.subject
ORDER BY n.revision DESC;

-- name: settlements_first_charged(floor, count)
SELECT s.uid, s.action, s.amount, s.state, j.state AS job_state
FROM (
    SELECT revision, subject FROM journal WHERE revision <= :floor AND kind = 'job.settled'
) AS n JOIN settlements s ON s.uid = n.subject JOIN jobs j ON j.uid = n.subject
WHERE s.action = 'COMMIT' AND s.state = 'SETTLED'
ORDER BY n.revision LIMIT :count::bigint;

-- name: lowerings_insert(uid, amount, create_time_us)!
INSERT INTO lowerings (uid, amount, state, create_time_us, update_time_us, refusal)
VALUES (:uid, :amount, 'PENDING', :create_time_us, :create_time_us, '');

-- name: lowerings_pending(count)
SELECT uid, amount FROM lowerings WHERE state = 'PENDING' ORDER BY uid LIMIT :count::bigint;

-- name: lowerings_update(uid, state, update_time_us, refusal)!
UPDATE lowerings SET state = :state, update_time_us = :update_time_us, refusal = :refusal
WHERE uid = :uid AND state = 'PENDING';

-- name: batches_insert(batch_id, model, state, jobs, create_time_us, update_time_us, not_before_us, submission, provider_batch_id, provider_state, total, completed, failed, output_file_id, error_file_id, cancel_sent, problem, last_revision, tokens, failures, failing_since_us)!
INSERT INTO batches (
    batch_id, model, state, jobs, create_time_us, update_time_us, not_before_us, submission, provider_batch_id,
    provider_state, total, completed, failed, output_file_id, error_file_id, cancel_sent, problem, last_revision,
    tokens, failures, failing_since_us
)
VALUES (
    :batch_id, :model, :state, :jobs, :create_time_us, :update_time_us, :not_before_us, :submission,
    :provider_batch_id, :provider_state, :total, :completed, :failed, :output_file_id, :error_file_id, :cancel_sent,
    :problem, :last_revision, :tokens, :failures, :failing_since_us
);

-- name: batches_update(batch_id, model, state, jobs, create_time_us, update_time_us, not_before_us, submission, provider_batch_id, provider_state, total, completed, failed, output_file_id, error_file_id, cancel_sent, problem, last_revision, tokens, failures, failing_since_us)!
UPDATE batches SET
    state = :state, jobs = :jobs, update_time_us = :update_time_us, not_before_us = :not_before_us,
    submission = :submission, provider_batch_id = :provider_batch_id, provider_state = :provider_state, total =
    :total,
    completed = :completed, failed = :failed, output_file_id = :output_file_id, error_file_id = :error_file_id,
    cancel_sent = :cancel_sent, problem = :problem, last_revision = :last_revision, tokens = :tokens,
    failures = :failures, failing_since_us = :failing_since_us
WHERE batch_id = :batch_id AND model = :model AND create_time_us = :create_time_us;

-- name: batches_lock(batch_ids)
SELECT batch_id, model, state, jobs, create_time_us, update_time_us, not_before_us, submission, provider_batch_id,
    provider_state, total, completed, failed, output_file_id, error_file_id, cancel_sent, problem, last_revision,
    tokens, failures, failing_since_us
FROM batches
WHERE batch_id IN (SELECT jsonb_array_elements_text(:batch_ids::jsonb))
ORDER BY batch_id FOR UPDATE;

-- name: batch_get(batch_id)^
SELECT batch_id, model, state, jobs, create_time_us, update_time_us, not_before_us, submission, provider_batch_id,
    provider_state, total, completed, failed, output_file_id, error_file_id, cancel_sent, problem, last_revision,
    tokens, failures, failing_since_us
FROM batches
WHERE batch_id = :batch_id;

-- name: batches_open()
SELECT batch_id, model, state, jobs, create_time_us, update_time_us, not_before_us, submission, provider_batch_id,
    provider_state, total, completed, failed, output_file_id, error_file_id, cancel_sent, problem, last_revision,
    tokens, failures, failing_since_us
FROM batches
WHERE state <> 'CLOSED' ORDER BY batch_id;

-- name: batches_unwanted()
SELECT batch_id FROM batches
WHERE state <> 'CLOSED' AND state = 'RUNNING' AND NOT cancel_sent AND NOT EXISTS (
    SELECT 1 FROM jobs
    WHERE jobs.batch_id = batches.batch_id AND jobs.state IN ('BATCHED', 'RUNNING') AND NOT jobs.cancel_requested
);

-- name: batch_members(batch_id, after_uid, count)
SELECT jobs.uid, jobs.account_id, jobs.job_id, jobs.payer_account_id, jobs.lane, jobs.model, jobs.price,
    jobs.price_version, jobs.line_bytes, jobs.deadline_us, jobs.hold_duration_us, jobs.create_time_us,
    jobs.update_time_us, jobs.queue_time_us, jobs.not_before_us, jobs.hold_expire_time_us, jobs.state, jobs.attempt,
    jobs.batch_id, jobs.cancel_requested, jobs.last_revision, jobs.fallback_price, jobs.detail, jobs.max_output_tokens, jobs.request
FROM attempts JOIN jobs ON jobs.uid = attempts.uid
WHERE attempts.batch_id = :batch_id AND attempts.outcome = '' AND attempts.uid > :after_uid
ORDER BY attempts.uid LIMIT :count::bigint;

-- name: batch_member_uids(batch_id)
SELECT uid FROM attempts WHERE batch_id = :batch_id AND outcome = '' ORDER BY uid;

-- name: batch_size(batch_id)^
SELECT count(*) AS jobs FROM attempts WHERE batch_id = :batch_id AND outcome = '';

-- name: batch_leaving(batch_id, now_us, count)
SELECT jobs.uid
FROM attempts JOIN jobs ON jobs.uid = attempts.uid
WHERE attempts.batch_id = :batch_id AND attempts.outcome = '' AND jobs.state = 'BATCHED'
    AND (jobs.cancel_requested OR jobs.deadline_us <= :now_us)
ORDER BY jobs.uid LIMIT :count::bigint;

-- name: batch_unstarted(batch_id, count)
SELECT uid FROM jobs
WHERE batch_id = :batch_id AND state IN ('BATCHED', 'RUNNING') AND state = 'BATCHED' ORDER BY uid LIMIT
    :count::bigint;

-- name: submissions_insert(batch_id, attempt, intent_id, provider_identity, create_time_us)!
INSERT INTO submissions (
    batch_id, attempt, intent_id, provider_identity, input_file_id, provider_batch_id, state, create_time_us,
    doubt_time_us
)
VALUES (:batch_id, :attempt, :intent_id, :provider_identity, '', '', 'OPEN', :create_time_us, 0);

-- name: submission_open(batch_id)^
SELECT batch_id, attempt, intent_id, provider_identity, input_file_id, provider_batch_id, state, create_time_us,
    doubt_time_us
FROM submissions
WHERE batch_id = :batch_id AND state = 'OPEN';

-- name: submissions_update(batch_id, attempt, input_file_id, provider_batch_id, state, doubt_time_us)!
UPDATE submissions SET
    input_file_id = :input_file_id, provider_batch_id = :provider_batch_id, state = :state, doubt_time_us =
    :doubt_time_us
WHERE batch_id = :batch_id AND attempt = :attempt AND state = 'OPEN';

-- name: submissions_count(since_us)^
SELECT count(*) AS submissions, coalesce(min(create_time_us), 0) AS first_us FROM submissions
WHERE create_time_us > :since_us AND (input_file_id <> '' OR state = 'OPEN');

-- name: attempts_move(batch_id, uids)!
UPDATE attempts SET batch_id = :batch_id WHERE outcome = '' AND uid IN (SELECT jsonb_array_elements_text(:uids::jsonb));

-- name: attempts_uncounted(uids)
SELECT uid, count(*) AS attempts FROM attempts
WHERE uid IN (SELECT jsonb_array_elements_text(:uids::jsonb)) AND outcome <> '' AND NOT counted GROUP BY uid;

-- name: prompt_tokens_of(uids)^
SELECT coalesce(sum(prompt_tokens), 0) AS tokens FROM jobs WHERE uid IN (SELECT jsonb_array_elements_text(:uids::jsonb));

-- name: tokens_enqueued()
SELECT model, sum(tokens) AS tokens FROM batches
WHERE state <> 'CLOSED' AND state <> 'INGESTING' GROUP BY model;

-- name: tokens_wanted()
SELECT model, sum(prompt_tokens) AS tokens FROM jobs
WHERE state IN ('ADMITTING', 'QUEUED') AND state = 'QUEUED' GROUP BY model;

-- name: allowances_read()
SELECT model, learnt_tokens, guessed, learn_time_us, refusals, not_before_us FROM allowances;

-- name: allowances_write(model, learnt_tokens, guessed, learn_time_us, refusals, not_before_us)!
INSERT INTO allowances (model, learnt_tokens, guessed, learn_time_us, refusals, not_before_us)
VALUES (:model, :learnt_tokens, :guessed, :learn_time_us, :refusals, :not_before_us)
ON CONFLICT (model) DO UPDATE SET
    learnt_tokens = excluded.learnt_tokens, guessed = excluded.guessed, learn_time_us = excluded.learn_time_us,
    refusals = excluded.refusals, not_before_us = excluded.not_before_us;

-- name: reconciliations_read(side)^
SELECT begin_time_us, complete_time_us FROM reconciliations WHERE side = :side;

-- name: reconciliations_write(side, begin_time_us, complete_time_us)!
INSERT INTO reconciliations (side, begin_time_us, complete_time_us)
VALUES (:side, :begin_time_us, :complete_time_us)
ON CONFLICT (side) DO UPDATE SET
    begin_time_us = excluded.begin_time_us, complete_time_us = excluded.complete_time_us;

-- name: submissions_by_intent(intent_ids)
SELECT batch_id, attempt, intent_id, provider_identity, input_file_id, provider_batch_id, state, create_time_us,
    doubt_time_us
FROM submissions
WHERE intent_id IN (SELECT jsonb_array_elements_text(:intent_ids::jsonb));

-- name: submissions_oldest_doubt(since_us)^
SELECT min(create_time_us) AS create_time_us FROM (
    SELECT min(create_time_us) AS create_time_us FROM submissions WHERE state = 'OPEN'
    UNION ALL
    SELECT min(create_time_us) FROM submissions
    WHERE create_time_us > :since_us AND doubt_time_us > 0 AND state <> 'OPEN'
) AS doubts;

-- name: submissions_last(batch_id)^
SELECT coalesce(max(attempt), 0) AS attempt FROM submissions WHERE batch_id = :batch_id;

-- name: submissions_recover(intent_id, input_file_id, provider_batch_id, doubt_time_us)!
UPDATE submissions SET
    input_file_id = :input_file_id, provider_batch_id = :provider_batch_id, state = 'ADOPTED',
    doubt_time_us = :doubt_time_us
WHERE intent_id = :intent_id AND state <> 'ADOPTED';

-- name: batches_read(batch_ids)
SELECT batch_id, model, state, jobs, create_time_us, update_time_us, not_before_us, submission, provider_batch_id,
    provider_state, total, completed, failed, output_file_id, error_file_id, cancel_sent, problem, last_revision,
    tokens, failures, failing_since_us
FROM batches
WHERE batch_id IN (SELECT jsonb_array_elements_text(:batch_ids::jsonb));

-- name: purchases_running(before_us)
SELECT b.batch_id, b.provider_batch_id, s.create_time_us
FROM batches b JOIN submissions s ON s.batch_id = b.batch_id AND s.attempt = b.submission
WHERE b.state <> 'CLOSED' AND b.state = 'RUNNING' AND s.create_time_us < :before_us;

-- name: purchases_obstructing(identity, count)
SELECT b.batch_id, b.provider_batch_id, b.problem, s.provider_identity
FROM batches b JOIN submissions s ON s.batch_id = b.batch_id AND s.attempt = b.submission
WHERE b.state <> 'CLOSED' AND b.state <> 'PLANNED'
    AND (b.problem LIKE 'batch unknown%' OR s.provider_identity <> :identity)
ORDER BY b.batch_id LIMIT :count::bigint;

-- name: jobs_held(after_us, after_uid, count)
SELECT uid, account_id, job_id, payer_account_id, lane, model, price, price_version, line_bytes, deadline_us,
    hold_duration_us, create_time_us, update_time_us, queue_time_us, not_before_us, hold_expire_time_us, state,
    attempt, batch_id, cancel_requested, last_revision, fallback_price
FROM jobs
WHERE state IN ('QUEUED', 'BATCHED', 'RUNNING') AND (hold_expire_time_us, uid) > (:after_us::bigint, :after_uid)
ORDER BY hold_expire_time_us, uid LIMIT :count::bigint;

-- name: jobs_hold_until(rows)!
UPDATE jobs SET hold_expire_time_us = r.hold_expire_time_us
FROM jsonb_to_recordset(:rows::jsonb) AS r (uid text, hold_expire_time_us bigint)
WHERE jobs.uid = r.uid AND jobs.state IN ('QUEUED', 'BATCHED', 'RUNNING');

-- name: due_write(provider_batch_id, create_time_us)!
INSERT INTO due_batches (provider_batch_id, create_time_us) VALUES (:provider_batch_id, :create_time_us)
ON CONFLICT (provider_batch_id) DO UPDATE SET create_time_us = excluded.create_time_us;

-- name: due_read(count)
SELECT provider_batch_id FROM due_batches ORDER BY create_time_us DESC LIMIT :count;

-- name: due_delete(keys, before_us)!
DELETE FROM due_batches WHERE provider_batch_id IN (SELECT jsonb_array_elements_text(:keys::jsonb)) OR create_time_us < :before_us;

-- name: price_head_read()^
SELECT revision FROM price_head WHERE id = 1;

-- name: price_head_share()^
SELECT revision FROM price_head WHERE id = 1 FOR SHARE;

-- name: price_head_lock()^
SELECT revision FROM price_head WHERE id = 1 FOR UPDATE;

-- name: price_head_advance(revision)!
UPDATE price_head SET revision = :revision WHERE id = 1 AND revision < :revision;

-- name: price_list_get(version)^
SELECT version, document, effective_time_us, create_time_us, withdraw_time_us, actor, put_revision, last_revision
FROM price_lists
WHERE version = :version;

-- name: price_lists_alive(now_us, count)
SELECT version, document, effective_time_us, create_time_us, withdraw_time_us, actor, put_revision, last_revision
FROM price_lists
WHERE withdraw_time_us = 0 AND (effective_time_us, put_revision) >= (
    SELECT l.effective_time_us, l.put_revision
    FROM price_lists l JOIN price_rollouts r ON r.version = l.version
    WHERE l.withdraw_time_us = 0 AND l.effective_time_us <= :now_us AND r.percent = 100 AND r.start_time_us <= :now_us
    ORDER BY l.effective_time_us DESC, l.put_revision DESC LIMIT 1
)
ORDER BY effective_time_us, put_revision LIMIT :count::bigint;

-- name: price_lists_page(before_revision, count)
SELECT version, document, effective_time_us, create_time_us, withdraw_time_us, actor, put_revision, last_revision
FROM price_lists
WHERE put_revision < :before_revision ORDER BY put_revision DESC LIMIT :count::bigint;

-- name: price_rollouts_of(versions)
SELECT version, percent, start_time_us FROM price_rollouts
WHERE version IN (SELECT jsonb_array_elements_text(:versions::jsonb)) ORDER BY version, percent;

-- name: price_lists_insert(version, document, effective_time_us, create_time_us, actor, put_revision)!
INSERT INTO price_lists (
    version, document, effective_time_us, create_time_us, withdraw_time_us, actor, put_revision, last_revision
)
VALUES (:version, :document, :effective_time_us, :create_time_us, 0, :actor, :put_revision, :put_revision);

-- name: price_rollouts_insert(version, percent, start_time_us)!
INSERT INTO price_rollouts (version, percent, start_time_us) VALUES (:version, :percent, :start_time_us);

-- name: price_lists_change(version, withdraw_time_us, last_revision)!
UPDATE price_lists SET withdraw_time_us = :withdraw_time_us, last_revision = :last_revision WHERE version = :version;
