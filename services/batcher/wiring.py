"""The parts of a batcher, each made from the settings and handed what it works with."""

import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from services.batcher import grpc_pricing
from services.batcher.admitter import Admitter, Listeners
from services.batcher.amender import Amender
from services.batcher.errors import PriceListMismatch
from services.batcher.grpc_api import BatcherApi
from services.batcher.grpc_messages import Shield
from services.batcher.grpc_submissions import Submissions
from services.batcher.grpc_uploads import Uploads
from services.batcher.grpc_watch import Watches
from services.batcher.input_file import InputFiles
from services.batcher.instant_runner import InstantRunner
from services.batcher.job import uid_of
from services.batcher.object_store import ObjectStore
from services.batcher.object_urls import ImageUrls
from services.batcher.openai_api import OpenAIApi
from services.batcher.poller import Poller
from services.batcher.pricing import base_of
from services.batcher.provider_circuit import ProviderCircuit
from services.batcher.purchases import Purchases
from services.batcher.reconciler import Reconciler
from services.batcher.renewer import Renewer
from services.batcher.settings import BatcherSettings
from services.batcher.settler import Settler
from services.batcher.store import NewJob, Store, Submitted
from services.batcher.store_batches import BatchStore
from services.batcher.store_prices import PriceBook, PriceStore
from services.batcher.store_reconciliation import ReconciliationStore
from services.batcher.submitter import Submitter
from services.batcher.wallet_client import WalletClient
from services.batcher.wallet_reconciler import WalletReconciler
from services.batcher.wiring_limits import defaults, instant_limits, microseconds, poller_limits, submitter_limits
from services.chassis import journal
from services.chassis.database import Database
from services.chassis.group_commit import GroupCommitter
from services.chassis.leases import Lease
from services.chassis.loops import Loop
from services.chassis.server import RefusesToStart
from services.chassis.watch import Tailer, reader

QUICK_SECONDS: Final = 0.5
SWEEP_SECONDS: Final = 5.0
RENEW_SECONDS: Final = 60.0


