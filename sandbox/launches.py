"""How each part is started: its command line and its environment."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final, NamedTuple

from sandbox import keys, s3
from sandbox.keys import Keys
from sandbox.plan import HOST, Part, Plan, openai_api_key
from sandbox.process import ROOT

CYCLE_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.5
DRAIN_TIMEOUT_SECONDS: Final = 5.0
BATCHER_TOKEN_SECONDS: Final = 90 * 24 * 3600
MODEL_DEFAULT: Final = "gpt-4.1-mini"

# The twin is a millisecond away, so that doubts about it are settled in seconds, and a killed batcher soon goes on.
TWIN_PATIENCE: Final = {
    "BATCHER_SUBMIT_TIMEOUT_SECONDS": "5",
    "BATCHER_SUBMIT_SETTLE_SECONDS": "5",
    "BATCHER_SUBMIT_RETRY_SECONDS": "2",
    "BATCHER_LEASE_SECONDS": "10",
}


class Launch(NamedTuple):
    """A command, the one to run before it, and the environment of both."""

    command: list[str]
    environment: dict[str, str]
    migration: list[str] | None = None


class Launches:
    """The launches of one plan over one data folder."""

    def __init__(self, data: Path, plan: Plan, secrets: Keys) -> None:
        self._data = data
        self._plan = plan
        self._secrets = secrets

    def of(self, part: Part) -> Launch:
        """How to start a part; folders and tokens that it needs are made."""
        makers: dict[Part, Callable[[], Launch]] = {
            "s3": self._s3,
            "openai_twin": self._openai_twin,
            "wallet": self._wallet,
            "batcher": self._batcher,
        }
        launch = makers[part]()
        return launch._replace(environment={**_base_environment(), **launch.environment})

    def _s3(self) -> Launch:
        folder = self._data / "objects"
        s3.prepare(folder)
        command = s3.command(folder, f"{HOST}:{self._plan.ports.s3}")
        return Launch(command, s3.environment(self._secrets.s3()))

    def _openai_twin(self) -> Launch:
        options = {"data": self._data / "openai_twin", "port": self._plan.ports.openai_twin, **asdict(self._plan.pace)}
        command = [sys.executable, "-m", "sandbox.openai_twin"]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        if self._plan.faults:
            script = self._data / "faults.json"
            script.write_text(json.dumps(self._plan.faults))
            command += ["--faults", str(script)]
        if self._plan.webhook_url:
            command += ["--webhook-url", self._plan.webhook_url]
        environment = {
            "OPENAI_TWIN_API_KEY": self._secrets.openai_twin(),
            "OPENAI_TWIN_WEBHOOK_SECRET": self._secrets.openai_webhook(),
        }
        return Launch(command, environment)

    def _wallet(self) -> Launch:
        ports = self._plan.ports
        url = self._plan.wallet_database_url or f"sqlite:{self._data / 'wallet.db'}"
        return self._service("wallet", self._server_settings("WALLET", ports.wallet, ports.wallet_metrics, url))

    def _batcher(self) -> Launch:
        ports, s3_keys = self._plan.ports, self._secrets.s3()
        url = self._plan.batcher_database_url or f"sqlite:{self._data / 'batcher.db'}"
        settings = {
            **self._server_settings("BATCHER", ports.batcher, ports.batcher_metrics, url),
            "BATCHER_WALLET_ADDRESS": f"{HOST}:{ports.wallet}",
            "BATCHER_WALLET_TOKEN_FILE": str(self._write_batcher_token()),
            "BATCHER_S3_ENDPOINT": f"http://{HOST}:{ports.s3}",
            "BATCHER_S3_ACCESS_KEY": s3_keys.access_key,
            "BATCHER_S3_SECRET_KEY": s3_keys.secret_key,
            "BATCHER_S3_BUCKET": s3.BUCKET,
            "BATCHER_CYCLE_SECONDS": str(CYCLE_SECONDS),
            "BATCHER_POLL_SECONDS": str(POLL_SECONDS),
            "BATCHER_MODEL_DEFAULT": MODEL_DEFAULT,
            "BATCHER_WORK_FOLDER": str(self._data / "work"),
            **self._provider_settings(),
        }
        return self._service("batcher", settings)

    def _provider_settings(self) -> dict[str, str]:
        """Who answers. OpenAI cannot reach an object store on this machine, so it is sent the images themselves."""
        if self._plan.provider == "openai":
            return {"BATCHER_IMAGE_TRANSPORT": "inline", "BATCHER_OPENAI_API_KEY": openai_api_key() or ""}
        return {
            "BATCHER_IMAGE_TRANSPORT": "url",
            "BATCHER_OPENAI_BASE_URL": f"http://{HOST}:{self._plan.ports.openai_twin}/v1",
            "BATCHER_OPENAI_API_KEY": self._secrets.openai_twin(),
            **TWIN_PATIENCE,
        }

    def _server_settings(self, prefix: str, port: int, metrics_port: int, database_url: str) -> dict[str, str]:
        return {
            f"{prefix}_LISTEN_ADDRESS": f"{HOST}:{port}",
            f"{prefix}_METRICS_ADDRESS": f"{HOST}:{metrics_port}",
            f"{prefix}_DATABASE_URL": database_url,
            f"{prefix}_JWKS_FILE": str(self._secrets.jwks_path),
            f"{prefix}_DRAIN_TIMEOUT_SECONDS": str(DRAIN_TIMEOUT_SECONDS),
        }

    def _service(self, name: str, settings: dict[str, str]) -> Launch:
        command = [sys.executable, "-m", f"services.{name}"]
        return Launch([*command, "serve"], {**settings, **self._plan.settings}, [*command, "migrate"])

    def _write_batcher_token(self) -> Path:
        """The token with which the batcher calls the wallet, renewed at each start."""
        path = self._data / "keys" / "batcher_token"
        path.touch(mode=0o600)
        path.write_text(self._secrets.sign("batcher", [keys.WALLET], keys.BATCHER_SCOPES, BATCHER_TOKEN_SECONDS))
        return path


def _base_environment() -> dict[str, str]:
    """Our own environment, with both import roots, so that nothing needs to be installed."""
    roots = [str(ROOT), str(ROOT / "gen"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "PYTHONUNBUFFERED": "1"}
