import os
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_builders import fingerprint, slot, updates

from schemas.errors import StoreError
from schemas.refs import CheckpointRef
from storage import Store, Verify
from storage.verification import (
    BLOCK_BYTES,
    SAMPLED_BLOCKS,
    described_bytes,
    described_file,
    is_right,
)

MODES: list[Verify] = ["full", "sampled"]
LARGE = BLOCK_BYTES * (SAMPLED_BLOCKS + 2) + 17
"""Bytes of a file of which one sampled verification reads a part."""


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    flip_bits(path, [path.stat().st_size // 2])


def flip_bits(path: Path, positions: list[int]) -> None:
    with path.open("r+b") as file:
        for position in positions:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))


def put_file(store: Store, size: int) -> tuple[CheckpointRef, Path]:
    """Stores a policy of one file."""
    output = store.write(
        slot(),
        fingerprint(),
        tables={"updates": updates()},
        checkpoint_writer=lambda folder: (folder / "w").write_bytes(os.urandom(size)) and None,
        policy_version=1,
        seconds=0,
        parents=[],
    )
    assert output.checkpoint is not None
    return output.checkpoint, store.root / slot().uri / "policy" / "w"


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES])
def test_a_file_is_described_alike_from_memory_and_from_disk(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    stored = described_file(tmp_path / "f")
    assert stored == described_bytes(content)
    assert stored.bytes == size
    assert (stored.blocks is None) == (size <= BLOCK_BYTES)
    assert all(is_right(tmp_path / "f", stored, mode) for mode in MODES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fault", "size"), [(flip_a_bit, 5000), (truncate, 5000)])
def test_damage_of_a_small_file_is_found(
    store: Store, mode: Verify, fault: Callable[[Path], None], size: int
) -> None:
    ref, path = put_file(store, size)
    fault(path)
    opened = Store.open(store.url, verify=mode)
    assert opened.find(slot(), fingerprint()).reason == "damaged file policy/w"
    with pytest.raises(StoreError, match="damaged file policy/w"):
        opened.path(ref)


def test_damage_of_a_table_is_found_by_a_sample(store: Store) -> None:
    put_file(store, 1)
    opened = Store.open(store.url, verify="sampled")
    output = opened.find(slot(), fingerprint()).output
    assert output is not None
    flip_a_bit(store.root / output.tables["updates"].uri)
    with pytest.raises(StoreError, match=r"damaged file updates\.parquet"):
        opened.read(output.tables["updates"])


def test_a_sample_finds_a_large_file_cut_by_a_byte(store: Store) -> None:
    _, path = put_file(store, LARGE)
    truncate(path)
    opened = Store.open(store.url, verify="sampled")
    assert opened.find(slot(), fingerprint()).reason == "damaged file policy/w"


def test_a_large_file_is_verified_whole_or_by_blocks(store: Store) -> None:
    """One flipped bit is always found by the one; damage in every block also by the other."""
    ref, path = put_file(store, LARGE)
    sampled = Store.open(store.url, verify="sampled")
    assert store.path(ref) == sampled.path(ref)
    flip_bits(path, [0])
    assert store.find(slot(), fingerprint()).reason == "damaged file policy/w"
    flip_bits(path, list(range(1, LARGE, BLOCK_BYTES)))
    assert sampled.find(slot(), fingerprint()).reason == "damaged file policy/w"
    with pytest.raises(StoreError, match="damaged file policy/w"):
        sampled.path(ref)


def test_a_sample_reads_only_a_part_of_a_large_file(tmp_path: Path) -> None:
    """With one of all blocks damaged, some looks find it and some do not."""
    path = tmp_path / "f"
    path.write_bytes(os.urandom(LARGE))
    stored = described_file(path)
    flip_bits(path, [0])
    # 7 blocks, 4 drawn: the odds that 60 looks all agree are below one in 10^14.
    assert {is_right(path, stored, "sampled") for _ in range(60)} == {True, False}
