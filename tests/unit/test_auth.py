"""services.chassis.auth"""

import base64
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.chassis import auth
from services.chassis.auth import Principal, Verifier
from services.chassis.errors import TokenExpired, TokenInvalid
from tests.tokens import JWKS, token, write_jwks

AUDIENCE = "punchcard.test"


@pytest.fixture
def verifier():
    return Verifier(JWKS, AUDIENCE)


def test_a_good_token_names_its_subject_scopes_and_end(verifier):
    now = time.time()
    principal = verifier.verify(token("alice", "wallet.read act_for:*"), now)

    assert principal.subject == "alice"
    assert principal.scopes == {"wallet.read", "act_for:*"}
    assert principal.expire_time_seconds == pytest.approx(now + 3600, abs=5)


def test_one_of_several_audiences_is_enough(verifier):
    assert verifier.verify(token(audience=["other", AUDIENCE]), 0.0).subject == "alice"


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("nonsense", "malformed"),
        ("a.b.c", "malformed"),
        ("é" * 40, "malformed"),
        ("a" * 9000, "too long"),
        (token(audience="punchcard.other"), f"audience is not {AUDIENCE}"),
        (token(claims={"aud": None}), f"audience is not {AUDIENCE}"),
        (token(kid="other"), "unknown key"),
        (token()[:-4] + "AAAA", "signature"),
        (token(claims={"exp": None}), "exp must be a time"),
        (token(claims={"exp": "soon"}), "exp must be a time|malformed"),
        (token(claims={"exp": True}), "exp must be a time|malformed"),
        (token(claims={"exp": 10**30}), "exp must be a time"),
        (token(claims={"sub": None}), "sub must match"),
        (token(subject="@issue"), "sub must match"),
        (token(claims={"sub": 7}), "sub must match|malformed"),
        (token(claims={"nbf": 4_000_000_000}), "not valid yet"),
        (token(claims={"scope": ["a"]}), "scope must be a string"),
        (jwt.encode({"sub": "alice"}, "", algorithm="none", headers={"kid": "test"}), "malformed|signature"),
    ],
)
def test_a_token_with_a_flaw_is_refused_with_the_flaw(verifier, bad, problem):
    with pytest.raises(TokenInvalid, match=problem):
        verifier.verify(bad, time.time())


def test_an_expired_token_is_refused_at_its_very_second(verifier):
    held = token(claims={"exp": 1_000})

    assert verifier.verify(held, 999.9).subject == "alice"
    with pytest.raises(TokenExpired):
        verifier.verify(held, 1_000.0)
    with pytest.raises(TokenExpired):
        verifier.verify(token(claims={"exp": 1_000}), 1_001.0)


def test_the_issuer_counts_when_it_is_set():
    verifier = Verifier(JWKS, AUDIENCE, issuer="https://us")

    assert verifier.verify(token(claims={"iss": "https://us"}), 0.0).subject == "alice"
    with pytest.raises(TokenInvalid, match="issuer is not https://us"):
        verifier.verify(token(), 0.0)


def test_a_verified_token_is_not_verified_again(verifier, monkeypatch):
    held = token()
    verifier.verify(held, 0.0)
    monkeypatch.setattr(jwt, "decode", None)

    assert verifier.verify(held, 0.0).subject == "alice"


def test_the_memory_for_tokens_is_bounded(verifier, monkeypatch):
    monkeypatch.setattr(auth, "CACHED_TOKENS_MAX", 3)
    for number in range(10):
        verifier.verify(token(f"user-{number}"), 0.0)

    assert len(verifier._cache) == 3


@pytest.mark.parametrize(
    ("algorithm", "make_key"),
    [
        ("EdDSA", ed25519.Ed25519PrivateKey.generate),
        ("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
        ("RS256", lambda: rsa.generate_private_key(65537, 2048)),
    ],
)
def test_asymmetric_keys_work(algorithm, make_key):
    private = make_key()
    jwk = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key()))
    verifier = Verifier({"keys": [{**jwk, "kid": "k"}]}, AUDIENCE)
    claims = {"sub": "alice", "aud": AUDIENCE, "exp": 4_000_000_000}

    assert verifier.verify(jwt.encode(claims, private, algorithm, headers={"kid": "k"}), 0.0).subject == "alice"


def test_a_public_key_cannot_be_used_as_a_secret():
    private = rsa.generate_private_key(65537, 2048)
    jwk = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(private.public_key()))
    forged = jwt.encode(
        {"sub": "alice", "aud": AUDIENCE, "exp": 4_000_000_000},
        base64.b64decode(jwk["n"] + "==", "-_"),
        "HS256",
        {"kid": "k"},
    )

    with pytest.raises(TokenInvalid):
        Verifier({"keys": [{**jwk, "kid": "k"}]}, AUDIENCE).verify(forged, 0.0)


def test_a_file_of_keys_is_read(tmp_path):
    assert Verifier.from_file(write_jwks(tmp_path), AUDIENCE).verify(token(), 0.0).subject == "alice"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"keys": [{"kty": "oct", "k": "AAAA"}]}',
        '{"keys": [{"kid": "a", "kty": "EC", "crv": "P-521"}]}',
        '{"keys": [{"kid": "a", "kty": "oct", "k": "AAAA"}]}',
    ],
)
def test_a_file_that_holds_no_keys_is_refused_with_a_sentence(tmp_path, text):
    path = tmp_path / "jwks.json"
    path.write_text(text)

    with pytest.raises(ValueError, match=r"is not a JWKS|is neither|has fewer than 32 bytes"):
        Verifier.from_file(path, AUDIENCE)


@pytest.mark.parametrize(
    ("scopes", "account_id", "allowed"),
    [
        ("", "alice", True),
        ("", "bob", False),
        ("act_for:*", "bob", True),
        ("act_for:bob", "bob", True),
        ("act_for:bob", "bobby", False),
        ("act_for:team-*", "team-1", True),
        ("act_for:team-*", "teams", False),
        ("wallet.admin", "bob", False),
    ],
)
def test_a_principal_acts_for_itself_and_for_whom_its_scopes_name(scopes, account_id, allowed):
    assert Principal("alice", frozenset(scopes.split()), 0.0).may_act_for(account_id) is allowed
