"""Binds a stage to the store: look the fingerprint up, else compute and keep.

The store is the only cache. Prefect's own would answer with a reference whose file is gone, and
would run a task uncached, with a line in a log, when its key cannot be computed.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from flows.events import StageEvent, tell
from schemas.refs import Ref, StageOutput
from storage import Fingerprint, Slot, Store, module_closure
from storage.layout import Split

CODE: dict[str, tuple[str, ...]] = {
    "problems": ("storage.problems", "storage.problem_sources"),
    "cold_start": (
        "stages.cold_start.training",
        "stages.cold_start.demonstrations",
        "stages.cold_start.tiny_policy",
        "stages.cold_start.start",
        "storage.checkpoints",
    ),
    "prompts": ("stages.prompts", "stages.dialogue"),
    "rollout": (
        "stages.rollout",
        "stages.rollout.transformers_engine",
        "stages.shards",
        "storage.checkpoints",
    ),
    "execution": (
        "stages.execution",
        "stages.execution._supervisor",
        "stages.execution._child",
        "stages.execution._watch",
        "stages.execution._unisolated",
        "stages.dialogue",
    ),
    "turn_rewards": ("stages.turn_rewards", "stages._grading_worker"),
    "similarity": ("stages.similarity",),
    "advantages": ("stages.advantages",),
    "optimisation": ("stages.optimisation", "storage.checkpoints"),
    "evaluation": ("stages.evaluation", "stages._grading_worker"),
}
"""Modules of each stage; what those in `stages` import is found from the sources.

Of `storage` only the modules named here count: how results are stored does not decide them.
"""

LIBRARIES: dict[str, tuple[str, ...]] = {
    "cold_start": ("torch", "transformers", "tokenizers"),
    "prompts": ("tokenizers",),
    "rollout": ("torch", "transformers", "tokenizers"),
    "execution": ("tokenizers", "sympy"),
    "turn_rewards": ("math-verify", "sympy"),
    "similarity": ("rapidfuzz",),
    "optimisation": ("torch", "transformers"),
    "evaluation": ("math-verify", "sympy"),
}
"""Distributions whose version is part of a stage's fingerprint, beside those of every stage."""

EVERY_STAGE = ("numpy", "polars")
"""Distributions whose version is part of every fingerprint, as is that of Python."""


class Place(BaseModel):
    """Where in a store a stage run belongs; small enough to travel as a task parameter."""

    model_config = ConfigDict(frozen=True)

    store: str
    """Path of the store."""
    run: str
    iteration: int
    split: Split = "train"

    def slot(self, stage: str, *, shard: int | None = None, turn: int | None = None) -> Slot:
        """Returns the slot of a stage run at this place."""
        return Slot(
            run=self.run,
            iteration=self.iteration,
            split=self.split,
            stage=stage,
            shard=shard,
            turn=turn,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """What a stage computed, before it is stored."""

    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    checkpoint_writer: Callable[[Path], None] | None = None
    policy_version: int | None = None


@lru_cache(maxsize=8)
def open_store(path: str) -> Store:
    """Opens a store that exists, once a process."""
    return Store.open(path)


def run_stage(
    place: Place,
    slot: Slot,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Ref],
    seed: int | None = None,
    compute: Callable[[], Produced],
) -> StageOutput:
    """Returns the stored result of a stage run, computing it only if it is not there.

    Args:
        place: Names the store.
        slot: Where the result belongs.
        config: Settings that decide the result, and no others.
        inputs: Input name to reference.
        seed: Seed of a stage that draws at random.
        compute: Reads the inputs and does the work.

    Raises:
        TurnledgerError: If inputs or store cannot be used; nothing is stored then.
    """
    store = open_store(place.store)
    fingerprint = Fingerprint(
        stage=slot.stage,
        code=_code(slot.stage),
        config=dict(config),
        inputs={name: ref.content for name, ref in inputs.items()},
        seed=seed,
        libraries=_libraries(slot.stage),
    )
    started = time.perf_counter()
    found = store.find(slot, fingerprint)
    if found.output is not None:
        seconds = time.perf_counter() - started
        tell(
            StageEvent(
                slot=slot,
                kind="reused",
                reason=found.reason,
                seconds=seconds,
                output=found.output,
            )
        )
        return found.output
    tell(StageEvent(slot=slot, kind="started", reason=found.reason))
    started = time.perf_counter()
    produced = compute()
    seconds = time.perf_counter() - started
    output = store.write(
        slot,
        fingerprint,
        tables=produced.tables,
        checkpoint_writer=produced.checkpoint_writer,
        policy_version=produced.policy_version,
        seconds=seconds,
        parents=list(inputs.values()),
    )
    tell(
        StageEvent(slot=slot, kind="computed", reason=found.reason, seconds=seconds, output=output)
    )
    return output


def adopt(place: Place, source: Slot, target: Slot) -> StageOutput | None:
    """Takes a stored result over as it is, whatever code and settings made it.

    Returns:
        The result in its new slot; null if the source is empty or damaged.
    """
    output = open_store(place.store).adopt(source, target)
    if output is not None:
        reason = f"taken over from {source.uri}"
        tell(StageEvent(slot=target, kind="reused", reason=reason, output=output))
    return output


def freeze_code() -> None:
    """Digests the code of all stages now; called when their modules have just been imported.

    A process goes on with the modules that it imported, whatever is edited meanwhile. So must
    its fingerprints: else results of the old code would be kept under the new one's name.
    """
    for stage in CODE:
        _code(stage)


@lru_cache
def _code(stage: str) -> dict[str, str]:
    closure: dict[str, str] = {}
    for module in CODE[stage]:
        if module.startswith("storage."):
            closure[module] = module_closure(module, packages=("storage",))[module]
        else:
            closure |= module_closure(module)
    return closure


@lru_cache
def _libraries(stage: str) -> dict[str, str]:
    names = (*EVERY_STAGE, *LIBRARIES.get(stage, ()))
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}
