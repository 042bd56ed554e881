"""What a cold start imitates besides demonstrations: tables of another run, or a file.

A run stays with what it learnt from: trajectories that the other run samples later make nothing
stale, and once its cold start is stored the other run may be dropped.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl

from flows.binding import Place
from flows.outside import imitated_file
from flows.sessions import is_imported
from flows.task_inputs import Trajectories, read_trajectories
from schemas.cold_start_tables import ColdStartExamples
from schemas.config import RunConfig
from schemas.errors import ConfigError, ImitationError, StoreError
from schemas.refs import FOREIGN, Ref, TableRef
from schemas.tables import TurnRewards
from stages.cold_start.conversations import read_conversations
from stages.cold_start.examples import Rollout, examples_of_file, examples_of_run
from stages.dialogue import Dialogue
from storage.manifests import Manifest
from storage.trajectory_files import find_trajectories

IMITATION_MODULES = (
    "stages.cold_start.imitation",
    "stages.cold_start.examples",
    "stages.cold_start.conversations",
    "stages._grading_worker",
    "storage.problem_sources",
)
"""Code that counts where trajectories are imitated, beside that of every cold start."""
IMITATION_LIBRARIES = ("math-verify", "sympy", "jinja2")
"""Distributions of it."""
_TABLES = ("prompts", "turns", "executions", "turn_rewards")
_OF_IMITATION = ("only_right", "learning_rate")
"""Settings of a cold start that count only where it imitates."""
_NUMBERS = ("micro_batch_tokens", "dtype", "recompute_activations")
"""Settings of the optimisation that count there too."""


def cold_start_settings(config: RunConfig) -> dict[str, Any]:
    """Returns the settings of its section that decide the result of a cold start.

    Where the trajectories come from does not count: their content is an input.
    """
    source = {"run", "path"}
    if not config.cold_start.imitates:
        return config.cold_start.model_dump(mode="json", exclude={*source, *_OF_IMITATION})
    numbers = config.optimisation.model_dump(mode="json", include={*_NUMBERS})
    return {**config.cold_start.model_dump(mode="json", exclude=source), **numbers}


def imitated_inputs(place: Place | None, config: RunConfig) -> dict[str, Ref]:
    """Returns what a cold start imitates, as its inputs; nothing where it demonstrates.

    Args:
        place: Iteration 0 of the run; null for one in a store that is not there yet.
        config: Its settings.

    Raises:
        ConfigError: If the other run cannot be imitated.
        StoreError: If it is not known or has no scored trajectories.
        TrajectoryFileError: If the file cannot be used and the policy is not stored.
    """
    if config.cold_start.path is not None:
        return {"file": imitated_file(place, config.cold_start.path)}
    if config.cold_start.run is not None:
        return {**_tables_of_run(place, config.cold_start.run)}
    return {}


def imitated_examples(
    place: Place,
    inputs: Mapping[str, Ref],
    config: RunConfig,
    dialogue: Dialogue,
    max_tokens: int,
) -> dy.DataFrame[ColdStartExamples]:
    """Reads what a cold start imitates.

    Args:
        place: Names the store.
        inputs: As `imitated_inputs` returned them.
        config: Settings of the run.
        dialogue: That of the policy.
        max_tokens: Its context.

    Raises:
        TurnledgerError: If it is gone, cannot be read, or nothing is left of it.
    """
    chosen, path = config.cold_start, config.cold_start.path
    try:
        if path is None:
            return examples_of_run(
                _read_rollouts(place, str(chosen.run), inputs),
                dialogue,
                only_right=chosen.only_right,
                max_tokens=max_tokens,
            )
        conversations = read_conversations(
            find_trajectories(Path(path)).rows(), time_s=config.turn_rewards.grading_time_s
        )
        return examples_of_file(
            conversations, dialogue, only_right=chosen.only_right, max_tokens=max_tokens
        )
    except ImitationError as error:
        named = f"cold_start.run: run {chosen.run}" if path is None else f"cold_start.path: {path}"
        raise ImitationError(f"{named}: {error}") from error


def _tables_of_run(place: Place | None, run: str) -> dict[str, Ref]:
    """Returns the scored trajectories of a run, by names such as `turns.3.0`."""
    if place is None:
        raise ConfigError(f"cold_start.run: there is no store that could hold run {run}")
    if run == place.run:
        raise ConfigError(f"cold_start.run: run {run} cannot imitate itself: take another --run")
    kept = _kept(place, run)
    now = _scored_tables(place, run) if place.open().has_run(run) else {}
    if kept and any(name not in now or now[name].content != kept[name] for name in kept):
        return {name: _named(run, content) for name, content in kept.items()}
    if kept:
        return {name: now[name] for name in kept}
    if not place.open().has_run(run):
        known = ", ".join(place.open().run_names()) or "none"
        raise StoreError(f"cold_start.run: run {run} is not in {place.store}; known runs: {known}")
    if is_imported(place.open(), run):
        raise ConfigError(
            f"cold_start.run: run {run} holds imported trajectories, without token ids: name "
            "their file in cold_start.path"
        )
    if not now:
        raise StoreError(
            f"cold_start.run: run {run} holds no scored trajectories: train it, or rerun its "
            "turn_rewards"
        )
    return {**now}


def _scored_tables(place: Place, run: str) -> dict[str, TableRef]:
    """Returns the tables of every shard of a rollout whose turns are all scored."""
    shards: dict[tuple[int, int | None], dict[str, TableRef]] = defaultdict(dict)
    prompts: dict[int, dict[str, TableRef]] = defaultdict(dict)
    for uri, manifest in place.open().results(run):
        slot = manifest.slot
        for name, ref in _tables(uri, manifest).items():
            if slot.split != "train" or name not in _TABLES:
                continue
            parts = [name, slot.iteration, slot.shard, slot.turn]
            key = ".".join(str(part) for part in parts if part is not None)
            if name == "prompts":
                prompts[slot.iteration][key] = ref
            else:
                shards[slot.iteration, slot.shard][key] = ref
    found: dict[str, TableRef] = {}
    for (iteration, _), tables in shards.items():
        if any(name.startswith("turn_rewards.") for name in tables):
            found |= prompts[iteration] | tables
    return dict(sorted(found.items()))


def _tables(uri: str, manifest: Manifest) -> Mapping[str, TableRef]:
    return manifest.output(uri).tables


def _kept(place: Place, run: str) -> dict[str, str]:
    """Returns the contents of what this run has imitated already, if it is of that run."""
    store = place.open()
    manifest = store.manifest(place.slot("cold_start")) if store.has_run(place.run) else None
    if manifest is None:
        return {}
    settings = store.run_record(place.run).config.get("cold_start", {})
    inputs = manifest.fingerprint.inputs
    if settings.get("run") != run:
        return {}
    return {n: c for n, c in inputs.items() if n.partition(".")[0] in _TABLES}


def _named(run: str, content: str) -> Ref:
    return Ref(uri=run, name=FOREIGN, digest=content, content=content)


def _read_rollouts(place: Place, run: str, inputs: Mapping[str, Ref]) -> dict[int, Rollout]:
    """Reads the tables of a run, by iteration.

    Raises:
        StoreError: If they are gone.
    """
    by_iteration: dict[int, dict[str, list[TableRef]]] = defaultdict(lambda: defaultdict(list))
    for key, ref in inputs.items():
        name, number, *_ = key.split(".")
        if name not in _TABLES:
            continue
        if not isinstance(ref, TableRef):
            raise StoreError(
                f"cold_start.run: run {run} holds no longer what was imitated: take another --run"
            )
        by_iteration[int(number)][name].append(ref)
    rollouts = {}
    for iteration, refs in by_iteration.items():
        prompts, turns, executions = read_trajectories(
            place,
            Trajectories(
                prompts=tuple(refs["prompts"]),
                turns=tuple(refs["turns"]),
                executions=tuple(refs["executions"]),
            ),
        )
        rewards = pl.concat([place.open().read(ref) for ref in refs["turn_rewards"]])
        rollouts[iteration] = Rollout(
            prompts=prompts,
            turns=turns,
            executions=executions,
            rewards=TurnRewards.validate(rewards),
        )
    return rollouts
