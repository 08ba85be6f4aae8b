"""Photographs through all of Punchcard: uploaded, queued, sent as a batch, answered, and paid for.

    python -m sandbox.demo                     the six samples
    python -m sandbox.demo holiday/*.jpg       your own

A stack that is up is used; otherwise one is started, and stopped again. With OPENAI_API_KEY set OpenAI answers;
otherwise its twin on this machine does, which measures what it sees. Exits with 0 only if every job ended well and
the money adds up.
"""

from __future__ import annotations

import argparse
import asyncio
import glob
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from grpc import aio
from rich.console import Console

from punchcard.batcher.v1 import batcher_pb2
from punchcard.batcher.v1.batcher_pb2_grpc import BatcherServiceStub
from punchcard.wallet.v1 import wallet_pb2
from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceStub
from punchcard_client import connect, reason_of, upload_image, watch_job
from sandbox import account_check, keys
from sandbox.display import Display, Step, say, showing
from sandbox.photograph import Photograph
from sandbox.plan import Plan, Ports, data_folder, default_provider
from sandbox.process import StartFailed
from sandbox.report import tell_answers, tell_money
from sandbox.stack import PACE, Stack, exit_on_sigterm

if TYPE_CHECKING:
    from punchcard.batcher.v1.batcher_pb2_grpc import BatcherServiceAsyncStub
    from punchcard.wallet.v1.wallet_pb2_grpc import WalletServiceAsyncStub

SAMPLES: Final = Path(__file__).parent / "samples"
SUFFIXES: Final = (".gif", ".jpeg", ".jpg", ".png", ".webp")
PROMPT: Final = "What does this photograph show? Answer in one sentence."
# What the batcher charges for an answer from a batch, unless it is told otherwise.
BATCH_PRICE: Final = 1
AT_ONCE: Final = 8
PAGE_SIZE: Final = 1000
TOKEN_SECONDS: Final = 26 * 3600
ANSWERERS: Final = {
    "twin": "OpenAI's twin on this machine, which measures what it sees",
    "openai": "OpenAI",
}
TIMEOUT_SECONDS: Final = {"twin": 110.0, "openai": 25 * 3600.0}


class DemoFailed(Exception):
    """Something did not end well; the message is for people."""


@dataclass
class Session:
    """Who runs the demo, and through what."""

    account_id: str
    wallet: WalletServiceAsyncStub
    batcher: BatcherServiceAsyncStub
    operator: WalletServiceAsyncStub

    async def tokens(self) -> wallet_pb2.Balance:
        """The balance as it is now."""
        answer = await self.wallet.GetAccount(wallet_pb2.GetAccountRequest(account_id=self.account_id))
        return answer.account.tokens

    async def history(self) -> list[wallet_pb2.Transaction]:
        """All transactions of the account."""
        found: list[wallet_pb2.Transaction] = []
        request = wallet_pb2.ListTransactionsRequest(account_id=self.account_id, page_size=PAGE_SIZE)
        while True:
            page = await self.wallet.ListTransactions(request)
            found += page.transactions
            request.page_token = page.next_page_token
            if not request.page_token:
                return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    exit_on_sigterm()
    try:
        photographs = [Photograph(at, path) for at, path in enumerate(_find_images(options.images))]
        with _stack(console) as stack:
            timeout_seconds = options.timeout_seconds or TIMEOUT_SECONDS[stack.plan.provider]
            asyncio.run(_run(console, stack, photographs, timeout_seconds))
    except KeyboardInterrupt:
        say(console, "\nstopped", style="yellow")
        return 130
    except (DemoFailed, StartFailed) as failed:
        say(console, f"\nThe demo failed: {failed}", style="bold red")
        return 1
    return 0


def _find_images(patterns: Sequence[str]) -> list[Path]:
    """The files that are named, by name or by pattern; the samples if none are."""
    if not patterns:
        return sorted(path for path in SAMPLES.iterdir() if path.suffix in SUFFIXES)
    found: list[Path] = []
    for pattern in patterns:
        names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise DemoFailed(f"there is no file {pattern}")
        found += files
    return found


@contextmanager
def _stack(console: Console) -> Iterator[Stack]:
    """The stack that is up, or one that lasts as long as the demo. Only what is started here is stopped here."""
    say(console, "Punchcard: a wallet, a batcher, and photographs to ask about", style="bold")
    say(console)
    provider = default_provider()
    stack = Stack(data_folder(), Plan(ports=Ports.free(), provider=provider, pace=PACE))
    began = time.monotonic()
    started = stack.up()
    try:
        if stack.plan.provider != provider:
            raise DemoFailed(
                f"the stack that is up asks {ANSWERERS[stack.plan.provider]}, and you want {ANSWERERS[provider]}: "
                "stop it first, with `make down`"
            )
        if started:
            say(console, f"  started   {', '.join(started)} in {time.monotonic() - began:.1f} seconds")
            say(console, f"  logs      {_short(stack.data / 'logs')}")
        else:
            say(console, "  using     the stack that is up")
        say(console, f"  asking    {ANSWERERS[provider]}")
        yield stack
    finally:
        for part in reversed(started):
            stack.stop(part)


