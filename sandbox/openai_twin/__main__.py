"""Runs the twin: `python -m sandbox.openai_twin --data FOLDER`; the key is taken from OPENAI_TWIN_API_KEY.

Faults: `--fault NAME` (or its JSON), `--faults FILE` with a script, `--storm SEED:RATE`; `--help-faults` lists them.
Webhooks go to `--webhook-url`, signed with OPENAI_TWIN_WEBHOOK_SECRET (whsec_ and base64).
"""

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from sandbox.openai_twin.batch_worker import Pace
from sandbox.openai_twin.command_line import add_fault_options, script_of
from sandbox.openai_twin.faults import FaultMistake
from sandbox.openai_twin.http_api import Twin
from sandbox.openai_twin.webhook import Target, WebhookMistake

SHUTDOWN_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until SIGINT or SIGTERM."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        faults = script_of(options.fault, options.faults, options.storm)
        webhook = _target(options.webhook_url)
    except (FaultMistake, WebhookMistake, OSError, json.JSONDecodeError) as mistake:
        parser.error(str(mistake))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.INFO if options.log_requests else logging.WARNING)
    pace = Pace(
        validating_seconds=options.validating_seconds,
        finalizing_seconds=options.finalizing_seconds,
        image_seconds=options.image_seconds,
        lines_at_once=options.lines_at_once,
        fetch_timeout_seconds=options.fetch_timeout_seconds,
    )
    api_key = os.environ.get("OPENAI_TWIN_API_KEY", "sk-twin")
    twin = Twin(options.data, api_key=api_key, pace=pace, seed=options.seed, faults=faults, webhook=webhook)
    web.run_app(
        twin.app(),
        host=options.host,
        port=options.port,
        print=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
        # A second twin on the same port must fail, not share it.
        reuse_port=False,
    )


def _target(url: str | None) -> Target | None:
    if url is None:
        return None
    return Target.read({"url": url, "secret": os.environ.get("OPENAI_TWIN_WEBHOOK_SECRET", "")})


def _parser() -> argparse.ArgumentParser:
    pace = Pace()
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.openai_twin", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of files and batches, made if it is not there")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--seed", type=int, default=0, help="decides the order of lines in result files")
    add_fault_options(parser)
    parser.add_argument("--log-requests", action="store_true", help="one log line a request")
    parser.add_argument("--validating-seconds", type=float, default=pace.validating_seconds)
    parser.add_argument("--finalizing-seconds", type=float, default=pace.finalizing_seconds)
    parser.add_argument("--image-seconds", type=float, default=pace.image_seconds, help="the time an image takes")
    parser.add_argument("--lines-at-once", type=int, default=pace.lines_at_once, help="over all batches")
    parser.add_argument("--fetch-timeout-seconds", type=float, default=pace.fetch_timeout_seconds)
    return parser


if __name__ == "__main__":
    main()
