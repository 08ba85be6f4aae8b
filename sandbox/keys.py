"""The sandbox's secrets, made once and kept in its data folder: the key that signs tokens, S3's and the twin's.

keys/signing.pem    an Ed25519 private key, readable by its owner alone
keys/jwks.json      its public half, which the services check tokens against
keys/s3.json        access key and secret key
keys/openai_twin    the twin's API key
keys/openai_webhook what the twin signs its webhooks with
"""

import base64
import hashlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from jwt.algorithms import OKPAlgorithm

WALLET: Final = "punchcard.wallet"
BATCHER: Final = "punchcard.batcher"
AUDIENCES: Final = {"wallet": (WALLET,), "batcher": (BATCHER,), "both": (WALLET, BATCHER)}

USER_SCOPES: Final = (
    "account.open wallet.read wallet.earn wallet.team wallet.give wallet.trade wallet.limit "
    "image.upload job.submit job.read job.cancel"
)
"""What a customer may do for itself."""
OPERATOR_SCOPES: Final = "wallet.grant wallet.read act_for:*"
BATCHER_SCOPES: Final = "wallet.reserve wallet.settle wallet.read account.open act_for:*"


class S3Keys(NamedTuple):
    """What signs requests to the object store."""

    access_key: str
    secret_key: str


class Keys:
    """The secrets under one data folder; whatever is missing is made."""

    def __init__(self, data: Path) -> None:
        self._folder = data / "keys"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.jwks_path = self._folder / "jwks.json"
        self._signing_key = self._load_signing_key()

    def sign(self, subject: str, audiences: Sequence[str], scopes: str, ttl_seconds: int) -> str:
        """A bearer token, valid from now on for `ttl_seconds`."""
        now = int(time.time())
        claims = {"sub": subject, "aud": list(audiences), "scope": scopes, "iat": now, "exp": now + ttl_seconds}
        return jwt.encode(claims, self._signing_key, algorithm="EdDSA", headers={"kid": _kid(self._signing_key)})

    def s3(self) -> S3Keys:
        """The object store's keys."""
        made = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}
        return S3Keys(**json.loads(self._kept("s3.json", json.dumps(made))))

    def openai_twin(self) -> str:
        """The twin's API key."""
        return self._kept("openai_twin", f"sk-twin-{secrets.token_hex(16)}")

    def openai_webhook(self) -> str:
        """The secret of the twin's webhooks."""
        return self._kept("openai_webhook", f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}")

    def _load_signing_key(self) -> Ed25519PrivateKey:
        made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        key = load_pem_private_key(self._kept("signing.pem", made.decode()).encode(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError(f"{self._folder / 'signing.pem'} is not an Ed25519 key")
        jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
        _write_once(self.jwks_path, json.dumps({"keys": [{**jwk, "kid": _kid(key), "alg": "EdDSA", "use": "sig"}]}))
        return key

    def _kept(self, name: str, made: str) -> str:
        """The text kept under a name; `made` if there was none."""
        path = self._folder / name
        _write_once(path, made)
        return path.read_text()


def _kid(key: Ed25519PrivateKey) -> str:
    """The name of a key: the beginning of a digest of its public half."""
    return hashlib.sha256(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _write_once(path: Path, text: str) -> None:
    """Writes a file for its owner alone, whole or not at all; of two writers at once the first wins."""
    if path.exists():
        return
    new = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as content:
        content.write(text)
    try:
        os.link(new, path)
    except FileExistsError:
        pass
    finally:
        new.unlink()
