"""Whether stored bytes are still those that were written: every one of them, or a sample."""

import hashlib
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

Verify = Literal["full", "sampled"]
"""`full` reads every byte. `sampled` reads small files whole, and of larger ones a few blocks."""

BLOCK_BYTES = 8 << 20
"""Unit of sampled verification; files up to this size are always verified whole."""
SAMPLED_BLOCKS = 4
"""Blocks of a larger file that one sampled verification reads, drawn anew each time."""


class StoredFile(BaseModel):
    """One file of a result."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    """Size."""
    digest: str
    """SHA-256 of the content, hexadecimal."""
    blocks: tuple[str, ...] | None = None
    """SHA-256 of each block of `BLOCK_BYTES`; null for a file that fits in one."""


def described_bytes(content: bytes) -> StoredFile:
    """Returns size and digests of a file whose content is in memory."""
    whole = hashlib.sha256(content).hexdigest()
    blocks = None
    if len(content) > BLOCK_BYTES:
        view = memoryview(content)
        starts = range(0, len(content), BLOCK_BYTES)
        blocks = tuple(hashlib.sha256(view[s : s + BLOCK_BYTES]).hexdigest() for s in starts)
    return StoredFile(bytes=len(content), digest=whole, blocks=blocks)


def described_file(path: Path) -> StoredFile:
    """Returns size and digests of a file, reading it once.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= BLOCK_BYTES:
            return described_bytes(file.read())
        whole, blocks = hashlib.sha256(), []
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
            blocks.append(hashlib.sha256(block).hexdigest())
    return StoredFile(bytes=size, digest=whole.hexdigest(), blocks=tuple(blocks))


def is_right(path: Path, stored: StoredFile, verify: Verify) -> bool:
    """Says whether a file has the bytes that it was stored with.

    Raises:
        OSError: If the file cannot be read.
    """
    if path.stat().st_size != stored.bytes:
        return False
    with path.open("rb") as file:
        if verify == "sampled" and stored.blocks is not None:
            for index, digest in drawn_blocks(stored.blocks).items():
                file.seek(index * BLOCK_BYTES)
                if hashlib.sha256(file.read(BLOCK_BYTES)).hexdigest() != digest:
                    return False
            return True
        return hashlib.file_digest(file, "sha256").hexdigest() == stored.digest


def drawn_blocks(blocks: tuple[str, ...]) -> Mapping[int, str]:
    """Draws the blocks to read: index to digest. Not seeded, so every look sees others."""
    count = min(SAMPLED_BLOCKS, len(blocks))
    drawn = random.SystemRandom().sample(range(len(blocks)), count)
    return {index: blocks[index] for index in drawn}
