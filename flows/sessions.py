"""Sessions: what surrounds a flow. Checks before it, the run's record and lock around it."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from flows.binding import Place
from flows.catalogue import ORDER, STAGES, Scope
from flows.interrupts import INTERRUPTS
from flows.outside import PATHS, contents, embedding_model, readable_files, stored_contents
from schemas.config import ComputeConfig, RunConfig, VllmConfig
from schemas.config_text import changed_keys, override_config
from schemas.errors import (
    ConfigError,
    StoreError,
    TurnledgerError,
)
from storage import RunParent, RunRecord, Store
from storage.digests import json_digest
from storage.garbage import is_dropped
from storage.layout import run_uri

FREE_TO_CHANGE = (
    "iterations",
    "compute.",
    "execution.workers",
    "execution.fusion_url",
    "evaluation.every",
    *(f"vllm.{key}" for key in VllmConfig.model_fields if key != "dtype"),
)
"""Settings that a run may be continued with: they decide how far and how, not what."""


def check_inputs(
    config: RunConfig,
    place: Place | None,
    *,
    reads: Collection[str] = PATHS,
    samples: bool = True,
    runs_code: bool = True,
    shapes: bool = True,
) -> None:
    """Refuses what would fail later, before anything is started.

    Args:
        config: Settings of the flow.
        place: Iteration 0 of the run whose results it builds on; null for a new store.
        reads: Settings that name what the flow reads from outside the store.
        samples: Whether the flow may sample turns, so that its engine is looked for.
        runs_code: Whether the flow may execute code, so that the sandbox is tried.
        shapes: Whether the flow shapes rewards, so that its measure is looked for.

    Raises:
        ProblemFileError: If a problem file is missing, and its problems are not stored.
        PolicyError: If the policy folder is no model folder, and the policy is not stored, or the
            embedded engine cannot sample from it.
        TrajectoryFileError: If the file of conversations is missing, and the policy is not stored.
        StoreError: If the run that is imitated is not there.
        ConfigError: If torch cannot use the device, snippets are to read what is no folder, the
            package of the measure of similarity, of LoRA or of the task runner is missing, or
            its workers could not reach the Prefect server.
        ClusterError: If there is no cluster at the address that is given.
        EmbeddingError: If the embedding model of the measure is no such model.
        EngineError: If the vLLM server is missing, or does not know the policy's heads.
        ExecutorError: If code cannot be isolated on this machine.
    """
    contents(place, config, reads)
    if "cold_start.path" in reads and config.cold_start.run is not None:
        from flows.imitated import imitated_inputs

        imitated_inputs(place, config)
    _check_device(config.compute)
    if config.compute.task_runner != "threads":
        from prefect.settings import get_current_settings

        from flows.cluster_addresses import require_task_runner

        require_task_runner(config.compute, prefect_url=get_current_settings().api.url)
    if config.optimisation.lora_rank:
        from stages.optimisation.adapter import require_peft

        require_peft()
    if shapes:
        from stages.similarity import require_measure

        require_measure(config.similarity)
        embedding_model(config.similarity)
    if samples:
        _check_engine(config)
    if runs_code:
        from flows.resources import try_executor

        readable_files(config.execution)
        try_executor(config.execution)


def _check_engine(config: RunConfig) -> None:
    policy = config.policy
    if config.rollout.engine == "transformers":
        # One whose folder is gone is stored, and was looked at when it was there.
        if policy.path is not None and Path(policy.path).exists():
            from stages.rollout.sampled_models import refuse_other_folder

            refuse_other_folder(policy.path)
        return
    from stages.rollout.vllm_release import head_size
    from stages.rollout.vllm_server import release_of

    heads = policy.hidden_size // policy.heads if policy.path is None else head_size(policy.path)
    release_of(config.vllm).refuse_heads(heads)


def _check_device(compute: ComputeConfig) -> None:
    device = compute.device
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"compute.device: torch cannot use {device} here: {reason}") from error
    there = torch.accelerator.device_count()
    if compute.processes > there:
        raise ConfigError(
            f"compute.processes: {compute.processes} need a device each, and {device} has {there} "
            "here"
        )


def default_run_name(config: RunConfig) -> str:
    """Names a run by what it computes, so that the same command finds the same run."""
    return f"train-{json_digest(_deciding(config))[:8]}"


def branch_name(store: Store, source: str, parent: RunParent, config: RunConfig) -> str:
    """Returns the branch that already holds this rerun, or the first free name `source.N`."""
    digest = json_digest(config.model_dump(mode="json"))
    number = 1
    while True:
        name = f"{source}.{number}"
        if store.has_run(name):
            record = store.run_record(name)
            if record.parent == parent and record.config_digest == digest:
                return name
        elif not is_dropped(store, name) and not store.has_results(name):
            return name
        number += 1


def refuse_left_over(store: Store, run: str) -> None:
    """Refuses the name of a run that is off the books while its results are still there.

    A new run would take them for its own.

    Raises:
        StoreError: If it is so.
    """
    if store.has_run(run):
        return
    if is_dropped(store, run):
        raise StoreError(
            f"run {run} of {store.url} was dropped and is still there: `turnledger gc` frees the "
            f"name, `turnledger drop {run} --undo` brings the run back"
        )
    if store.has_results(run):
        raise StoreError(
            f"{store.backend.address(run_uri(run))} holds results of a run without a record: put "
            "its run.json back, or take another name; what a killed import left, gc removes"
        )


def is_imported(store: Store, run: str) -> bool:
    """Says whether the trajectories of a run, or of the one that it branched from, are foreign.

    A branch takes the prompts over, with what made them.
    """
    manifest = store.manifest(Place(store=store.url, run=run, iteration=1).slot("prompts"))
    return manifest is not None and manifest.fingerprint.stage == "trajectories"


def refuse_imported(store: Store, run: str) -> None:
    """Refuses to sample, execute, update or evaluate in a run of imported trajectories.

    Raises:
        ConfigError: If it is one.
    """
    if is_imported(store, run):
        raise ConfigError(
            f"run {run} holds imported trajectories, without policy and without log-probabilities "
            "of sampling, which optimisation needs: only turn_rewards, similarity and advantages "
            f"can run, as in `turnledger rerun turn_rewards --run {run} --iteration 1 "
            "--until advantages`"
        )


def stored_config(record: RunRecord) -> RunConfig:
    """Returns the settings of a run.

    Raises:
        StoreError: If this version cannot read them.
    """
    try:
        return RunConfig.model_validate(record.config)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise StoreError(
            f"run {record.name} has settings that this version cannot read ({key}): use the "
            "version that made it, or train another run"
        ) from error


def branch_config(
    store: Store, source: str, scope: Scope, overrides: Sequence[str]
) -> tuple[RunConfig, RunConfig]:
    """Returns the settings of a run and those of a branch of it.

    Raises:
        ConfigError: If a setting would change nothing, as no stage that runs again reads it.
    """
    old = stored_config(store.run_record(source))
    section = scope.first if scope.first in RunConfig.model_fields else None
    new = override_config(old, overrides, section=section)
    usable = _sections_used(scope)
    changed = changed_keys(old, new)
    if "rollout.dialogue" in changed and scope.first not in ("prompts", "evaluation"):
        raise ConfigError("rollout.dialogue decides how prompts are written: rerun prompts")
    for key in changed:
        if key.partition(".")[0] not in usable:
            told = scope.first if scope.is_one_stage else f"{scope.first} or what depends on it"
            raise ConfigError(
                f"{key} does not belong to {told}: rerun an earlier stage, or train another run"
            )
    return old, new


def _sections_used(scope: Scope) -> set[str]:
    """Returns the sections of the stages that a rerun computes.

    An evaluation alone may also sample, execute and grade in another way than the training did.
    """
    sampled = {"rollout", "vllm", "execution", "turn_rewards"}
    own = sampled if scope.first == "evaluation" else set()
    return {"compute"}.union(
        own, *(STAGES[name].sections for name in ORDER if scope.computes(name))
    )


@contextmanager
def session(
    store: Store, run: str, config: RunConfig, *, parent: RunParent | None = None
) -> Iterator[RunRecord]:
    """Holds a run for the time of a flow and keeps its record true.

    Raises:
        ConfigError: If the run exists with other settings.
        StoreError: If another process holds the run, or the name is that of a dropped run.
    """
    with store.lock_run(run):
        refuse_left_over(store, run)
        record = _record(store, run, config, parent)
        store.save_run(record)
        try:
            yield record
        except INTERRUPTS:
            _close(store, run, "interrupted", None)
            raise
        except BaseException as error:
            message = (str(error).splitlines() or [type(error).__name__])[0]
            _close(store, run, "failed", message)
            raise
        _close(store, run, "finished", None)


@contextmanager
def visit(store: Store, run: str) -> Iterator[None]:
    """Holds a run for the time of a flow that adds to it and leaves its state as it is.

    Raises:
        StoreError: If another process holds the run.
    """
    with store.lock_run(run):
        yield
        store.save_run(store.run_record(run))  # as it is, so that it was changed last


def refuse_other_settings(store: Store, known: RunRecord, config: RunConfig) -> None:
    """Refuses to go on with a run under settings that would have made other results.

    Raises:
        ConfigError: If so, naming the settings.
    """
    changed = {
        key: pair
        for key, pair in changed_keys(stored_config(known), config).items()
        if not key.startswith(FREE_TO_CHANGE)
    }
    moved = changed.keys() & {*PATHS}
    if moved:
        # What lies at the old path by now says nothing of what the run was made from.
        before = stored_contents(Place(store=store.url, run=known.name, iteration=0))
        now = contents(None, config, moved)
        changed = {
            k: v for k, v in changed.items() if k not in PATHS or before.get(k) != now.get(k)
        }
    if changed:
        told = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"run {known.name} was made with other settings ({told}): take another --run, "
            "or `turnledger rerun` a stage of it"
        )


def _record(store: Store, run: str, config: RunConfig, parent: RunParent | None) -> RunRecord:
    known = store.run_record(run) if store.has_run(run) else None
    origin = parent or (known.parent if known is not None else None)
    fresh = RunRecord.new(run, config, status="running", parent=origin)
    if known is None or not store.has_results(run):
        return fresh
    if parent is not None and known.parent != parent:
        what = "a run of its own" if known.parent is None else "another branch"
        raise ConfigError(f"run {run} exists and is {what}: take another --into")
    refuse_other_settings(store, known, config)
    changed = fresh.model_dump(include={"config", "config_digest", "status", "message"})
    return known.model_copy(update=changed)


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
    served = values.pop("vllm")
    if config.rollout.engine == "vllm":
        values["vllm"] = {"dtype": served["dtype"]}
    values["evaluation"].pop("every")
    return values
