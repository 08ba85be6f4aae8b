"""The images of a request: downloaded from their URL or decoded from it, described in a thread, kept by digest."""

import asyncio
import base64
import binascii
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from sandbox.openai_twin.answer import RequestRefused
from sandbox.openai_twin.vision import Description, ImageUnreadable, describe

IMAGE_BYTES_MAX: Final = 50_000_000
REMEMBERED_MAX: Final = 20_000


class HttpImages:
    """Looks at images. Close it when done: it owns a thread pool and connections."""

    def __init__(self, fetch_timeout_seconds: float, threads: int) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=fetch_timeout_seconds))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="vision")
        self._remembered: OrderedDict[bytes, Description] = OrderedDict()

    async def close(self) -> None:
        """Lets go of connections and threads."""
        await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look(self, url: str) -> Description:
        """Describes the image behind an http, https or data URL; raises RequestRefused with the API's code."""
        if not url.startswith("data:"):
            return await self._describe(await self._download(url))
        # A repeated data URL is known by its text, which saves decoding it.
        digest = hashlib.sha256(url.encode()).digest()
        if (known := self._remembered.get(digest)) is None:
            known = await self._describe(_decode_data_url(url))
            self._remember(digest, known)
        return known

    async def _describe(self, image_bytes: bytes) -> Description:
        digest = hashlib.sha256(image_bytes).digest()
        if (known := self._remembered.get(digest)) is not None:
            return known
        try:
            seen = await asyncio.get_running_loop().run_in_executor(self._threads, describe, image_bytes)
        except ImageUnreadable as error:
            raise RequestRefused(
                "You uploaded an unsupported image. Please make sure your image is below 50 MB in size and is of one "
                f"of the following formats: ['png', 'jpeg', 'gif', 'webp'] ({error}).",
                code="image_parse_error",
            ) from error
        self._remember(digest, seen)
        return seen

    def _remember(self, digest: bytes, seen: Description) -> None:
        self._remembered[digest] = seen
        while len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)

    async def _download(self, url: str) -> bytes:
        try:
            async with self._session.get(url) as response:
                if response.status != 200:
                    raise _unreachable(f"Failed to download image from {_shown(url)}: HTTP {response.status}.")
                return await _read_bounded(response, url)
        except TimeoutError as error:
            raise _unreachable(f"Timeout while downloading {_shown(url)}.") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise _unreachable(f"Failed to download image from {_shown(url)}.") from error


async def _read_bounded(response: aiohttp.ClientResponse, url: str) -> bytes:
    image = bytearray()
    async for chunk in response.content.iter_chunked(256 * 1024):
        image += chunk
        if len(image) > IMAGE_BYTES_MAX:
            raise _unreachable(f"The image at {_shown(url)} has more than {IMAGE_BYTES_MAX} bytes.")
    return bytes(image)


def _decode_data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise _unreachable("Invalid image data URL: expected data:<media type>;base64,<data>.")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise _unreachable("Invalid base64 image_url.") from error


def _unreachable(message: str) -> RequestRefused:
    return RequestRefused(message, code="invalid_image_url")


def _shown(url: str) -> str:
    """A URL without its query, because that of a presigned one is a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