async def _run(console: Console, stack: Stack, photographs: list[Photograph], timeout_seconds: float) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_seconds), _session(stack) as session:
            opened = await session.wallet.OpenAccount(wallet_pb2.OpenAccountRequest(account_id=session.account_id))
            before = await _top_up(console, session, opened.account.tokens, len(photographs) * BATCH_PRICE)
            say(console)
            with showing(console, [each.path.name for each in photographs]) as display:
                slots = asyncio.Semaphore(AT_ONCE)
                await asyncio.gather(*(_follow(session, each, display, slots) for each in photographs))
            tell_answers(console, photographs)
            totals = account_check.total(await session.history())
            after = await session.tokens()
    except TimeoutError as error:
        raise DemoFailed(f"it took more than {timeout_seconds:g} seconds; the logs are in {stack.data}/logs") from error
    except aio.AioRpcError as error:
        raise DemoFailed(_explain(error)) from error
    tell_money(console, totals, before, after, photographs)
    _check(photographs, account_check.problems(totals, after, sum(each.settlement.charged for each in photographs)))
    say(console)
    took_seconds = time.monotonic() - began
    whole = f"All {len(photographs)}" if len(photographs) > 1 else "The photograph is"
    done = f"{whole} answered and settled in {took_seconds:.0f} seconds, and the tokens add up."
    say(console, done, style="bold green")


@asynccontextmanager
async def _session(stack: Stack) -> AsyncIterator[Session]:
    """A fresh account with a user's token, and an operator for grants."""
    account_id = f"demo-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    user = stack.keys.sign(account_id, [keys.WALLET, keys.BATCHER], keys.USER_SCOPES, TOKEN_SECONDS)
    operator = stack.keys.sign("operator", [keys.WALLET], keys.OPERATOR_SCOPES, TOKEN_SECONDS)
    async with (
        connect(stack.wallet_address, user) as wallet,
        connect(stack.batcher_address, user) as batcher,
        connect(stack.wallet_address, operator) as grants,
    ):
        yield Session(account_id, WalletServiceStub(wallet), BatcherServiceStub(batcher), WalletServiceStub(grants))


async def _top_up(console: Console, session: Session, tokens: wallet_pb2.Balance, needed: int) -> int:
    """Sees to it that the account can pay, and says what it has; returns the balance."""
    say(console, f"  account   {session.account_id}")
    say(console, f"  balance   {tokens.balance} tokens, the welcome bonus")
    missing = needed - tokens.available
    if missing <= 0:
        return tokens.balance
    granted = await session.operator.Grant(
        wallet_pb2.GrantRequest(
            account_id=session.account_id, grant_id=f"top-up-{session.account_id}", amount=missing, reference="demo"
        )
    )
    balance = granted.account.tokens.balance
    say(console, f"  granted   {missing} tokens by the operator, since {needed} are needed: now {balance}")
    return balance


async def _follow(session: Session, photograph: Photograph, display: Display, slots: asyncio.Semaphore) -> None:
    """Takes one photograph from its file to its settlement; what goes wrong is noted, and the others go on."""
    try:
        async with slots:
            display.step(photograph.at, Step("uploading", "", 0.0))
            image = await upload_image(session.batcher, session.account_id, photograph.path)
            size = f"{image.width_pixels} x {image.height_pixels}, {image.size_bytes // 1024} KiB"
            display.step(photograph.at, Step("uploaded", size, 0.1))
            photograph.read(await _submit(session, photograph, image.image_id))
            display.step(photograph.at, photograph.step())
        async for message in watch_job(session.batcher, session.account_id, photograph.job_id):
            photograph.hear(message)
            if message.HasField("bookmark"):
                # Nothing has changed for a while, but what it waits for may have.
                photograph.wait_for(await _job(session, photograph))
            display.step(photograph.at, photograph.step())
    except aio.AioRpcError as error:
        photograph.failure = _explain(error)
        display.step(photograph.at, Step("refused", photograph.failure, 0.0))
    except OSError as error:
        photograph.failure = f"it cannot be read: {error.strerror}"
        display.step(photograph.at, Step("unreadable", photograph.failure, 0.0))


async def _submit(session: Session, photograph: Photograph, image_id: str) -> batcher_pb2.Job:
    answer = await session.batcher.SubmitJob(
        batcher_pb2.SubmitJobRequest(
            account_id=session.account_id,
            job_id=photograph.job_id,
            images=[batcher_pb2.ImageSource(image_id=image_id)],
            prompt=PROMPT,
            lane=batcher_pb2.LANE_BATCH,
        )
    )
    return answer.job


async def _job(session: Session, photograph: Photograph) -> batcher_pb2.Job:
    request = batcher_pb2.GetJobRequest(account_id=session.account_id, job_id=photograph.job_id)
    return (await session.batcher.GetJob(request)).job


def _check(photographs: Sequence[Photograph], money_problems: Sequence[str]) -> None:
    """Raises DemoFailed with everything that did not end well."""
    found = [f"{each.path.name}: {each.problem}" for each in photographs if each.problem]
    found += [f"the tokens do not add up: {problem}" for problem in money_problems]
    if found:
        raise DemoFailed("\n  ".join(["", *found]) if len(found) > 1 else found[0])


def _explain(error: aio.AioRpcError) -> str:
    reason = reason_of(error)
    return f"{error.details()} ({reason.name if reason else error.code().name})"


def _short(path: Path) -> str:
    """A path as seen from here, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", help="JPEG, PNG, WEBP or GIF files (the six samples)")
    parser.add_argument("--timeout-seconds", type=float, help="give up after so long (110; 25 hours with OpenAI)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
