"""How the wallet starts, when it refuses to, and what it does not leave behind."""

import asyncio
import tempfile
import threading
from pathlib import Path

import pytest

from services.chassis.database import migrate
from services.chassis.server import RefusesToStart
from services.wallet import __main__ as wallet
from tests.wallets import wallet_at


async def test_a_ledger_does_not_start_under_another_scale(tmp_path):
    """Read with another scale every balance would mean something else, so the second start is refused."""
    url = f"sqlite:{tmp_path}/wallet.db"
    async with wallet_at(url, tmp_path):
        pass

    with pytest.raises(RefusesToStart, match="scale 0"):
        async with wallet_at(url, tmp_path, token_scale=2):
            pass


async def test_an_audit_that_is_given_up_while_its_database_is_made_leaves_nothing_behind(tmp_path, monkeypatch):
    """The thread that makes it can't be cancelled: the folder is removed when it is done, and not under its feet."""
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def migrate_later(url: str, folder: Path) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        migrate(url, folder)

    async def audit() -> None:
        async with wallet.scratch():
            raise AssertionError("it was given up before")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(wallet, "migrate", migrate_later)
    task = asyncio.create_task(audit())
    await begun.wait()

    task.cancel()
    loop.call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert list(tmp_path.iterdir()) == []
