"""What the edge of the batcher adds by itself."""

from punchcard.batcher.v1 import batcher_pb2
from tests.batchers import picture, request_of, sandbox_in


async def test_a_list_of_long_prompts_comes_in_messages_that_clients_take(tmp_path):
    """A hundred and fifty jobs of 32 KiB are more than the 4 MiB that a client takes unless it was told otherwise."""
    seen, page_token = [], ""
    async with sandbox_in(tmp_path) as sandbox, sandbox.batcher(cycle_seconds=1e6) as client:
        image_id = (await client.upload(picture())).image.image_id
        for start in (0, 75):
            jobs = [request_of(f"cat-{start + number}", image_id, prompt="x" * 32_768) for number in range(75)]
            await client.call("SubmitJobs", batcher_pb2.SubmitJobsRequest(items=jobs))
        while not seen or page_token:
            request = batcher_pb2.ListJobsRequest(account_id="alice", page_size=1_000, page_token=page_token)
            page = await client.call("ListJobs", request)
            seen += [job.job_id for job in page.jobs]
            page_token = page.next_page_token

    assert len(seen) == 150
    assert set(seen) == {f"cat-{number}" for number in range(150)}
