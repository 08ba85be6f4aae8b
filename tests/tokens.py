"""Keys and tokens for tests."""

import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt

SECRET = b"a secret of thirty-two bytes, ok"
JWKS: dict[str, Any] = {
    "keys": [{"kty": "oct", "kid": "test", "k": base64.urlsafe_b64encode(SECRET).decode().rstrip("="), "alg": "HS256"}]
}


def token(
    subject: str = "alice",
    scope: str = "",
    audience: str | list[str] = "punchcard.test",
    lifetime_seconds: float = 3600.0,
    kid: str = "test",
    claims: Mapping[str, Any] | None = None,
) -> str:
    """A bearer token that JWKS verifies; `claims` override or, by None, remove."""
    everything = {
        "sub": subject,
        "aud": audience,
        "exp": time.time() + lifetime_seconds,
        "scope": scope,
        **(claims or {}),
    }
    present = {name: value for name, value in everything.items() if value is not None}
    return jwt.encode(present, SECRET, algorithm="HS256", headers={"kid": kid})


def bearer(subject: str = "alice", scope: str = "", **more: Any) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with such a token."""
    return (("authorization", f"Bearer {token(subject, scope, **more)}"),)


def write_jwks(folder: Path) -> Path:
    """A file with JWKS."""
    path = folder / "jwks.json"
    path.write_text(json.dumps(JWKS))
    return path
