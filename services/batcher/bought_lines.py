"""Which jobs a batch at the provider was bought for, as its own files tell: for a purchase that we have forgotten."""

import asyncio
import hashlib
import json
import re
from itertools import islice
from pathlib import Path

from services.batcher.batch_file import split_custom_id
from services.batcher.openai_api import OpenAIApi, ProviderBatch, ProviderMissing, ProviderRefused

LINES_MAX = 50_000
"""The provider takes no more in a batch."""

_UID = re.compile(r"[0-9a-f-]{36}")


async def bought_lines(provider: OpenAIApi, bought: ProviderBatch, folder: Path) -> list[tuple[str, int]]:
    """The (uid, attempt) of each line: of the input file, or of the result files where that is gone. Raises
    ProviderError when a file that is there can't be had.
    """
    lines = await _lines_of(provider, bought.input_file_id, folder)
    if lines is not None:
        return lines
    results = [bought.output_file_id, bought.error_file_id]
    found = [await _lines_of(provider, file_id, folder) for file_id in results if file_id]
    return [line for part in found for line in part or ()]


async def _lines_of(provider: OpenAIApi, file_id: str, folder: Path) -> list[tuple[str, int]] | None:
    """None for a file that is gone, or is not for us to read."""
    path = folder / f"bought-{hashlib.sha256(file_id.encode()).hexdigest()[:32]}.jsonl"
    try:
        await provider.download(file_id, path)
        return await asyncio.to_thread(_read, path)
    except (ProviderMissing, ProviderRefused):
        return None
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


def _read(path: Path) -> list[tuple[str, int]]:
    with path.open("rb") as file:
        return [named for line in islice(file, LINES_MAX) if (named := _named(line))]


def _named(line: bytes) -> tuple[str, int] | None:
    try:
        custom_id = json.loads(line)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    named = split_custom_id(custom_id) if isinstance(custom_id, str) else None
    return named if named and _UID.fullmatch(named[0]) else None
