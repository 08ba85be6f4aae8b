"""What a Python backend uses beside the stubs: a channel that retries, a watch that survives, uploads, holds.

async with connect("localhost:50052", token) as channel:
    batcher = BatcherServiceStub(channel)
    image = await upload_image(batcher, "alice", "cat.webp")
    await batcher.SubmitJob(SubmitJobRequest(account_id="alice", job_id="cat-1", ...))
    async for message in watch_job(batcher, "alice", "cat-1"):
        ...
"""

from punchcard_client.backoff import BackoffPolicy
from punchcard_client.channel import CHANNEL_OPTIONS, SERVICE_CONFIG, connect
from punchcard_client.errors import Reason, reason_of, retry_seconds_of
from punchcard_client.hold import Hold, HoldLost, NotHeld
from punchcard_client.reserve import reserved
from punchcard_client.retry import OutcomeUnknown, ask
from punchcard_client.upload import upload_image
from punchcard_client.watch import FINAL_STATES, SETTLED_STATES, is_settled, watch_balance, watch_job

__all__ = [
    "CHANNEL_OPTIONS",
    "FINAL_STATES",
    "SERVICE_CONFIG",
    "SETTLED_STATES",
    "BackoffPolicy",
    "Hold",
    "HoldLost",
    "NotHeld",
    "OutcomeUnknown",
    "Reason",
    "ask",
    "connect",
    "is_settled",
    "reason_of",
    "reserved",
    "retry_seconds_of",
    "upload_image",
    "watch_balance",
    "watch_job",
]
