"""The manifest beside every result: what it is, what made it, and how to verify it."""

import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from schemas.refs import CheckpointRef, Ref, StageOutput, TableRef
from storage.digests import digest_of_files, file_digest, files_below
from storage.fingerprints import Fingerprint
from storage.layout import MANIFEST_FILE, POLICY_FOLDER, Slot


class StoredFile(BaseModel):
    """One file of a result."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    """Size."""
    digest: str
    """SHA-256 of the content, hexadecimal."""


class StoredTable(BaseModel):
    """What a table's reference says beyond its file."""

    model_config = ConfigDict(frozen=True)

    rows: int
    """Number of rows."""
    schema_version: int
    """Version of the table's schema when it was written."""


class Environment(BaseModel):
    """What computed the result. Names no host and no user."""

    model_config = ConfigDict(frozen=True)

    turnledger: str
    python: str
    cpus: int | None
    libraries: dict[str, str]

    @classmethod
    def current(cls, libraries: Mapping[str, str]) -> "Environment":
        """Returns this process's environment, with the library versions that are handed in."""
        own = {name: _version(name) for name in ("dataframely", "polars")}
        return cls(
            turnledger=_version("turnledger"),
            python=platform.python_version(),
            cpus=os.cpu_count(),
            libraries=dict(sorted({**own, **libraries}.items())),
        )


class Manifest(BaseModel):
    """Describes one result. It is written last: a folder with a manifest is whole."""

    model_config = ConfigDict(frozen=True)

    slot: Slot
    """Where the result was made or adopted to; it may have been replaced since."""
    fingerprint: Fingerprint
    """What decided the result."""
    fingerprint_digest: str
    """Digest of the fingerprint, for those who read the file without this package."""
    tables: dict[str, StoredTable]
    """Table name to description; the file is `<name>.parquet`."""
    policy_version: int | None
    """Version of the policy in the folder `policy`; null without one."""
    files: dict[str, StoredFile]
    """Relative name to size and digest of every file but the manifest."""
    parents: list[Ref]
    """The inputs, as they were named when the result was computed."""
    created_at: AwareDatetime
    """When the result was computed, UTC."""
    seconds: float
    """Wall time that computing it took."""
    adopted_from: str | None = None
    """Folder of the result whose files this one shares; null if it was computed here."""
    adopted_at: AwareDatetime | None = None
    """When it was adopted, UTC."""
    environment: Environment
    """What computed the result."""

    def output(self, uri: str) -> StageOutput:
        """Returns the references to this result as it lies in the folder `uri`."""
        tables = {
            name: TableRef(
                uri=f"{uri}/{name}.parquet",
                name=name,
                digest=self.files[f"{name}.parquet"].digest,
                rows=table.rows,
                schema_version=table.schema_version,
            )
            for name, table in self.tables.items()
        }
        if self.policy_version is None:
            return StageOutput(tables=tables)
        policy_files = {
            name.removeprefix(f"{POLICY_FOLDER}/"): file.digest
            for name, file in self.files.items()
            if name.startswith(f"{POLICY_FOLDER}/")
        }
        checkpoint = CheckpointRef(
            uri=f"{uri}/{POLICY_FOLDER}",
            name=POLICY_FOLDER,
            digest=digest_of_files(policy_files),
            policy_version=self.policy_version,
        )
        return StageOutput(tables=tables, checkpoint=checkpoint)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a result's folder, before its files are verified."""

    manifest: Manifest | None
    """Null if the folder is missing or its manifest cannot be used."""
    problem: str | None
    """What is wrong with the manifest; null if it can be used or the folder is missing."""


def inspect(folder: Path) -> Inspection:
    """Reads the manifest of a folder; an unusable one is told, not raised."""
    if not folder.is_dir():
        return Inspection(None, None)
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        return Inspection(None, f"missing file {MANIFEST_FILE}")
    except OSError as error:
        return Inspection(None, f"unreadable file {MANIFEST_FILE}: {error.strerror}")
    try:
        return Inspection(Manifest.model_validate_json(content), None)
    except ValidationError:
        return Inspection(None, f"damaged file {MANIFEST_FILE}")


def content_problem(folder: Path, manifest: Manifest) -> str | None:
    """Returns what is wrong with the files of a result, or null if every byte is right."""
    for name, stored in sorted(manifest.files.items()):
        path = folder / name
        try:
            is_right = path.stat().st_size == stored.bytes and file_digest(path) == stored.digest
        except (FileNotFoundError, NotADirectoryError):
            return f"missing file {name}"
        except OSError as error:
            return f"unreadable file {name}: {error.strerror}"
        if not is_right:
            return f"damaged file {name}"
    for name in files_below(folder):
        if name.startswith(f"{POLICY_FOLDER}/") and name not in manifest.files:
            return f"unexpected file {name}"
    return None


@functools.cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
