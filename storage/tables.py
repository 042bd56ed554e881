"""Frames and Parquet files: validation against the schemas, on the way in and out."""

import io
from pathlib import Path

import dataframely as dy
import polars as pl
from dataframely.exc import SchemaError, ValidationError

from schemas.errors import StoreError
from schemas.tables import TABLES, Table
from schemas.upgrades import upgraded

COMPRESSION_LEVEL = 3
"""Of zstd; higher ones cost far more time than they save room on token ids."""
_ROW_GROUP = 8192
"""Rows. Groups are written and read in parallel: on two cores in half the time of one group."""


def known_table(name: str) -> Table:
    """Returns the table of a name.

    Raises:
        StoreError: If there is none, naming those that there are.
    """
    if name not in TABLES:
        raise StoreError(f"table {name} is unknown; known tables: {', '.join(TABLES)}")
    return TABLES[name]


def validated(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Returns the frame with the columns of its table, in the schema's order.

    Raises:
        StoreError: If the table is unknown or the frame breaks its schema, naming columns and
            rules.
    """
    schema: type[dy.Schema] = known_table(name).schema
    try:
        return schema.validate(frame)
    except (SchemaError, ValidationError) as error:
        raise StoreError(f"table {name} does not keep its schema: {in_one_line(error)}") from error


def in_one_line(error: SchemaError | ValidationError) -> str:
    """Returns which columns and rules of a schema are broken."""
    # What polars says about its query plan follows after an empty line.
    return " ".join(str(error).partition("\n\n")[0].split())


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """Returns the frame as Parquet. Equal frames give equal bytes.

    The file is made in memory so that a full disk shows as the `OSError` that it is; polars
    would wrap it.
    """
    buffer = io.BytesIO()
    # The writer cuts at the borders of chunks, which depend on how the frame was made.
    frame.rechunk().write_parquet(
        buffer,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        statistics=True,
        row_group_size=_ROW_GROUP,
    )
    return buffer.getvalue()


def without_measured(name: str, frame: pl.DataFrame) -> pl.DataFrame | None:
    """Returns the frame with only what counts as data; null where nothing is measured."""
    measured = known_table(name).measured
    return frame.drop(measured) if measured else None


def check_version(name: str, version: int, uri: str) -> None:
    """Refuses a table that a newer version of this package wrote.

    Raises:
        StoreError: If so, or if the table is unknown.
    """
    newest = known_table(name).version
    if version > newest:
        raise StoreError(
            f"table {uri} was written by a newer version (schema {version}, this one reads up to "
            f"{newest}): upgrade turnledger"
        )


def read_typed(name: str, path: Path, version: int) -> pl.DataFrame:
    """Reads a Parquet file as rows of its table's newest schema.

    Args:
        name: Name of the table.
        path: The file.
        version: Version of the schema that the file was written with; not a newer one.

    Raises:
        StoreError: If it is no Parquet file, its columns are not those of its version, or no
            upgrade leads from that version to the newest.
    """
    try:
        frame = pl.read_parquet(path, hive_partitioning=False, glob=False)
    except pl.exceptions.PolarsError as error:
        raise StoreError(f"{path} is no readable Parquet file: {error}") from error
    if version < known_table(name).version:
        try:
            return upgraded_scan(name, version, frame.lazy(), str(path)).collect()
        except pl.exceptions.PolarsError as error:
            raise StoreError(_other_columns(name, version, str(path))) from error
    if frame.schema != pl.Schema(known_table(name).schema):
        raise StoreError(_other_columns(name, version, str(path)))
    return frame


def upgraded_scan(name: str, version: int, frame: pl.LazyFrame, where: str) -> pl.LazyFrame:
    """Returns rows as rows of their table's newest schema; those that are stay as they are.

    Args:
        name: Name of the table.
        version: Version of the schema that the rows were written with; not a newer one.
        frame: The rows.
        where: Where they are, for messages.

    Raises:
        StoreError: If they are of an older version, and not with its columns, or no upgrade
            leads from it to the newest.
    """
    if version == known_table(name).version:
        return frame
    try:
        return upgraded(name, version, frame)
    except pl.exceptions.PolarsError as error:
        raise StoreError(_other_columns(name, version, where)) from error


def _other_columns(name: str, version: int, where: str) -> str:
    return (
        f"{where} does not have the columns of table {name}, schema {version}: run its stage again"
    )
