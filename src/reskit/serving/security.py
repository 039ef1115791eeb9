"""Who may ask, and over which line."""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from pathlib import Path

from reskit.errors import ConfigError
from reskit.files import read_lines
from reskit.serving.faults import UnauthorizedError
from reskit.serving.settings import Settings

__all__ = ["Tokens", "check_tls", "read_pem"]

_HASH = re.compile(r"[0-9a-fA-F]{64}")


class Tokens:
    """The bearer tokens that may ask; only their SHA-256 is known.

    A token should be 32 random bytes: nobody can guess what was hashed, so it needs no salt and no slow hash.

    Args:
        hashes: of the tokens; everybody may ask where there are none.
    """

    def __init__(self, hashes: list[bytes] | None = None) -> None:
        self._hashes = hashes

    @classmethod
    def read(cls, path: Path | None) -> Tokens:
        """Read a file as `sha256sum` writes it: a hash in hexadecimal digits a line, then what you like.

        Raises:
            ConfigError: it cannot be read, has no line, or a line is not a hash.
        """
        if path is None:
            return cls()
        hashes = []
        for number, line in enumerate(read_lines(path), 1):
            if line.startswith("#"):
                continue
            word = line.split()[0]
            if not _HASH.fullmatch(word):  # what it is must not be shown: it may be a token
                raise ConfigError(
                    f"{path}, line {number} of those that are not blank: not the SHA-256 of a token; "
                    'make one with: printf %s "$TOKEN" | sha256sum'
                )
            hashes.append(bytes.fromhex(word))
        if not hashes:
            raise ConfigError(f"{path} holds no hash of a token: nobody could ask anything")
        return cls(hashes)

    @property
    def asked(self) -> bool:
        """Whether a token is needed."""
        return self._hashes is not None

    def check(self, header: str | None) -> None:
        """Check the header ``Authorization: Bearer TOKEN``.

        Raises:
            UnauthorizedError: a token is needed and there is none, or it is not known.
        """
        if self._hashes is None:
            return
        scheme, _, token = (header or "").partition(" ")
        found = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        known = False
        for one in self._hashes:  # all of them, so that the time says nothing
            known |= hmac.compare_digest(found, one)
        if scheme.lower() != "bearer" or not known:
            raise UnauthorizedError("send a token that is known here: Authorization: Bearer TOKEN")


def check_tls(settings: Settings) -> None:
    """Check certificate, key and authorities before anything is loaded.

    Raises:
        ConfigError: one cannot be read, or they do not belong together.
    """
    if settings.tls_cert is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
        if settings.tls_client_ca is not None:
            context.load_verify_locations(settings.tls_client_ca)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"TLS cannot be set up with {settings.tls_cert}, {settings.tls_key}"
            f"{'' if settings.tls_client_ca is None else f' and {settings.tls_client_ca}'}: {error}"
        ) from None


def read_pem(path: Path | None) -> bytes | None:
    """Return the bytes of a PEM file, or None."""
    return None if path is None else path.read_bytes()
