"""Seeds by name: every random choice has its own stream, so that none depends on how often another was asked."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """A 63-bit seed for a stream named by `parts`, the same on every machine and in every process."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
