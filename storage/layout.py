"""Where things lie in a store: the one place that knows its paths.

store.json
index/<fp[:2]>/<fp>.json       where a result with this fingerprint was last seen; a hint
replaced/<fp>/<number>/        results pushed out of their slot by a newer one
tmp/                           results being written
run=<run>/run.json             the run's record; beside it run.lock and run.pid
run=<run>/run.dropped.json     the record of a run that was dropped
run=<run>/run.incomplete       marks what is no whole run: of an import, or a removal, not ended
run=<run>/accuracy.png         picture of the quickstart
run=<run>/iteration=0003/split=train/stage=rollout/shard=00/turn=0/   a slot
    turns.parquet
    policy/                    a checkpoint, where the stage makes one
    manifest.json

A `uri` is a place relative to the store, with `/` between its parts. In a bucket a result is its
manifest alone; the bytes of all files, and the list of files of a checkpoint, are stored once:

blobs/<d[:2]>/<digest>         bytes, named by their SHA-256
run=<run>/lease.json           who trains the run
collection.json                who removes garbage
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.errors import StoreError

STORE_FORMAT = 2
"""The layout of a store that this version reads and writes.

Format 1, of the first weeks, had one slot a batch for rewards, and no content digests.
"""
STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.json"
POLICY_FOLDER = "policy"
REPLACED = "replaced"
COLLECTION_LEASE = "collection.json"
PICTURE_FILE = "accuracy.png"

SPLITS = ("train", "evaluation")
"""Parts of an iteration that every run has; a benchmark is a part under its own name."""
SPLIT_NAME = "[a-z][a-z0-9_]{0,39}"
"""Names of parts that can be used, as a pattern."""
Split = Annotated[str, Field(pattern=f"^{SPLIT_NAME}$")]

RUN_NAME = "[A-Za-z0-9._-]{1,64}"
"""Names of runs that can be used, as a pattern."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def check_run_name(name: str) -> str:
    """Returns the name of a run if it can be used.

    Raises:
        StoreError: If it is empty, longer than 64 or holds other characters than allowed.
    """
    if not re.fullmatch(RUN_NAME, name):
        raise StoreError(
            f"run name {name!r} cannot be used: take 1 to 64 letters, digits, dots, dashes "
            "or underscores"
        )
    return name


def runs_among(names: Iterable[str]) -> list[str]:
    """Returns the runs that have one of these names of folders, sorted; others are not ours."""
    runs = (name.removeprefix("run=") for name in names if name.startswith("run="))
    return sorted(run for run in runs if re.fullmatch(RUN_NAME, run))


def is_address(path: Path) -> bool:
    """Says whether a path was meant as an address, such as `s3://bucket`; it lost a slash then."""
    return _SCHEME.fullmatch("".join(path.parts[:1])) is not None


def check_uri(uri: str) -> str:
    """Returns a `uri` if it stays in its store.

    Raises:
        StoreError: If it points out of it.
    """
    relative = PurePosixPath(uri)
    if relative.is_absolute() or ".." in relative.parts:
        raise StoreError(f"reference {uri} points out of the store")
    return uri


def index_uri(fingerprint: str) -> str:
    """Returns where the hint for a fingerprint is."""
    return f"index/{fingerprint[:2]}/{fingerprint}.json"


def replaced_uri(fingerprint: str) -> str:
    """Returns where the replaced results of a fingerprint are."""
    return f"{REPLACED}/{fingerprint}"


def blob_uri(digest: str) -> str:
    """Returns where the bytes of a digest are in a bucket."""
    return f"blobs/{digest[:2]}/{digest}"


def run_uri(run: str) -> str:
    """Returns where everything of a run is.

    Raises:
        StoreError: If the name cannot be used.
    """
    return f"run={check_run_name(run)}"


