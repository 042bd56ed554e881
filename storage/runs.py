"""Records of runs: what is known of a run besides its results."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from schemas.config import RunConfig
from schemas.errors import StoreError, StoreUnavailable
from storage.backend import Backend
from storage.digests import json_digest
from storage.layout import record_uri


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
    imported_from: str | None = None
    """Name of the file whose trajectories it holds; null for a run that sampled its own."""
    iterations_done: int = 0
    """Number of iterations whose stages are all stored."""
    message: str | None = None
    """Why it failed, in one line."""

    @classmethod
    def new(cls, name: str, config: RunConfig, **fields: Any) -> "RunRecord":
        """Returns the record of a run that begins now.

        Args:
            name: Name of the run.
            config: Its settings.
            fields: `status`, and what else is to be set.
        """
        now = datetime.now(UTC)
        values = config.model_dump(mode="json")
        return cls(
            name=name,
            config=values,
            config_digest=json_digest(values),
            created_at=now,
            updated_at=now,
            **fields,
        )


def save_run(backend: Backend, record: RunRecord) -> RunRecord:
    """Replaces the record of a run in one atomic step; see `Store.save_run`."""
    with backend.errors("write", record_uri(record.name)):
        known, _ = _records(backend)
        saved = record.model_copy(update={"updated_at": _after(known)})
        backend.write_record(record.name, saved.model_dump(mode="json"))
        # What has a record is whole, also under a name that an import failed to bring in.
        if backend.is_incomplete(record.name):
            backend.unmark_incomplete(record.name)
    return saved


def read_run(backend: Backend, name: str) -> RunRecord:
    """Reads the record of a run; see `Store.run_record`."""
    record = _record(backend, name)
    if record is None:
        raise unknown_run(backend, name)
    return _with_state(backend, record)


def unknown_run(backend: Backend, name: str) -> StoreError:
    """Returns the error for a run that has no record; it names those that have one."""
    known = ", ".join(recorded(backend)) or "none"
    return StoreError(f"run {name} is not in {backend.url}; known runs: {known}")


def read_runs(backend: Backend) -> tuple[list[RunRecord], dict[str, str]]:
    """Reads all records, sorted by name; those that cannot be read by name, with the reason."""
    records, damaged = _records(backend)
    return [_with_state(backend, record) for record in records], damaged


def recorded(backend: Backend) -> list[str]:
    """Returns the names of the runs that have a record, readable or not, sorted."""
    return [name for name in backend.runs() if backend.read_record(name) is not None]


def _records(backend: Backend) -> tuple[list[RunRecord], dict[str, str]]:
    records, damaged = [], {}
    for name in backend.runs():
        try:
            record = _record(backend, name)
        except StoreUnavailable:  # says nothing about this record
            raise
        except StoreError as error:
            damaged[name] = str(error)
            continue
        if record is not None:
            records.append(record)
    return records, damaged


def _record(backend: Backend, name: str) -> RunRecord | None:
    uri = record_uri(name)
    with backend.errors("read", uri):
        content = backend.read_record(name)
    if content is None:
        return None
    try:
        return RunRecord.model_validate_json(content)
    except ValidationError as error:
        raise StoreError(
            f"damaged run record {backend.address(uri)}: put it back from a copy, or "
            f"`turnledger drop {name}`"
        ) from error


def _with_state(backend: Backend, record: RunRecord) -> RunRecord:
    with backend.errors("read", record_uri(record.name)):
        is_left = record.status == "running" and not backend.is_locked(record.name)
    if not is_left:
        return record
    # It may have ended between the two looks: then its record says how.
    last = _record(backend, record.name) or record
    return last.model_copy(update={"status": "interrupted"}) if last == record else last


def _after(records: list[RunRecord]) -> datetime:
    """Returns the time, never before that of a record: clocks are set back, and hosts differ.

    So the record that was saved last stays the one with the latest time.
    """
    now = datetime.now(UTC)
    newest = max((record.updated_at for record in records), default=now)
    return max(now, newest + timedelta(microseconds=1))
