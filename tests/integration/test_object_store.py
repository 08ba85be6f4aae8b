"""The object store against a real S3 server."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.batcher.object_store import ObjectMissing, ObjectStore, batch_key, image_key
from services.chassis.errors import StoreUnavailable
from tests.object_stores import ServedStore, serve_s3

KEY = image_key("team:alice", "ab" * 32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedStore]:
    """One S3 server for all tests here."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as store:
        yield store


def client(served: ServedStore, **options: object) -> ObjectStore:
    """A store on the bucket of the tests."""
    settings = {"access_key": served.access_key, "secret_key": served.secret_key, "bucket": "punchcard", **options}
    return ObjectStore(endpoint=served.endpoint, timeout_seconds=10, concurrency=4, **settings)  # type: ignore[arg-type]


def names_in(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {path.name for path in folder.iterdir()}


def fetched(address: str) -> tuple[int, bytes]:
    """What anybody gets at an address: a status, and the bytes if it is 200."""
    try:
        with urllib.request.urlopen(address, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, b""


@pytest_asyncio.fixture
async def store(served: ServedStore) -> AsyncIterator[ObjectStore]:
    """An object store with its bucket."""
    opened = client(served)
    await opened.ensure_bucket()
    yield opened
    await opened.close()


def test_keys_tell_whose_and_what() -> None:
    """Keys are stable, and an account's images lie under its own prefix."""
    assert image_key("alice", "f00") == "images/2b/alice/f00"
    assert batch_key("b-1", 2, "output") == "batches/b-1/2/output.jsonl"


async def test_what_was_put_is_got(store: ObjectStore) -> None:
    """Bytes come back as they were, and a second put replaces the first."""
    await store.put(KEY, b"first", "image/png")
    await store.put(KEY, b"\0second\xff", "image/png")
    assert await store.get(KEY) == b"\0second\xff"
    assert await store.exists(KEY)


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    """An object without bytes is there all the same."""
    await store.put("images/empty", b"")
    assert await store.get("images/empty") == b""


async def test_making_the_bucket_twice_is_fine(store: ObjectStore) -> None:
    """Two replicas that start together both find the bucket."""
    await store.ensure_bucket()
    assert await store.reachable()


async def test_an_absent_object_is_missing(store: ObjectStore, tmp_path: Path) -> None:
    """What was never put is missing by its key, and no file is left of the attempt."""
    assert not await store.exists("images/none")
    with pytest.raises(ObjectMissing, match="images/none"):
        await store.get("images/none")
    with pytest.raises(ObjectMissing):
        await store.stream_to_file("images/none", tmp_path / "copy")
    assert names_in(tmp_path) == set()


async def test_a_deleted_object_is_gone(store: ObjectStore) -> None:
    """Deleting removes an object, and deleting it again is fine."""
    await store.put("images/gone", b"x")
    await store.delete("images/gone")
    await store.delete("images/gone")
    assert not await store.exists("images/gone")


async def test_a_large_file_goes_in_parts_and_comes_back_whole(store: ObjectStore, tmp_path: Path) -> None:
    """A file of several parts is streamed there and back without a byte changed."""
    sent, received = tmp_path / "input.jsonl", tmp_path / "copy.jsonl"
    sent.write_bytes(bytes(range(256)) * (36 * 4096) + b"end")
    key = batch_key("b-1", 1, "input")
    await store.put_file(key, sent)
    assert await store.stream_to_file(key, received) == 256 * 36 * 4096 + 3
    assert received.read_bytes() == sent.read_bytes()
    assert names_in(tmp_path) == {"input.jsonl", "copy.jsonl"}


async def test_a_presigned_address_is_open_and_nothing_else_is(store: ObjectStore) -> None:
    """Who has the address reads the object without a key; the same address unsigned, or changed, is refused."""
    await store.put(KEY, b"pixels", "image/png")
    address = store.presigned_get(KEY, 60)
    assert await asyncio.to_thread(fetched, address) == (200, b"pixels")
    for forged in (address.split("?")[0], address.replace("Expires=60", "Expires=9999")):
        status, _ = await asyncio.to_thread(fetched, forged)
        assert status in {400, 403}


async def test_a_presigned_address_names_the_public_endpoint(served: ServedStore) -> None:
    """Outsiders are sent where they can reach the store, for at most the seven days that S3 allows."""
    store = client(served, public_endpoint="https://s3.example.com")
    address = store.presigned_get(KEY, 30 * 24 * 3600)
    await store.close()
    assert address.startswith("https://s3.example.com/punchcard/images/")
    assert "X-Amz-Expires=604800" in address


async def test_a_wrong_key_is_no_missing_object(served: ServedStore) -> None:
    """A store that refuses us is unavailable: its objects are not taken for missing."""
    store = client(served, secret_key="wrong-secret")
    assert not await store.reachable()
    for call in (store.get(KEY), store.put(KEY, b"x"), store.exists(KEY), store.delete(KEY), store.ensure_bucket()):
        with pytest.raises(StoreUnavailable):
            await call
    await store.close()


async def test_a_missing_bucket_is_no_missing_object(served: ServedStore) -> None:
    """A store without our bucket is unavailable: nothing in it is taken for missing."""
    store = client(served, bucket="another")
    assert not await store.reachable()
    for call in (store.get(KEY), store.exists(KEY), store.put(KEY, b"x")):
        with pytest.raises(StoreUnavailable):
            await call
    await store.close()


async def test_a_stopped_server_is_unavailable(tmp_path: Path) -> None:
    """When the server is gone every call says so, and none says that the object is missing."""
    with serve_s3(tmp_path) as stopped:
        store = client(stopped)
        await store.ensure_bucket()
        await store.put(KEY, b"x")
    assert not await store.reachable()
    for call in (store.get(KEY), store.put(KEY, b"x"), store.exists(KEY), store.delete(KEY)):
        with pytest.raises(StoreUnavailable):
            await call
    await store.close()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "http://", "ftp://host", "http://host/path"])
def test_an_endpoint_is_an_address(endpoint: str) -> None:
    """A mistaken endpoint is refused at the start and not at the first call."""
    with pytest.raises(ValueError, match="S3 endpoint"):
        ObjectStore(endpoint, "a", "b", "punchcard")