def iteration_uri(run: str, iteration: int | None) -> str:
    """Returns what the results of one iteration of a run are below; of a whole run without one.

    Raises:
        StoreError: If the name of the run cannot be used.
    """
    return run_uri(run) if iteration is None else f"{run_uri(run)}/iteration={iteration:04d}"


def lease_uri(run: str) -> str:
    """Returns where a bucket tells who trains a run."""
    return f"{run_uri(run)}/lease.json"


def record_uri(run: str) -> str:
    """Returns where the record of a run is."""
    return f"{run_uri(run)}/run.json"


class Slot(BaseModel):
    """The place of one stage run's output: at most one result is in it at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    """Name of the run."""
    iteration: int = Field(ge=0)
    """Iteration, from 0."""
    split: Split
    """Whether the output belongs to training, to an evaluation, or to which benchmark."""
    stage: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the stage."""
    shard: int | None = Field(None, ge=0)
    """Part of the batch; null for a stage that takes the whole batch."""
    turn: int | None = Field(None, ge=0)
    """Turn, for the stages that run once a turn; null for the others."""

    @field_validator("run")
    @classmethod
    def _usable_run(cls, value: str) -> str:
        return check_run_name(value)

    @property
    def uri(self) -> str:
        """Folder of the slot relative to the store, with `/` between the parts."""
        parts = [
            iteration_uri(self.run, self.iteration),
            f"split={self.split}",
            f"stage={self.stage}",
        ]
        if self.shard is not None:
            parts.append(f"shard={self.shard:02d}")
        if self.turn is not None:
            parts.append(f"turn={self.turn}")
        return "/".join(parts)


def dropped_record_uri(run: str) -> str:
    """Returns where the record of a run is once the run was dropped."""
    return f"{run_uri(run)}/run.dropped.json"


def incomplete_uri(run: str) -> str:
    """Returns where a run is marked whose import, or whose removal, has not ended."""
    return f"{run_uri(run)}/run.incomplete"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of a store in a folder."""

    root: Path

    @property
    def store_file(self) -> Path:
        """Says that the folder is a store, and of which format."""
        return self.root / STORE_FILE

    @property
    def tmp(self) -> Path:
        """Holds what is being written; on the store's own file system, so renames are atomic."""
        return self.root / "tmp"

    @property
    def publish_lock(self) -> Path:
        """Held for the moment in which a finished result takes its slot."""
        return self.tmp / "publish.lock"

    def resolve(self, uri: str) -> Path:
        """Returns the path of a `uri` relative to the store.

        Raises:
            StoreError: If the `uri` points out of the store.
        """
        return self.root / check_uri(uri)

    def uri(self, path: Path) -> str:
        """Returns a path inside the store as `uri`."""
        return path.relative_to(self.root).as_posix()

    def index_file(self, fingerprint: str) -> Path:
        """Returns where the hint for a fingerprint is."""
        return self.root / index_uri(fingerprint)

    def replaced(self, fingerprint: str) -> Path:
        """Returns the folder of the replaced results of a fingerprint."""
        return self.root / replaced_uri(fingerprint)

    def run_folder(self, run: str) -> Path:
        """Returns the folder of a run.

        Raises:
            StoreError: If the name cannot be used.
        """
        return self.root / run_uri(run)

    def run_file(self, run: str) -> Path:
        """Returns where the record of a run is."""
        return self.root / record_uri(run)

    def dropped_run_file(self, run: str) -> Path:
        """Returns where the record of a run is once the run was dropped."""
        return self.root / dropped_record_uri(run)

    def run_lock(self, run: str) -> Path:
        """Returns the file that a training process holds locked."""
        return self.run_folder(run) / "run.lock"

    def run_lock_holder(self, run: str) -> Path:
        """Returns the file in which the holder of the lock tells its process id."""
        return self.run_folder(run) / "run.pid"

    def run_names(self) -> list[str]:
        """Returns the names of all runs that have a folder, sorted."""
        return runs_among(p.name for p in self.root.glob("run=*") if p.is_dir())
