"""The manifest beside every result: what it is, what made it, and how to verify it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, field_validator

from schemas.refs import CheckpointRef, Ref, StageOutput, TableRef
from storage.digests import digest_of_files, files_below, json_digest
from storage.environment import Environment
from storage.fingerprints import Fingerprint
from storage.layout import MANIFEST_FILE, POLICY_FOLDER, Slot
from storage.verification import StoredFile, Verify, is_right

_POLICY_START = f"{POLICY_FOLDER}/"


class StoredTable(BaseModel):
    """What a table's reference says beyond its file."""

    model_config = ConfigDict(frozen=True)

    rows: int
    """Number of rows."""
    schema_version: int
    """Version of the table's schema when it was written."""
    content: str | None = None
    """Digest of the table without its measured columns; null where it is that of the file."""


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
    released: dict[str, StoredFile] = {}
    """The same of a policy's files that are not kept any more; see `storage.releases`."""
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

    @field_validator("files", "released")
    @classmethod
    def _inside(cls, files: dict[str, StoredFile]) -> dict[str, StoredFile]:
        """Manifests are imported from elsewhere: no name may lead out of the result's folder."""
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"file {name} is outside")
        return files

    @property
    def policy_files(self) -> dict[str, StoredFile]:
        """Files of the checkpoint, by name within it; empty without one."""
        return _of_policy(self.files)

    @property
    def policy_digests(self) -> dict[str, str]:
        """Digests of the checkpoint's files, kept or not, by name within it."""
        files = _of_policy(self.files) | _of_policy(self.released)
        return {name: file.digest for name, file in files.items()}

    def without_policy(self) -> "Manifest":
        """Returns the manifest once the files of the policy are released."""
        released = {n: f for n, f in self.files.items() if n.startswith(_POLICY_START)}
        files = {n: f for n, f in self.files.items() if n not in released}
        return self.model_copy(update={"files": files, "released": released})

    def output(self, uri: str) -> StageOutput:
        """Returns the references to this result as it lies at `uri`."""
        tables = {name: self._table_ref(uri, name) for name in self.tables}
        if self.policy_version is None:
            return StageOutput(tables=tables)
        digest = digest_of_files(self.policy_digests)
        checkpoint = CheckpointRef(
            uri=f"{uri}/{POLICY_FOLDER}",
            name=POLICY_FOLDER,
            digest=digest,
            content=digest,
            policy_version=self.policy_version,
        )
        return StageOutput(tables=tables, checkpoint=checkpoint)

    def _table_ref(self, uri: str, name: str) -> TableRef:
        table, file = self.tables[name], self.files[f"{name}.parquet"]
        return TableRef(
            uri=f"{uri}/{name}.parquet",
            name=name,
            digest=file.digest,
            content=table.content or file.digest,
            rows=table.rows,
            schema_version=table.schema_version,
        )


def _of_policy(files: dict[str, StoredFile]) -> dict[str, StoredFile]:
    return {
        n.removeprefix(_POLICY_START): f for n, f in files.items() if n.startswith(_POLICY_START)
    }


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is at a result's place, before its files are verified."""

    manifest: Manifest | None
    """Null if there is nothing or the manifest cannot be used."""
    problem: str | None
    """What is wrong with the manifest; null if it can be used or there is nothing."""


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
    return parsed(content)


def written(manifest: Manifest) -> bytes:
    """Returns a manifest as it is stored: JSON, with a digest of all the rest."""
    values = manifest.model_dump(mode="json")
    sealed = {**values, "digest": json_digest(values)}
    return (json.dumps(sealed, indent=2, ensure_ascii=False) + "\n").encode()


def parsed(content: bytes) -> Inspection:
    """Reads a manifest from its bytes; unusable ones are told, not raised."""
    try:
        values = json.loads(content)
        if isinstance(values, dict) and values.pop("digest", None) == json_digest(values):
            return Inspection(Manifest.model_validate(values), None)
    except (ValueError, ValidationError):
        pass
    return Inspection(None, f"damaged file {MANIFEST_FILE}")


def content_problem(
    folder: Path,
    manifest: Manifest,
    verify: Verify = "full",
    *,
    concerns: Callable[[str], bool] = lambda _: True,
) -> str | None:
    """Returns what is wrong with the files of a result, or null if they are right.

    Args:
        folder: Folder of the result.
        manifest: Its manifest.
        verify: Whether to read every byte.
        concerns: Says of a relative name whether to look at that file.
    """
    for name, stored in sorted(manifest.files.items()):
        if not concerns(name):
            continue
        try:
            right = is_right(folder / name, stored, verify)
        except (FileNotFoundError, NotADirectoryError):
            return f"missing file {name}"
        except OSError as error:
            return f"unreadable file {name}: {error.strerror}"
        if not right:
            return f"damaged file {name}"
    return unexpected_file(folder, manifest, concerns)


def unexpected_file(
    folder: Path, manifest: Manifest, concerns: Callable[[str], bool] = lambda _: True
) -> str | None:
    """Returns which file makes another policy of a result than was stored, or null."""
    for name in files_below(folder / POLICY_FOLDER):
        # A release that was killed leaves some that are not kept.
        if name not in manifest.policy_digests and concerns(f"{POLICY_FOLDER}/{name}"):
            return f"unexpected file {POLICY_FOLDER}/{name}"
    return None


def bare(refs: Sequence[Ref]) -> list[Ref]:
    """Returns references without what tables and checkpoints add."""
    return [Ref(**ref.model_dump(include={*Ref.model_fields})) for ref in refs]
