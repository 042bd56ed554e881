"""Files of a result, written into a staging folder and described on the way."""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from storage.digests import files_below
from storage.layout import POLICY_FOLDER
from storage.manifests import StoredTable
from storage.tables import known_table, parquet_bytes, without_measured
from storage.verification import StoredFile, described_bytes, described_file


def write_tables(
    folder: Path, frames: Mapping[str, pl.DataFrame]
) -> tuple[dict[str, StoredFile], dict[str, StoredTable]]:
    """Writes each table as `<name>.parquet`.

    Args:
        folder: Where to.
        frames: Table name to a frame that keeps the table's schema.

    Returns:
        The files by name, and the tables by name.

    Raises:
        OSError: If a file cannot be written.
    """
    files, tables = {}, {}
    for name, frame in frames.items():
        content = parquet_bytes(frame)
        (folder / f"{name}.parquet").write_bytes(content)
        files[f"{name}.parquet"] = described_bytes(content)
        counting = without_measured(name, frame)
        tables[name] = StoredTable(
            rows=frame.height,
            schema_version=known_table(name).version,
            content=None if counting is None else described_bytes(parquet_bytes(counting)).digest,
        )
    return files, tables


def write_policy(folder: Path, writer: Callable[[Path], None]) -> dict[str, StoredFile]:
    """Has a policy written into its folder; returns its files by their name in the result.

    Raises:
        OSError: If a file cannot be written.
    """
    policy = folder / POLICY_FOLDER
    policy.mkdir()
    writer(policy)
    return {
        f"{POLICY_FOLDER}/{file}": described_file(policy / file) for file in files_below(policy)
    }
