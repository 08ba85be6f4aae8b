"""A check of the ledger over gRPC and on the command line."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from punchcard.wallet.v1 import wallet_pb2
from tests.conformance.test_wallet_store import execute
from tests.integration.test_wallet_api import reserve
from tests.tokens import bearer
from tests.wallets import EVERY_SCOPE, WalletClient, refused, wallet_at

ADMIN = bearer("root", f"{EVERY_SCOPE} wallet.admin", audience="punchcard.wallet")


async def verify(wallet: WalletClient, revision: int = 0) -> list[wallet_pb2.VerifyLedgerResponse]:
    """All messages of one check."""
    request = wallet_pb2.VerifyLedgerRequest(up_to_revision=revision)
    return [message async for message in wallet.stub.VerifyLedger(request, metadata=ADMIN)]


async def test_a_check_tells_its_progress_and_then_one_result(wallet: WalletClient) -> None:
    """The result says up to where all was checked, with the hash to keep elsewhere."""
    await wallet.call("Reserve", reserve())

    *progress, last = await verify(wallet)

    assert [message.progress.step for message in progress] == [
        "database", "journal", "accounts", "reservations", "grants", "sums",
    ]  # fmt: skip
    result = last.result
    assert (result.intact, result.revision, result.accounts, result.reservations) == (True, 3, 1, 1)
    assert len(result.hash) == 64
    assert not result.HasField("fault")


async def test_the_first_thing_that_is_broken_is_named(database_url: str, tmp_path: Path) -> None:
    """What it should be, what it is, where in the journal, and what to do."""
    async with wallet_at(database_url, tmp_path) as (wallet, _):
        await wallet.call("Reserve", reserve())
        await execute(database_url, "UPDATE accounts SET balance = 1000000 WHERE account_id = 'alice'")

        fault = (await verify(wallet))[-1].result.fault

    assert (fault.kind, fault.subject, fault.revision) == (wallet_pb2.FAULT_KIND_BALANCE, "alice", 3)
    assert (fault.expected, fault.found) == ("balance=10", "balance=1000000")
    assert "restore the newest backup" in fault.message


async def test_a_check_runs_while_the_ledger_goes_on(wallet: WalletClient) -> None:
    """What changes meanwhile is not taken for a fault."""
    await asyncio.gather(*(wallet.call("Reserve", reserve(f"a{number}", 1)) for number in range(10)))
    going_on = asyncio.Event()

    async def go_on() -> None:
        number = 0
        while not going_on.is_set():
            settle = wallet_pb2.CommitRequest(reservation_id=f"a{number % 10}")
            await wallet.call("Commit", settle)
            grant = wallet_pb2.GrantRequest(account_id="alice", grant_id=f"g{number}", amount=1)
            await wallet.call("Grant", grant)
            number += 1

    load = asyncio.create_task(go_on())
    results = [(await verify(wallet))[-1].result for _ in range(3)]
    going_on.set()
    await load

    assert [result.intact for result in results] == [True] * 3
    assert results[0].revision < results[2].revision


async def test_only_an_administrator_may_check_and_only_what_there_is(wallet: WalletClient) -> None:
    """A revision to come is bad input."""
    request = wallet_pb2.VerifyLedgerRequest(up_to_revision=1)

    assert (await refused(wallet.stub.VerifyLedger(request, metadata=wallet.metadata).read()))[1] == "SCOPE_MISSING"
    code, reason, metadata = await refused(wallet.stub.VerifyLedger(request, metadata=ADMIN).read())
    assert (code, reason, metadata) == ("INVALID_ARGUMENT", "INVALID_FIELD", {"field": "up_to_revision"})


async def command(url: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command of the wallet."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.wallet", *arguments,
        env={**os.environ, "WALLET_DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_command_says_intact_or_fails_with_what_to_do(database_url: str, tmp_path: Path) -> None:
    """For a cron job: exit code 0 and one line, or 1 and the fault on stderr. It needs no server."""
    async with wallet_at(database_url, tmp_path) as (wallet, _):
        await wallet.call("Reserve", reserve())

    code, out, err = await command(database_url, "verify")
    assert (code, out.split(",")[0]) == (0, "intact up to revision 3")
    assert "journal: 3 of 3 rows" in err

    await execute(database_url, "UPDATE reservations SET reserved = 6")
    code, out, err = await command(database_url, "verify")
    assert (code, out) == (1, "")
    assert "hold 'batcher job-1' is not what the journal says" in err
    assert "(expected reserved=5, found reserved=6)" in err


@pytest.mark.parametrize("statement", ["", "DELETE FROM journal_head"])
async def test_a_ledger_without_a_head_was_never_started_or_has_lost_it(
    database_url: str, tmp_path: Path, statement: str
) -> None:
    """An empty ledger is intact; one with rows and no head is not."""
    if statement:
        async with wallet_at(database_url, tmp_path) as (wallet, _):
            await wallet.call("Reserve", reserve())
        await execute(database_url, statement)
    else:
        await command(database_url, "migrate")

    code, out, err = await command(database_url, "verify")

    assert code == (1 if statement else 0)
    assert "the journal has no head" in err if statement else "intact up to revision 0" in out
