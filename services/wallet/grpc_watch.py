"""A watch of one account: a cursor over the journal, told in the proto's words.

snapshot, bookmark, then each row of the account's history as it is written, once and in order, until the client leaves.

    resume token ──► the account's own history, read back from its newest row ──► live: the tailer's ring
                          ▲                                                            │
                          └──────────── fallen behind: the ring has gone on ◄──────────┘

The past is read along the account's own chain and never by scanning the journal, which holds everybody's rows.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from punchcard.wallet.v1 import wallet_pb2
from services.chassis import journal
from services.chassis.auth import Principal
from services.chassis.database import Database
from services.chassis.watch import FallenBehind, Page, Tailer
from services.chassis.watch_stream import WatchStreams
from services.wallet.errors import AccountNotFound
from services.wallet.grpc_messages import account_message, timestamp, transaction_message
from services.wallet.store_reads import Holdings, Reads

Response = wallet_pb2.WatchBalanceResponse


class Watches:
    """All watches of balances. The tailer is one that refuses to read what its ring has forgotten."""

    def __init__(
        self, store: Reads, database: Database, tailer: Tailer, streams: WatchStreams, token_scale: int
    ) -> None:
        self._store = store
        self._database = database
        self._tailer = tailer
        self._streams = streams
        self._scale = token_scale

    async def watch(self, account_id: str, resume_token: str, principal: Principal) -> AsyncGenerator[Response, None]:
        """The messages of one watch. Raises AccountNotFound, RevisionUnknown, RevisionCompacted, TokenExpired,
        ServerDraining.
        """
        found = await self._holdings(account_id)
        revision = self._streams.begin(resume_token, found.head)
        if not resume_token:
            yield self._message(revision, snapshot=account_message(found.account, self._scale, found.lots))
        elif revision < found.head.revision:
            await self._tailer.check_kept(revision)
        async with aclosing(self._pages(found, revision, principal)) as pages:
            async for page in pages:
                for row in page.rows:
                    yield self._message(row.revision, change=transaction_message(row))
                if not page.rows:
                    now = timestamp(time.time_ns() // 1000)
                    yield self._message(page.revision, bookmark=wallet_pb2.BalanceBookmark(time=now))

    async def _pages(self, found: Holdings, revision: int, principal: Principal) -> AsyncGenerator[Page, None]:
        """The account's rows behind a revision, without end; a page without rows is a bookmark."""
        account_id = found.account.account_id
        while True:
            pages = 0
            async for rows in journal.history(self._database, found.account.revision, after=revision):
                pages += 1
                yield Page(rows, rows[-1].revision)
                self._streams.check(principal)
            revision = found.head.revision
            # What took long to tell is out of date: the tailer begins where the ledger is now.
            if pages <= 1:
                yield Page((), revision)
                with suppress(FallenBehind), await self._tailer.subscribe([account_id], revision, revision) as live:
                    while True:
                        page = await self._streams.next(live, principal)
                        revision = page.revision
                        yield page
            found = await self._holdings(account_id)

    async def _holdings(self, account_id: str) -> Holdings:
        found = await self._store.holdings(account_id)
        if found is None:
            raise AccountNotFound(account_id)
        return found

    def _message(self, revision: int, **event: Any) -> Response:
        return Response(**self._streams.place(revision), **event)
