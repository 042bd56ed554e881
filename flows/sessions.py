"""Sessions: what surrounds a flow. Checks before it, the run's record and lock around it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from schemas.config import RunConfig, changed_keys, override_config
from schemas.errors import ConfigError, PolicyError, ProblemFileError, TurnledgerError
from storage import RunParent, RunRecord, Store
from storage.digests import json_digest

FREE_TO_CHANGE = ("iterations", "compute.", "execution.workers", "evaluation.every")
"""Settings that a run may be continued with: they decide how far and how, not what."""


def check_inputs(config: RunConfig) -> None:
    """Refuses what would fail later, before anything is started.

    Raises:
        ProblemFileError: If a problem file is missing.
        PolicyError: If the policy folder is no model folder.
        ConfigError: If torch cannot use the device.
        ExecutorError: If code cannot be isolated on this machine.
    """
    for key, path in (
        ("problems.path", config.problems.path),
        ("evaluation.path", config.evaluation.path),
    ):
        if path is not None and not Path(path).exists():
            raise ProblemFileError(f"{key}: {path} is missing")
    folder = config.policy.path
    if folder is not None and not (Path(folder) / "config.json").is_file():
        raise PolicyError(f"policy.path: {folder} is no model folder: config.json is missing")
    _check_device(config.compute.device)
    from flows.resources import executor_of

    executor_of(config.execution)


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"compute.device: torch cannot use {device} here: {reason}") from error


def default_run_name(config: RunConfig) -> str:
    """Names a run by what it computes, so that the same command finds the same run."""
    return f"train-{json_digest(_deciding(config))[:8]}"


def branch_name(store: Store, source: str, parent: RunParent, config: RunConfig) -> str:
    """Returns the branch that already holds this rerun, or the first free name `source.N`."""
    digest = json_digest(config.model_dump(mode="json"))
    taken = {record.name: record for record in store.runs()}
    for record in taken.values():
        if record.parent == parent and record.config_digest == digest:
            return record.name
    number = 1
    while f"{source}.{number}" in taken:
        number += 1
    return f"{source}.{number}"


def branch_config(
    store: Store, source: str, stage: str, overrides: Sequence[str]
) -> tuple[RunConfig, RunConfig]:
    """Returns the settings of a run and those of a branch of it."""
    old = RunConfig.model_validate(store.run_record(source).config)
    section = stage if stage in RunConfig.model_fields else None
    return old, override_config(old, overrides, section=section)


@contextmanager
def session(
    store: Store, run: str, config: RunConfig, *, parent: RunParent | None = None
) -> Iterator[RunRecord]:
    """Holds a run for the time of a flow and keeps its record true.

    Raises:
        ConfigError: If the run exists with other settings.
        StoreError: If another process holds the run.
    """
    with store.lock_run(run):
        record = _record(store, run, config, parent)
        store.save_run(record)
        try:
            yield record
        except KeyboardInterrupt:
            _close(store, run, "interrupted", None)
            raise
        except BaseException as error:
            message = (str(error).splitlines() or [type(error).__name__])[0]
            _close(store, run, "failed", message)
            raise
        _close(store, run, "finished", None)


def _record(store: Store, run: str, config: RunConfig, parent: RunParent | None) -> RunRecord:
    now = datetime.now(UTC)
    values = config.model_dump(mode="json")
    known = {record.name: record for record in store.runs()}.get(run)
    if known is None:
        return RunRecord(
            name=run,
            config=values,
            config_digest=json_digest(values),
            created_at=now,
            updated_at=now,
            status="running",
            parent=parent,
        )
    changed = {
        key: pair
        for key, pair in changed_keys(RunConfig.model_validate(known.config), config).items()
        if not key.startswith(FREE_TO_CHANGE)
    }
    if changed:
        told = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"run {run} was made with other settings ({told}): take another --run, "
            "or `turnledger rerun` a stage of it"
        )
    return known.model_copy(
        update={
            "config": values,
            "config_digest": json_digest(values),
            "status": "running",
            "message": None,
        }
    )


def _close(store: Store, run: str, status: str, message: str | None) -> None:
    try:
        record = store.run_record(run)
        store.save_run(record.model_copy(update={"status": status, "message": message}))
    except TurnledgerError:
        # What ended the run may be a full disk; its own error is the one to show. Without a
        # final record the run reads as interrupted, which is true.
        return


def _deciding(config: RunConfig) -> dict[str, object]:
    values = config.model_dump(mode="json", exclude={"iterations", "compute"})
    values["execution"].pop("workers")
    values["evaluation"].pop("every")
    return values
