"""How an image reaches the provider: as an address to fetch it from, or within the request itself.

By address the object store must be reachable from outside, for as long as a batch may wait; inline costs a third more
bytes and works from anywhere.
"""

from services.batcher.batch_file import Inline, data_url
from services.batcher.object_store import ObjectMissing, ObjectStore
from services.batcher.store import Store
from services.batcher.store_reads import Image


class ImageUrls:
    """Makes the addresses. url_seconds: how long a fetched address stays good."""

    def __init__(self, store: Store, objects: ObjectStore, inline: bool, url_seconds: int) -> None:
        self._store = store
        self._objects = objects
        self._inline = inline
        self._url_seconds = url_seconds

    async def url(self, account_id: str, image_id: str) -> str:
        """The address of one image. Raises ObjectMissing."""
        key = (account_id, image_id)
        source = await self.source_of((await self._store.images([key])).get(key))
        return data_url(source) if isinstance(source, Inline) else source

    async def source_of(self, image: Image | None) -> str | Inline:
        """The address of an image whose row was read, or what such an address would hold. Raises ObjectMissing."""
        if image is None:
            raise ObjectMissing("there is no row of the image")
        if not self._inline:
            return self._objects.presigned_get(image.object_key, self._url_seconds)
        return Inline(image.media_type, await self._objects.get(image.object_key))
