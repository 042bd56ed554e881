"""Records of runs, and the lock that keeps two processes from training one run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from schemas.errors import StoreError
from storage.files import disk_errors, replace_json
from storage.layout import Layout, check_run_name

_LOCK_WAIT_S = 0.5
"""Longer than the moment for which a reader of records probes the lock."""


class RunParent(BaseModel):
    """Where a run was branched off."""

    model_config = ConfigDict(frozen=True)

    run: str
    """Name of the run it came from."""
    iteration: int
    """Iteration that was run again."""
    stage: str
    """First stage that was run again."""
    until: str | None = None
    """Last stage that was run again; null for all that depend on the first."""
    overrides: list[str]
    """Changed settings, `section.key=value` each."""


class RunRecord(BaseModel):
    """What is known of a run besides its results."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Name of the run, as in its folder."""
    config: dict[str, Any]
    """Configuration, as JSON."""
    config_digest: str
    """Digest of the configuration."""
    created_at: AwareDatetime
    """When the run was started first, UTC."""
    updated_at: AwareDatetime
    """When the record was saved last, UTC; `Store.save_run` sets it."""
    status: Literal["running", "finished", "failed", "interrupted"]
    """State; a run whose process was killed is told as interrupted."""
    parent: RunParent | None = None
    """Where it was branched off; null for a run of its own."""
    iterations_done: int = 0
    """Number of iterations whose stages are all stored."""
    message: str | None = None
    """Why it failed, in one line."""


def save_run(layout: Layout, record: RunRecord) -> RunRecord:
    """Replaces the record of a run in one atomic step; see `Store.save_run`."""
    saved = record.model_copy(update={"updated_at": datetime.now(UTC)})
    path = layout.run_file(record.name)
    with disk_errors("write", path):
        replace_json(path, saved.model_dump(mode="json"))
    return saved


def read_run(layout: Layout, name: str) -> RunRecord:
    """Reads the record of a run; see `Store.run_record`."""
    path = layout.run_file(name)
    if not path.exists():
        known = ", ".join(_recorded(layout)) or "none"
        raise StoreError(f"run {name} is not in {layout.root}; known runs: {known}")
    with disk_errors("read", path):
        content = path.read_bytes()
    try:
        record = RunRecord.model_validate_json(content)
    except ValidationError as error:
        raise StoreError(f"damaged run record {path}: {error.error_count()} problems") from error
    if record.status == "running" and not _is_locked(layout, name):
        return record.model_copy(update={"status": "interrupted"})
    return record


def read_runs(layout: Layout) -> list[RunRecord]:
    """Reads all records, sorted by name; see `Store.runs`."""
    return [read_run(layout, name) for name in _recorded(layout)]


@contextmanager
def lock_run(layout: Layout, name: str) -> Iterator[None]:
    """Holds a run for this process; see `Store.lock_run`."""
    path = layout.run_lock(check_run_name(name))
    holder = layout.run_lock_holder(name)
    with disk_errors("lock", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=_LOCK_WAIT_S)
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"run {name} is being trained by another process ({_holder(layout, name)}): "
                "wait for it, stop it, or take another run name"
            ) from error
    try:
        with disk_errors("lock", path):
            holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        with suppress(OSError):  # the file only serves the message above
            holder.unlink(missing_ok=True)
        lock.release()


def _recorded(layout: Layout) -> list[str]:
    return [name for name in layout.run_names() if layout.run_file(name).exists()]


def _is_locked(layout: Layout, name: str) -> bool:
    path = layout.run_lock(name)
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except PermissionError:  # a reader without write access cannot probe; believe the record
        return True
    lock.release()
    return False


def _holder(layout: Layout, name: str) -> str:
    try:
        return f"pid {int(layout.run_lock_holder(name).read_text())}"
    except (OSError, ValueError):  # it is just starting or just ending
        return "pid unknown"
