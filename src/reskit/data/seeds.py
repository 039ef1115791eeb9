"""Randomness by key: the same key gives the same draws, whatever was drawn before."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed that is a pure function of `key`.

    A shared generator would make a resumed run depend on everything drawn earlier and on which worker
    drew it; a key such as ``(seed, epoch, index)`` makes neither matter.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
