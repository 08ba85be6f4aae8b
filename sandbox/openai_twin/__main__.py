"""Runs the twin: `python -m sandbox.openai_twin --data FOLDER`; the key is taken from OPENAI_TWIN_API_KEY."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from sandbox.openai_twin.batch_worker import Pace
from sandbox.openai_twin.http_api import Twin

SHUTDOWN_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until SIGINT or SIGTERM."""
    options = _parser().parse_args(arguments)
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
    twin = Twin(options.data, api_key=api_key, pace=pace, seed=options.seed)
    web.run_app(
        twin.app(),
        host=options.host,
        port=options.port,
        print=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
        # A second twin on the same port must fail, not share it.
        reuse_port=False,
    )


def _parser() -> argparse.ArgumentParser:
    pace = Pace()
    parser = argparse.ArgumentParser(prog="python -m sandbox.openai_twin", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of files and batches, made if it is not there")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--seed", type=int, default=0, help="decides the order of lines in result files")
    parser.add_argument("--log-requests", action="store_true", help="one log line a request")
    parser.add_argument("--validating-seconds", type=float, default=pace.validating_seconds)
    parser.add_argument("--finalizing-seconds", type=float, default=pace.finalizing_seconds)
    parser.add_argument("--image-seconds", type=float, default=pace.image_seconds, help="the time an image takes")
    parser.add_argument("--lines-at-once", type=int, default=pace.lines_at_once, help="over all batches")
    parser.add_argument("--fetch-timeout-seconds", type=float, default=pace.fetch_timeout_seconds)
    return parser


if __name__ == "__main__":
    main()
