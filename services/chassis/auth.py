"""Who calls: bearer tokens (JWT, RFC 7519) checked against a set of keys (JWKS, RFC 7517), and what a scope allows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from jwt.types import Options

from services.chassis.errors import TokenExpired, TokenInvalid
from services.chassis.fields import ID_PATTERN

PUBLIC: Final = "@public"
"""In a table of scopes: the method needs no token. No token can carry it as a scope that matters."""

CACHED_TOKENS_MAX: Final = 10_000
TOKEN_BYTES_MAX: Final = 8 * 1024
SECRET_BYTES_MIN: Final = 32

_SIGNATURE_ONLY: Final[Options] = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}
_ACT_FOR: Final = "act_for:"
_ACT_FOR_ALL: Final = "act_for:*"
_ALGORITHMS: Final[Mapping[tuple[str, str], str]] = {
    ("OKP", "Ed25519"): "EdDSA",
    ("EC", "P-256"): "ES256",
    ("RSA", ""): "RS256",
    ("oct", ""): "HS256",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller; `expire_time_seconds` counts from the epoch."""

    subject: str
    scopes: frozenset[str]
    expire_time_seconds: float

    def may(self, scope: str) -> bool:
        """Whether the token carries `scope`."""
        return scope in self.scopes

    def may_act_for(self, account_id: str) -> bool:
        """Its own account, or one that a scope `act_for:*`, `act_for:<id>` or `act_for:<prefix>*` names."""
        if self.subject == account_id or not self.scopes.isdisjoint((_ACT_FOR_ALL, _ACT_FOR + account_id)):
            return True
        return any(
            scope.startswith(_ACT_FOR) and scope.endswith("*") and account_id.startswith(scope[len(_ACT_FOR) : -1])
            for scope in self.scopes
        )


_principal: ContextVar[Principal] = ContextVar("principal")


def current_principal() -> Principal:
    """The caller of the RPC that runs; LookupError outside of one and in public methods."""
    return _principal.get()


def set_principal(principal: Principal) -> None:
    """Name the caller for the rest of this task; the chain's duty."""
    _principal.set(principal)


@dataclass(frozen=True, slots=True)
class _Key:
    algorithm: str
    key: jwt.PyJWK


class Verifier:
    """Checks tokens of one audience.

    A token that passed is remembered by its digest until it expires, since checking a signature costs as much as the
    rest of a call. A key's type decides the one algorithm that it may be used with, whatever the token says.
    """

    def __init__(self, jwks: Mapping[str, Any], audience: str, issuer: str | None = None) -> None:
        self.audience = audience
        self.issuer = issuer
        self._keys = {str(key["kid"]): _load_key(key) for key in jwks["keys"]}
        self._cache: dict[bytes, Principal] = {}

    @classmethod
    def from_file(cls, path: Path, audience: str, issuer: str | None = None) -> Verifier:
        """Read a JWKS file; raises ValueError with a sentence if it is none."""
        try:
            return cls(json.loads(path.read_text()), audience, issuer)
        except (KeyError, TypeError, jwt.PyJWTError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a JWKS whose every key has a kid: {error!r}") from error

    def verify(self, token: str, now_seconds: float) -> Principal:
        """The principal of `token`; raises TokenInvalid or TokenExpired."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        principal = self._cache.get(digest)
        if principal is None:
            principal = self._check(token, now_seconds)
            self._remember(digest, principal)
        elif principal.expire_time_seconds <= now_seconds:
            del self._cache[digest]
            raise TokenExpired(principal.expire_time_seconds)
        return principal

    def _remember(self, digest: bytes, principal: Principal) -> None:
        if len(self._cache) >= CACHED_TOKENS_MAX:
            # Dictionaries keep their order, so that this drops the token that was first seen longest ago.
            del self._cache[next(iter(self._cache))]
        self._cache[digest] = principal

    def _check(self, token: str, now_seconds: float) -> Principal:
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenInvalid("it is too long")
        claims = self._claims(token)
        expire_time_seconds = _seconds(claims, "exp")
        if expire_time_seconds <= now_seconds:
            raise TokenExpired(expire_time_seconds)
        if "nbf" in claims and _seconds(claims, "nbf") > now_seconds:
            raise TokenInvalid("it is not valid yet")
        return Principal(self._subject(claims), _scopes(claims), expire_time_seconds)

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature is good; times are ours to judge, since `now` is an argument."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(str(kid))
            if key is None:
                raise TokenInvalid("it is signed by an unknown key")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                options=_SIGNATURE_ONLY,
            )
        except jwt.InvalidSignatureError:
            raise TokenInvalid("its signature is wrong") from None
        except (jwt.PyJWTError, ValueError):
            raise TokenInvalid("it is malformed") from None
        self._check_audience(claims)
        return claims

    def _check_audience(self, claims: Mapping[str, Any]) -> None:
        audience = claims.get("aud")
        if audience != self.audience and not (isinstance(audience, list) and self.audience in audience):
            raise TokenInvalid(f"audience is not {self.audience}")
        if self.issuer is not None and claims.get("iss") != self.issuer:
            raise TokenInvalid(f"issuer is not {self.issuer}")

    @staticmethod
    def _subject(claims: Mapping[str, Any]) -> str:
        subject = claims.get("sub")
        if not isinstance(subject, str) or ID_PATTERN.fullmatch(subject) is None:
            raise TokenInvalid(f"sub must match {ID_PATTERN.pattern}")
        return subject


def _load_key(jwk: Mapping[str, Any]) -> _Key:
    kind = (str(jwk["kty"]), str(jwk.get("crv", "")))
    algorithm = _ALGORITHMS.get(kind)
    if algorithm is None or jwk.get("alg", algorithm) != algorithm:
        raise ValueError(f"the key {jwk['kid']} is neither EdDSA, ES256, RS256 nor HS256")
    loaded = jwt.PyJWK.from_dict({**jwk, "alg": algorithm})
    if isinstance(loaded.key, bytes) and len(loaded.key) < SECRET_BYTES_MIN:
        raise ValueError(f"the secret {jwk['kid']} has fewer than {SECRET_BYTES_MIN} bytes (RFC 7518, 3.2)")
    return _Key(algorithm, loaded)


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 253_402_300_799:
        raise TokenInvalid(f"{name} must be a time")
    return float(value)


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        raise TokenInvalid("scope must be a string")
    return frozenset(scope.split())
