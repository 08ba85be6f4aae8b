"""A batch's input file is built from a real object store, a few images at a time."""

from __future__ import annotations

import base64
import json

import pytest

from services.batcher import input_file
from services.batcher.input_file import InputFiles, Unbuildable
from services.batcher.object_store import ObjectStore
from services.batcher.object_urls import ImageUrls
from services.batcher.planner import Planned
from tests.batcher_jobs import image, new_uid, opened_stores
from tests.object_stores import serve_s3


class Counted(ObjectStore):
    """An object store that notes what is read from it, and how many reads run at once."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read = []
        self.running = self.most = 0

    async def get(self, key):
        self.read.append(key)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await super().get(key)
        finally:
            self.running -= 1


@pytest.fixture
async def stores(tmp_path):
    async with opened_stores(f"sqlite:{tmp_path}/batcher.db") as opened:
        yield opened


@pytest.fixture
async def objects(tmp_path):
    (tmp_path / "s3").mkdir()
    with serve_s3(tmp_path / "s3") as served:
        objects = Counted(served.endpoint, served.access_key, served.secret_key, "images")
        await objects.ensure_bucket()
        yield objects
        await objects.close()


def files_of(stores, objects, folder):
    urls = ImageUrls(stores.jobs, objects, inline=True, url_seconds=60)
    return InputFiles(stores.jobs, stores.batches, urls, folder)


async def stored(stores, objects, name):
    """An image of alice's, whose bytes are its name; gives its id."""
    image_id = name * 64
    row = image(image_id=image_id)
    await stores.jobs.add_image(row)
    await objects.put(row.object_key, name.encode())
    return image_id


async def batch_about(stores, *image_ids):
    """A batch of jobs about images, in this order."""
    jobs = [(await stores.queued(f"job-{number}", image_ids=(each,)))[0] for number, each in enumerate(image_ids)]
    batch = await stores.batches.plan(Planned("gpt-x", tuple(job.uid for job in jobs)), new_uid(), stores.lease)
    return batch, jobs


def shown(path):
    """The images that the lines of a file hold."""
    urls = [
        json.loads(line)["body"]["messages"][0]["content"][1]["image_url"]["url"]
        for line in path.read_bytes().splitlines()
    ]
    return [base64.b64decode(url.partition(",")[2]).decode() for url in urls]


async def test_an_image_that_neighbours_ask_about_is_fetched_once(stores, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(input_file, "LINES_AT_ONCE", 2)
    cat, dog = await stored(stores, objects, "a"), await stored(stores, objects, "d")
    batch, _ = await batch_about(stores, cat, cat, cat, dog, dog, dog, dog, cat)
    path = await files_of(stores, objects, tmp_path).build(batch.batch_id, 1)

    assert shown(path) == ["a", "a", "a", "d", "d", "d", "d", "a"]
    assert [key[-1] for key in objects.read] == ["a", "d", "a"]


@pytest.mark.parametrize(("lines", "size_bytes", "most"), [(3, 10**9, 3), (32, 4_000, 2), (32, 1, 1)])
async def test_no_more_is_fetched_at_once_than_fits(stores, objects, tmp_path, monkeypatch, lines, size_bytes, most):
    """By lines and by bytes; a line that is larger than all that may be there goes alone."""
    monkeypatch.setattr(input_file, "LINES_AT_ONCE", lines)
    monkeypatch.setattr(input_file, "BYTES_AT_ONCE", size_bytes)
    names = "abcdef012"
    batch, jobs = await batch_about(stores, *[await stored(stores, objects, name) for name in names])
    path = await files_of(stores, objects, tmp_path).build(batch.batch_id, 1)

    assert 1_333 < jobs[0].line_bytes < 2_000
    assert shown(path) == list(names)
    assert objects.most == most


async def test_whose_image_is_gone_is_named_and_no_file_is_left(stores, objects, tmp_path):
    cat, dog = await stored(stores, objects, "a"), await stored(stores, objects, "d")
    batch, (_, gone, _) = await batch_about(stores, cat, dog, cat)
    await objects.delete(image(image_id=dog).object_key)
    (tmp_path / "work").mkdir()

    with pytest.raises(Unbuildable) as unbuildable:
        await files_of(stores, objects, tmp_path / "work").build(batch.batch_id, 1)
    assert [job.uid for job in unbuildable.value.jobs] == [gone.uid]
    assert list((tmp_path / "work").iterdir()) == []
