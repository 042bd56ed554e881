"""Whether a place is a store of this version, or may become one."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import StoreError
from storage.layout import STORE_FILE, STORE_FORMAT, Slot, runs_among


def check_format(content: bytes, store: str) -> None:
    """Refuses a store whose layout this version cannot read.

    Args:
        content: Content of its `store.json`.
        store: Its address, for messages.

    Raises:
        StoreError: If so.
    """
    try:
        written = json.loads(content)["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"damaged file {store}/{STORE_FILE}: it says no store format") from error
    if isinstance(written, int) and written < STORE_FORMAT:
        raise StoreError(
            f"store {store} has format {written} of an early version, this one has "
            f"{STORE_FORMAT}: train again in another folder"
        )
    if written != STORE_FORMAT:
        raise StoreError(
            f"store {store} has format {written}, this version reads {STORE_FORMAT}: "
            "upgrade turnledger"
        )


def refuse_lost_format(entries: Sequence[str], store: str) -> None:
    """Refuses a place that has lost its `store.json`, and says how to mend it.

    Args:
        entries: Names of the files and folders there.
        store: Its address, for messages.

    Raises:
        StoreError: If there are runs.
    """
    if runs_among(entries):
        raise StoreError(
            f"missing file {store}/{STORE_FILE}, but there are runs: if they are of this version, "
            f'write {{"format": {STORE_FORMAT}}} into it'
        )


def entries_of(root: Path) -> list[str]:
    """Returns the names in a folder, without those of a store that is being made."""
    if not root.exists():
        return []
    return [p.name for p in root.iterdir() if not p.name.startswith(f".{STORE_FILE}.")]


def refuse_place(root: Path, entries: Sequence[str], *, create: bool) -> None:
    """Refuses a folder without `store.json` that is no place for a store.

    Args:
        root: The folder.
        entries: What is in it, as `entries_of` says.
        create: Whether a store may be made there.

    Raises:
        StoreError: If so.
    """
    refuse_lost_format(entries, str(root))
    if entries:
        raise StoreError(f"{root} is no store and not empty: name another folder")
    if not create:
        raise StoreError(
            f"no store at {root}: check --store or TURNLEDGER_STORE; `turnledger train --store "
            f"{shlex.quote(str(root))}` makes one"
        )
    refuse_partitions(root)


def refuse_partitions(root: Path) -> None:
    """Refuses a place for a store whose own path looks like a partition of it.

    Raises:
        StoreError: If so.
    """
    for part in root.parts:
        if part.partition("=")[0] in {*Slot.model_fields} and "=" in part:
            raise StoreError(
                f"{root} cannot hold a store: readers of Parquet would take the folder {part} "
                "for a partition"
            )
