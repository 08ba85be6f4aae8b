"""The wallet's settings: environment variables WALLET_*, or `.env`."""

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings
from services.wallet import calendar_day
from services.wallet.economy import Rules, read_rules


class WalletSettings(ServerSettings):
    """The wallet: owns balances of tokens."""

    model_config = SettingsConfigDict(env_prefix="WALLET_")

    listen_address: str = Field("127.0.0.1:50051", description="Where calls are taken, host:port.")
    metrics_address: str = Field("127.0.0.1:9101", description="Where /metrics is served, host:port, or off.")
    database_url: str = Field(
        "sqlite:.punchcard/wallet.db", description="sqlite:<path> or postgres://user:password@host/name.", repr=False
    )
    token_audience: str = Field("punchcard.wallet", description="The aud that tokens for this service carry.")
    welcome_bonus: int = Field(10, ge=0, le=10**15, description="What a new account is given, in smallest units.")
    token_scale: int = Field(
        0, ge=0, le=9, description="Decimal places of a token; fixed by the first start of the ledger."
    )
    grace_seconds: int = Field(
        7 * 24 * 3600,
        ge=0,
        le=400 * 24 * 3600,
        description="How long expired tokens live on that come back because work failed, in seconds; 0: not at all.",
    )
    economy_zone: str = Field(
        "UTC", description="Whose calendar days bonuses and limits go by, as the IANA names it, such as Europe/Berlin."
    )
    earning_rules: str = Field(
        "{}",
        description="The first version of the earning rules, as JSON; what it leaves out is as in the code.",
    )
    expiry_interval_seconds: float = Field(1.0, gt=0, description="How often overdue holds are looked for, in seconds.")

    def rules(self) -> Rules:
        """The economy's numbers."""
        grace_us = self.grace_seconds * 1_000_000
        return Rules(
            welcome_bonus=self.welcome_bonus,
            token_scale=self.token_scale,
            grace_us=grace_us,
            earning=read_rules(self.earning_rules),
            zone=self.economy_zone,
        )

    @field_validator("economy_zone")
    @classmethod
    def _zone_is_known(cls, name: str) -> str:
        calendar_day.zone_of(name)
        return name

    @field_validator("earning_rules")
    @classmethod
    def _rules_are_whole(cls, document: str) -> str:
        if "welcome_bonus" in document:
            raise ValueError("the welcome bonus of the first version is WALLET_WELCOME_BONUS")
        read_rules(document)
        return document