class Parts:
    """The parts of one batcher, made from its settings; `wake_*` end a loop's pause."""

    def __init__(self, settings: BatcherSettings, database: Database, head: journal.Head) -> None:
        inline = settings.image_transport == "inline"
        self.settings = settings
        self.database = database
        self.epoch = head.epoch
        self.tailer = Tailer(reader(database), head.revision)
        self.tail = Loop("tailer", self.tailer.step, QUICK_SECONDS)
        self.book = PriceBook()
        self.prices = PriceStore(database, settings.notice_us())
        self.store = Store(database, self.tail.wake, inline, self.book)
        self.batches = BatchStore(database, self.tail.wake, settings.token_limits())
        self.wallet = WalletClient(
            settings.wallet_address,
            settings.wallet_token_file,
            settings.wallet_timeout_seconds,
            ca_file=settings.wallet_ca_file,
        )
        self.objects = _object_store(settings)
        self.circuit = ProviderCircuit(settings.breaker_limits(), now_us, random.random, self._provider_is_back)
        self.provider = _provider(settings, self.circuit)
        self.urls = ImageUrls(self.store, self.objects, inline, settings.image_url_seconds)
        self.settle = self._leased("settler", Settler(self.store, self.wallet).step, SWEEP_SECONDS)
        self.amend = self._leased("amender", Amender(self.store, self.wallet, self.settle.wake).step, SWEEP_SECONDS)
        limits = instant_limits(settings)
        self.instant = InstantRunner(self.store, self.urls, self.provider, limits, self._wallet_is_owed)
        listeners = Listeners(self.instant.offer, self.settle.wake)
        self.admitter = Admitter(self.store, self.wallet, listeners, limits.lease_us)
        self.committer: GroupCommitter[NewJob, Submitted] = GroupCommitter(self.store.submit)
        self.books = ReconciliationStore(database, self.tail.wake)
        self.purchases = Purchases(self.books, self.provider.provider_identity())
        self.submitter = self._submitter()
        self.poller = self._poller()
        tick_seconds = min(QUICK_SECONDS, settings.poll_seconds / 2)
        self.poll = self._leased("poller", lambda lease: self.poller.step(lease, now_us()), tick_seconds)
        self.uploads = Uploads(self.store, self.objects, settings.image_limits(), settings.upload_concurrency)

    def _wallet_is_owed(self) -> None:
        """Settles and lowers holds at once, and not only when their time comes."""
        self.settle.wake()
        self.amend.wake()

    def _submitter(self) -> Submitter:
        files = InputFiles(self.store, self.batches, self.urls, self.settings.work_folder)
        limits = submitter_limits(self.settings)
        return Submitter(
            self.batches, files, self.provider, self.wallet, limits, new_id, self.settle.wake, self.purchases
        )

    def _poller(self) -> Poller:
        settings = self.settings
        folder, limits, wake = settings.work_folder, poller_limits(settings), self.settle.wake
        return Poller(self.batches, self.objects, self.provider, folder, limits, new_id, wake, self.purchases)

    def _provider_is_back(self) -> None:
        """Asks about the running batches soon, and not only when their time comes."""
        self.poller.hasten()
        self.poll.wake()

    async def hasten(self, provider_batch_ids: Collection[str]) -> None:
        """The provider has told of these batches: whichever replica polls asks about them."""
        await self.batches.hasten(provider_batch_ids)
        self.poll.wake()

    def loops(self) -> list[Loop]:
        """Every loop of the batcher. Those that several replicas could not run at once have a lease."""
        settings = self.settings
        margin_us = microseconds(settings.hold_margin_hours * 3600) // 4
        renewer = Renewer(self.store, self.wallet, margin_us, self.purchases.is_begun)
        admitted_within_us = microseconds(settings.admission_wait_seconds + SWEEP_SECONDS)

        async def sweep_admissions(_: Lease) -> bool:
            return await self.admitter.sweep(now_us() - admitted_within_us)

        async def sweep_deadlines(lease: Lease) -> bool:
            expired = await self.store.expire(lease)
            if expired:
                self.settle.wake()
            return bool(expired)

        return [
            self.tail,
            self.settle,
            self.amend,
            Loop("instant_leases", self.instant.keep, self.settings.instant_timeout_seconds / 2),
            self._leased("submitter", lambda lease: self.submitter.step(lease, now_us()), QUICK_SECONDS),
            self.poll,
            *self._reconcilers(),
            self._leased("renewer", lambda lease: renewer.step(lease, now_us()), RENEW_SECONDS),
            self._leased("admitter", sweep_admissions, SWEEP_SECONDS),
            Loop("instant", self.instant.sweep, SWEEP_SECONDS),
            self._leased("deadlines", sweep_deadlines, SWEEP_SECONDS),
        ]

    def _reconcilers(self) -> list[Loop]:
        """They look often whether it is time: another replica may have just given its lease back."""
        interval_us = microseconds(self.settings.reconcile_seconds)
        folder = self.settings.work_folder
        ours = Reconciler(self.books, self.provider, self.purchases, folder, interval_us, self.poll.wake)
        paid = WalletReconciler(self.store, self.books, self.wallet, self.purchases, interval_us)
        seconds = min(SWEEP_SECONDS, self.settings.reconcile_seconds)
        return [
            Loop("purchases", self.purchases.look, SWEEP_SECONDS),
            self._leased("reconciler", ours.step, seconds),
            self._leased("wallet_reconciler", paid.step, seconds),
        ]

    def _leased(self, name: str, step: Callable[[Lease], Awaitable[bool]], interval_seconds: float) -> Loop:
        lease = Lease(self.database, name, _holder(), self.settings.lease_seconds)
        return Loop(name, lambda: step(lease), interval_seconds, lease)

    def api(self, shield: Shield, watches: Watches) -> BatcherApi:
        """The edge."""
        submissions = Submissions(
            self.store, self.committer, self.admitter.admit, self.uploads, defaults(self.settings)
        )
        return BatcherApi(
            self.store,
            self.batches,
            submissions,
            self.uploads,
            watches,
            shield,
            self.submitter.outlook,
            self.settle.wake,
        )

    def pricing_api(self, shield: Shield) -> grpc_pricing.PricingApi:
        """The edge of the prices."""
        settings = self.settings
        models = settings.model_names()
        return grpc_pricing.PricingApi(
            self.database, self.book, self.prices, shield, settings.model_default, models, settings.notice_us()
        )

    async def seed_prices(self) -> None:
        """Puts the configured price lists that are not known yet. Raises RefusesToStart."""
        try:
            await self.prices.seed(self.settings.prices())
        except PriceListMismatch as refusal:
            raise RefusesToStart(
                f"{refusal} It is {refusal.metadata['stored']} in the database, {refusal.metadata['received']} in the"
                " configuration: give the configured list another version, or change prices by PutPriceList."
            ) from None
        async with self.database.reading() as tx:
            lists, time_us = await self.book.seen(tx)
        if base_of(lists, time_us) is None:
            raise RefusesToStart("no price list is in force yet: one of the configured ones must be")

    async def start(self) -> None:
        """Starts what gathers and works beside the loops."""
        await self.purchases.start()
        self.admitter.start()
        self.committer.start()
        self.instant.start()

    async def close(self) -> None:
        """Ends what was started, those that hand on before those that are handed to."""
        await self.committer.close()
        await self.admitter.close()
        await self.instant.close()
        await self.wallet.close()
        await self.provider.close()
        await self.objects.close()


def now_us() -> int:
    """The time of this process, in microseconds since the epoch."""
    return time.time_ns() // 1000


def new_id() -> str:
    """An id of ours, which sorts by time."""
    return uid_of(now_us(), secrets.randbits(74))


def _holder() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _object_store(settings: BatcherSettings) -> ObjectStore:
    return ObjectStore(
        settings.s3_endpoint,
        settings.s3_access_key,
        settings.s3_secret_key.get_secret_value(),
        settings.s3_bucket,
        region=settings.s3_region,
        public_endpoint=settings.s3_public_endpoint,
        timeout_seconds=settings.s3_timeout_seconds,
        concurrency=settings.s3_concurrency,
    )


def _provider(settings: BatcherSettings, circuit: ProviderCircuit) -> OpenAIApi:
    api_key = settings.openai_api_key.get_secret_value()
    if not api_key:
        raise RefusesToStart("the provider's key is not set: set OPENAI_API_KEY")
    return OpenAIApi(
        api_key,
        base_url=settings.openai_base_url,
        organization=settings.openai_organization,
        project=settings.openai_project,
        timeout_seconds=settings.openai_timeout_seconds,
        transfer_timeout_seconds=settings.openai_transfer_timeout_seconds,
        circuit=circuit,
        deployment_id=settings.deployment_id,
    )
