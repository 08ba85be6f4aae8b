"""Makes what docker-compose.yml needs of an issuer of tokens: a signing key, its public half, the batcher's token.

    python deploy/make_keys.py FOLDER

FOLDER/keys/signing.pem is for its owner alone; FOLDER/jwks.json and FOLDER/batcher.token are for the services.
A user's token:

    docker compose run --rm -e PUNCHCARD_DATA=/keys --entrypoint 'python -m sandbox.token alice' keys
"""

import sys
from pathlib import Path

from sandbox.keys import BATCHER_SCOPES, WALLET, Keys

TOKEN_SECONDS = 365 * 24 * 3600
FOR_THE_SERVICES = 0o644


def main(folder: Path) -> None:
    """Writes the files; run again, it keeps the key and renews the token."""
    keys = Keys(folder)
    files = {
        "jwks.json": keys.jwks_path.read_text(),
        "batcher.token": keys.sign("batcher", [WALLET], BATCHER_SCOPES, TOKEN_SECONDS),
    }
    for name, text in files.items():
        path = folder / name
        path.write_text(text)
        path.chmod(FOR_THE_SERVICES)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
