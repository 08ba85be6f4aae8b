"""Settings of a server, from the environment and `.env`; every field's description becomes a line of .env.example."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.chassis.auth import Verifier

EXIT_USAGE = 2

_SHAPES: Final = {
    "listen_address": (re.compile(r".+:\d{1,5}"), "must be host:port"),
    "metrics_address": (re.compile(r"off|.+:\d{1,5}"), "must be host:port, or off"),
    "database_url": (re.compile(r"(sqlite3?|postgres(ql)?):.+"), "must start with sqlite: or postgres://"),
}


class ServerSettings(BaseSettings):
    """What every server needs. A service subclasses it with its env_prefix, its defaults and its own fields."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    listen_address: str = Field("127.0.0.1:50051", description="Where calls are taken, host:port.")
    metrics_address: str = Field("127.0.0.1:9101", description="Where /metrics is served, host:port, or off.")
    database_url: str = Field(
        "sqlite:.punchcard/service.db", description="sqlite:<path> or postgres://user:password@host/name.", repr=False
    )
    jwks_file: Path | None = Field(None, description="Keys that sign bearer tokens, a JWKS file (RFC 7517).")
    token_audience: str = Field("punchcard", description="The aud that tokens for this service carry.")
    token_issuer: str | None = Field(None, description="The iss that tokens must carry; empty for any.")
    insecure: bool = Field(
        False, description="Listen beyond loopback without TLS, or anywhere without checking tokens."
    )
    tls_certificate_file: Path | None = Field(None, description="Certificate chain, PEM.")
    tls_key_file: Path | None = Field(None, description="Private key of the certificate, PEM.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto is JSON unless on a terminal.")
    drain_timeout_seconds: float = Field(30.0, gt=0, description="How long calls may run on after SIGTERM, in seconds.")
    request_timeout_seconds: float = Field(
        30.0, gt=0, description="How long a unary call may take at most, in seconds."
    )
    concurrent_calls_max: int = Field(5_000, ge=1, description="Unary calls at once; more are refused.")
    concurrent_streams_max: int = Field(20_000, ge=1, description="Streams at once; more are refused.")
    reflection: bool = Field(True, description="Whether grpcurl may list and describe without the protos.")

    @field_validator(*_SHAPES)
    @classmethod
    def _has_shape(cls, value: str, info: ValidationInfo) -> str:
        pattern, problem = _SHAPES[str(info.field_name)]
        if pattern.fullmatch(value) is None:
            raise ValueError(problem)
        return value

    @field_validator("jwks_file")
    @classmethod
    def _is_a_jwks(cls, value: Path | None) -> Path | None:
        if value is not None and value.exists():
            Verifier.from_file(value, "")
        return value

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """The settings of this process; prints every mistake at once and exits with 2 if there is any."""
        try:
            return cls(**overrides)
        except ValidationError as error:
            prefix = cls.model_config.get("env_prefix", "")
            for mistake in error.errors():
                name = prefix + "_".join(str(part) for part in mistake["loc"]).upper()
                print(f"{name}: {mistake['msg']}", file=sys.stderr)
            raise SystemExit(EXIT_USAGE) from None

    def verifier(self) -> Verifier | None:
        """The verifier of this service's tokens; None when no keys are set, which Server takes only if insecure."""
        if self.jwks_file is None:
            return None
        return Verifier.from_file(self.jwks_file, self.token_audience, self.token_issuer)


def render_example(classes: Iterable[type[BaseSettings]]) -> str:
    """The text of .env.example: each variable commented out at its default, under its description."""
    lines = ["# Made by `make env-example` from the settings classes. Copy to .env and uncomment what you change."]
    for cls in classes:
        first_line = (cls.__doc__ or cls.__name__).strip().splitlines()[0]
        lines += ["", f"## {first_line}"]
        for name, field in cls.model_fields.items():
            default = field.get_default(call_default_factory=True, validated_data={})
            lines += [f"# {field.description}", f"#{_variable(cls, name)}={_rendered(default)}"]
    return "\n".join(lines) + "\n"


def _variable(cls: type[BaseSettings], name: str) -> str:
    return (cls.model_config.get("env_prefix", "") + name).upper()


def _rendered(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def settings_classes(module_names: Iterable[str]) -> list[type[BaseSettings]]:
    """The settings classes that these modules define."""
    modules = [importlib.import_module(name) for name in module_names]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == module.__name__
    ]


if __name__ == "__main__":
    sys.stdout.write(render_example(settings_classes(sys.argv[1:])))
