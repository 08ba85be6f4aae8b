"""The batcher's settings: environment variables BATCHER_*, or `.env`; the provider's key may also be OPENAI_API_KEY."""

import base64
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.batcher import breaker, image, job
from services.batcher.allowance import read_limits
from services.batcher.backoff import Patience
from services.batcher.price_list import Content, plain_list, read_prices
from services.chassis.settings import ServerSettings

AMOUNT_MAX = 10**15
PRESIGNED_SECONDS_MAX = 7 * 24 * 3600


class BatcherSettings(ServerSettings):
    """The batcher: turns images into answers."""

    model_config = SettingsConfigDict(env_prefix="BATCHER_", populate_by_name=True)

    listen_address: str = Field("127.0.0.1:50052", description="Where calls are taken, host:port.")
    metrics_address: str = Field("127.0.0.1:9102", description="Where /metrics is served, host:port, or off.")
    database_url: str = Field(
        "sqlite:.punchcard/batcher.db", description="sqlite:<path> or postgres://user:password@host/name.", repr=False
    )
    database_timeout_seconds: float = Field(
        10.0,
        gt=0,
        description="How long a statement may take, in seconds; a frozen replica's locks last for twice as long.",
    )
    token_audience: str = Field("punchcard.batcher", description="The aud that tokens for this service carry.")
    work_folder: Path = Field(
        Path(".punchcard/work"), description="Where batch files lie while they are built, sent and read."
    )

    wallet_address: str = Field("127.0.0.1:50051", description="Where the wallet is, host:port.")
    wallet_token_file: Path | None = Field(
        None, description="Bearer token for the wallet; read again when the file changes."
    )
    wallet_ca_file: Path | None = Field(
        None, description="Certificates that vouch for the wallet's, PEM; empty for a channel without TLS."
    )
    wallet_timeout_seconds: float = Field(10.0, gt=0, description="How long a call to the wallet may take, in seconds.")

    s3_endpoint: str = Field("http://127.0.0.1:9000", description="The object store's address, http(s)://host:port.")
    s3_public_endpoint: str | None = Field(
        None, description="The object store's address as the provider sees it, if that is another one."
    )
    s3_access_key: str = Field("", description="Access key of the object store.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret key of the object store.")
    s3_bucket: str = Field("punchcard", description="The bucket; made if it is not there.")
    s3_region: str = Field("us-east-1", description="The bucket's region.")
    s3_timeout_seconds: float = Field(30.0, gt=0, description="How long the object store may be silent, in seconds.")
    s3_concurrency: int = Field(16, ge=1, le=256, description="Calls to the object store at once.")

    openai_base_url: str | None = Field(None, description="The provider's address, up to /v1; empty for OpenAI's own.")
    openai_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("BATCHER_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="The provider's key; OPENAI_API_KEY is read too.",
    )
    openai_organization: str | None = Field(None, description="The organization that pays, if the key has several.")
    openai_project: str | None = Field(
        None, description="The project that owns the batches; with it set, keys may be rotated while batches run."
    )
    deployment_id: str = Field(
        "",
        pattern=r"^$|^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$",
        description="Tells installations that buy under one key or project apart: each needs its own, for ever.",
    )
    reconcile_seconds: float = Field(
        600.0, gt=0, description="How often the provider's and the wallet's books are compared with ours, in seconds."
    )
    openai_timeout_seconds: float = Field(30.0, gt=0, description="How long a small call may take, in seconds.")
    openai_transfer_timeout_seconds: float = Field(
        900.0, gt=0, description="How long the transfer of a batch's file may take, in seconds."
    )
    openai_webhook_secret: SecretStr = Field(
        SecretStr(""), description="The secret of the provider's webhook endpoint, whsec_...; needed to take webhooks."
    )
    webhook_address: str = Field(
        "off",
        pattern=r"^(off|.+:\d{1,5})$",
        description="Where the provider's webhooks are taken, host:port, or off: POST /webhooks/openai.",
    )
    image_transport: Literal["inline", "url"] = Field(
        "inline", description="How images reach the provider: within the request, or as an address in the object store."
    )
    image_url_seconds: int = Field(
        48 * 3600,
        ge=25 * 3600,
        le=PRESIGNED_SECONDS_MAX,
        description="How long such an address is good, in seconds; more than the provider's 24 hours.",
    )
    image_size_bytes_max: int = Field(
        20 * 1024 * 1024, ge=1, description="The largest image that is taken, in bytes as sent."
    )
    image_pixels_max: int = Field(50_000_000, ge=1, description="The largest image that is taken, in pixels.")
    upload_concurrency: int = Field(
        4, ge=1, le=256, description="Images that are decoded at once; each may need eight bytes a pixel."
    )

    model_default: str = Field("gpt-4.1-mini", description="The model of jobs that name none.")
    models: str = Field(
        "gpt-4.1-mini,gpt-4.1-nano,gpt-4o-mini",
        description="What jobs may name, separated by commas: all at one price.",
    )
    max_output_tokens_default: int = Field(
        512, ge=1, le=32_768, description="The largest answer of jobs that name none, in provider tokens."
    )
    deadline_default_hours: float = Field(
        72.0, gt=0, le=720, description="When jobs that name no deadline are given up."
    )
    hold_margin_hours: float = Field(
        6.0, gt=0, le=240, description="How much longer than a job may take its tokens are held."
    )
    attempts_max: int = Field(3, ge=1, le=100, description="How often a job is tried.")
    uncharged_finish_reasons: str = Field(
        "", description="Answers that are given away: finish reasons such as content_filter, separated by commas."
    )

    price_batch: int = Field(1, ge=1, le=AMOUNT_MAX, description="Price of a batch job, in the token's smallest unit.")
    price_instant: int = Field(
        5, ge=1, le=AMOUNT_MAX, description="Price of an instant job, in the token's smallest unit."
    )
    price_version: str = Field(
        "v1",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        description="The name of these prices, kept by jobs. They are put as a price list at the start, unless known.",
    )
    prices_file: Path | None = Field(
        None, description="Price lists with versions, times and models, JSON; takes the place of the three above."
    )
    price_notice_seconds: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="How long before it begins a change of prices is known: so long a quote holds at most, in seconds.",
    )

    cycle_seconds: float = Field(300.0, gt=0, description="How often what waits is sent as a batch, in seconds.")
    batch_jobs: int = Field(100, ge=1, le=50_000, description="So many waiting jobs start a batch at once.")
    batch_jobs_max: int = Field(50_000, ge=1, le=50_000, description="Jobs in a batch at most; the provider's limit.")
    batch_bytes_max: int = Field(
        150_000_000,
        ge=1_000_000,
        le=200_000_000,
        description="Bytes of a batch's file at most; the provider says 200 MB and has refused 158.",
    )
    batches_per_hour_max: int = Field(
        1_900, ge=1, description="Batches created in an hour at most; the provider takes 2,000."
    )
    poll_seconds: float = Field(30.0, gt=0, description="How often running batches are asked about, in seconds.")
    submit_timeout_seconds: float = Field(
        60.0, gt=0, description="How long the creation of a batch may take, in seconds; less than lease_seconds."
    )
    submit_settle_seconds: float = Field(
        120.0, ge=0, description="How long a creation in doubt may still come through at the provider, in seconds."
    )
    submit_retry_seconds: float = Field(
        60.0, gt=0, description="After how long what failed at the provider is tried again; pauses double, in seconds."
    )
    retry_seconds_max: float = Field(900.0, gt=0, description="How long such a pause becomes at most, in seconds.")
    give_up_tries: int = Field(
        12,
        ge=1,
        description="After so many tries, and so many hours, a batch that always fails is given to an operator.",
    )
    give_up_hours: float = Field(
        6.0, ge=0, description="The hours; results that the provider does not hand out by then are given up."
    )
    enqueued_tokens: str = Field(
        "",
        description="Tokens that may be enqueued at the provider, as gpt-4.1-mini=2000000,...; what is not named is"
        " learnt from refusals.",
    )
    breaker_failures: int = Field(
        5, ge=1, description="After so many unanswered calls in a row the provider is left alone for a while."
    )
    breaker_seconds: float = Field(10.0, gt=0, description="For how long at first; the pause doubles, in seconds.")
    breaker_seconds_max: float = Field(120.0, gt=0, description="How long that pause becomes at most, in seconds.")
    lease_seconds: float = Field(
        180.0, gt=0, description="After how long another replica takes over from one that is gone, in seconds."
    )
    instant_timeout_seconds: float = Field(60.0, gt=0, description="How long an instant call may take, in seconds.")
    instant_concurrency: int = Field(16, ge=1, le=1_000, description="Instant calls at once.")
    admission_wait_seconds: float = Field(
        2.0, ge=0, description="How long SubmitJob waits for the wallet before it answers ADMITTING, in seconds."
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.submit_timeout_seconds >= self.lease_seconds:
            raise ValueError(
                "submit_timeout_seconds must be less than lease_seconds, or two replicas may create at once"
            )
        if self.batch_jobs > self.batch_jobs_max:
            raise ValueError("batch_jobs must not be more than batch_jobs_max")
        read_limits(self.enqueued_tokens)
        if self.webhook_address != "off":
            _check_webhook_secret(self.openai_webhook_secret.get_secret_value())
        return self

    def model_names(self) -> frozenset[str]:
        """The models that a job may name: those listed, those with a price of their own, and the default."""
        listed = {model.strip() for model in self.models.split(",") if model.strip()}
        priced = {row.model for content in self.prices() for row in content.rows if row.model}
        return frozenset({self.model_default, *listed, *priced})

    def token_limits(self) -> dict[str, int]:
        """Tokens that may be enqueued, by model."""
        return read_limits(self.enqueued_tokens)

    def patience(self) -> Patience:
        """With what fails at the provider."""
        give_up_us = int(self.give_up_hours * 3600 * 1_000_000)
        first_us, longest_us = int(self.submit_retry_seconds * 1_000_000), int(self.retry_seconds_max * 1_000_000)
        return Patience(first_us, max(first_us, longest_us), self.give_up_tries, give_up_us)

    def breaker_limits(self) -> breaker.Limits:
        """When the provider is left alone, and for how long. A probe has the time of a small call."""
        first_us, longest_us = int(self.breaker_seconds * 1_000_000), int(self.breaker_seconds_max * 1_000_000)
        patience = Patience(first_us, max(first_us, longest_us), 0, 0)
        return breaker.Limits(self.breaker_failures, int(self.openai_timeout_seconds * 1_000_000), patience)

    def image_limits(self) -> image.Limits:
        """What an image may have at most."""
        return image.Limits(self.image_size_bytes_max, self.image_pixels_max)

    def job_limits(self) -> job.Limits:
        """How often a job is tried, and which answers are given away."""
        named = (reason.strip() for reason in self.uncharged_finish_reasons.split(","))
        return job.Limits(self.attempts_max, frozenset(reason for reason in named if reason))

    def prices(self) -> tuple[Content, ...]:
        """The price lists to put at the start. Raises OSError or ValueError for a prices_file that can't be read."""
        if self.prices_file is not None:
            return read_prices(json.loads(self.prices_file.read_text("utf-8")))
        return (
            plain_list(self.price_version, {job.Lane.BATCH: self.price_batch, job.Lane.INSTANT: self.price_instant}),
        )

    def notice_us(self) -> int:
        """How long before it begins a change of prices is known, in microseconds."""
        return int(self.price_notice_seconds * 1_000_000)


def _check_webhook_secret(secret: str) -> None:
    """A secret by which every webhook would be refused, or none at all, is better noticed at the start."""
    if not secret:
        raise ValueError("openai_webhook_secret must be set where webhook_address is")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith("whsec_") or not key:
        raise ValueError("openai_webhook_secret must be whsec_ and the secret in base64")
