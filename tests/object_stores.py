"""A real S3 server over a folder, for tests: `rclone serve s3` on a free port, gone when the test is."""

import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, Timer
from typing import NamedTuple

ACCESS_KEY = "punchcard"
SECRET_KEY = "punchcard-secret"
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0


class ServedStore(NamedTuple):
    """Where a running S3 server is, and its process, for tests that need it gone."""

    endpoint: str
    access_key: str
    secret_key: str
    process: "subprocess.Popen[str]"


@contextmanager
def serve_s3(folder: Path) -> Iterator[ServedStore]:
    """Serves a folder's subfolders as buckets; ready when this yields, stopped when it returns."""
    rclone = Path(sysconfig.get_path("scripts")) / "rclone"
    process = subprocess.Popen(
        [rclone, "serve", "s3", "--config", os.devnull, "--addr", "127.0.0.1:0", folder],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield ServedStore(_address_told_by(process), ACCESS_KEY, SECRET_KEY, process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _address_told_by(process: "subprocess.Popen[str]") -> str:
    """Reads the server's log up to the line with its address, which it writes once it listens."""
    assert process.stderr is not None
    watchdog = Timer(START_SECONDS_MAX, process.kill)
    watchdog.start()
    told = []
    try:
        for line in process.stderr:
            told.append(line)
            if found := re.search(r"Starting s3 server on \[(http://[^/\]]+)/?\]", line):
                # What it logs from now on is read away, or it would block on a full pipe.
                Thread(target=_drain, args=(process,), daemon=True).start()
                return found.group(1)
    finally:
        watchdog.cancel()
    raise RuntimeError("rclone did not serve: " + "".join(told))


def _drain(process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    try:
        for _ in process.stderr:
            pass
    except ValueError:
        # The pipe was closed while we read, as the server has stopped.
        return
