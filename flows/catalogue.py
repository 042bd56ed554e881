"""What the flows know of every stage: its code, its libraries, what it makes, what it reads.

A stage is a pure function in `stages`; here stands what its fingerprint and its reruns need.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from schemas.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One kind of stage."""

    code: tuple[str, ...]
    """Modules where its code begins; what those in `stages` import is found from the sources.

    Of `storage` only the modules named here count: how results are stored does not decide them.
    """
    tables: tuple[str, ...]
    """Tables that it makes."""
    makes_policy: bool = False
    """Whether it makes a policy as well."""
    libraries: tuple[str, ...] = ()
    """Distributions whose version is part of its fingerprint, beside `EVERY_STAGE`."""
    sections: tuple[str, ...] = ()
    """Sections of the config that it reads, for a rerun; empty outside an iteration."""


EVERY_STAGE = ("numpy", "polars")
"""Distributions whose version is part of every fingerprint, as is that of Python."""

MEASURE_LIBRARIES: dict[str, tuple[str, ...]] = {
    "edit": ("rapidfuzz",),
    "embedding": ("torch", "transformers", "tokenizers"),
    "codebleu": ("codebleu", "tree-sitter", "tree-sitter-python"),
}
"""Measure of similarity to the distributions that decide it, beside those of every stage."""

ENGINE_MODULES: dict[str, tuple[str, ...]] = {
    "transformers": ("stages.rollout.transformers_engine",),
    "vllm": (
        "stages.rollout.vllm_engine",
        "stages.rollout.vllm_extension.turnledger_serve",
        "stages.rollout.vllm_extension.turnledger_vllm",
    ),
}
"""Engine of the rollout to the modules that decide what it samples."""

STAGES: dict[str, StageSpec] = {
    "problems": StageSpec(
        code=("storage.problems", "storage.problem_sources"),
        tables=("problems", "rejected_problems"),
    ),
    "trajectories": StageSpec(
        code=("stages.foreign", "storage.problem_sources"),
        tables=("rejected_trajectories", "foreign_labels"),
    ),
    "cold_start": StageSpec(
        code=(
            "stages.cold_start.training",
            "stages.cold_start.demonstrations",
            "stages.cold_start.tiny_policy",
            "stages.cold_start.start",
            "storage.checkpoints",
        ),
        tables=("demonstrations", "cold_start_updates", "cold_start_examples"),
        makes_policy=True,
        libraries=("torch", "transformers", "tokenizers"),
    ),
    "prompts": StageSpec(
        code=("stages.prompts", "stages.dialogue"),
        tables=("prompts",),
        libraries=("tokenizers", "transformers", "jinja2"),
        sections=("problems", "rollout"),
    ),
    "rollout": StageSpec(
        code=(
            "stages.rollout",
            "stages.shards",
            "storage.checkpoints",
        ),
        tables=("turns", "generation_times"),
        libraries=("torch", "transformers", "tokenizers"),
        sections=("rollout", "vllm"),
    ),
    "execution": StageSpec(
        code=(
            "stages.execution",
            "stages.execution._supervisor",
            "stages.execution._child",
            "stages.execution._cells",
            "stages.execution._outputs",
            "stages.execution._seccomp",
            "stages.execution._watch",
            "stages.execution._unisolated",
            "stages.dialogue",
        ),
        tables=("executions", "execution_times"),
        libraries=("tokenizers", "transformers", "jinja2", "sympy"),
        sections=("execution",),
    ),
    "turn_rewards": StageSpec(
        code=("stages.turn_rewards", "stages._grading_worker"),
        tables=("turn_rewards",),
        libraries=("math-verify", "sympy"),
        sections=("turn_rewards",),
    ),
    "similarity": StageSpec(
        code=("stages.similarity", "storage.embeddings"),
        tables=("shaped_rewards",),
        sections=("similarity",),
    ),
    "advantages": StageSpec(
        code=("stages.advantages",),
        tables=("advantages",),
        sections=("advantages",),
    ),
    "optimisation": StageSpec(
        code=("stages.optimisation", "storage.checkpoints"),
        tables=("updates", "turn_updates", "optimisation_faults"),
        makes_policy=True,
        libraries=("torch", "transformers"),
        sections=("optimisation",),
    ),
    "gradient_noise": StageSpec(
        code=("stages.gradient_noise", "storage.checkpoints"),
        tables=("gradient_noise",),
        libraries=("torch", "transformers"),
    ),
    "evaluation": StageSpec(
        code=("stages.evaluation", "stages._grading_worker"),
        tables=("evaluations",),
        libraries=("math-verify", "sympy"),
        sections=("evaluation",),
    ),
}
"""Every stage by name, each before those that depend on it."""

ORDER = tuple(name for name, spec in STAGES.items() if spec.sections)
"""Stages of an iteration, each before those that depend on it; any of them can be rerun."""


def usual_split(table: str) -> str:
    """Returns where the table of a run usually is."""
    return "evaluation" if table == "evaluations" else "train"


def is_evaluated(iteration: int, config: "RunConfig") -> bool:
    """Says whether the policy of an iteration is evaluated."""
    return iteration % config.evaluation.every == 0 or iteration in (0, config.iterations)


def check_stage(name: str) -> str:
    """Returns the name of a stage of an iteration.

    Raises:
        ConfigError: If there is none of that name, naming those that there are.
    """
    if name not in ORDER:
        raise ConfigError(f"stage {name} is unknown; stages: {', '.join(ORDER)}")
    return name


@dataclass(frozen=True, slots=True)
class Scope:
    """The stages that a rerun computes: `first` to `last`, both included."""

    first: str
    last: str

    @classmethod
    def of(cls, stage: str, until: str | None = None) -> "Scope":
        """Returns the scope from a stage to another one, by default the evaluation.

        Raises:
            ConfigError: If a stage is unknown or they stand in the wrong order.
        """
        last = ORDER[-1] if until is None else check_stage(until)
        if ORDER.index(last) < ORDER.index(check_stage(stage)):
            raise ConfigError(f"{until} stands before {stage}: stages in order {', '.join(ORDER)}")
        return cls(stage, last)

    @property
    def is_one_stage(self) -> bool:
        """Whether the stage is computed alone, on inputs as they are stored."""
        return self.first == self.last

    def computes(self, stage: str) -> bool:
        """Says whether a stage is computed."""
        return ORDER.index(self.first) <= ORDER.index(stage) <= ORDER.index(self.last)

    def needs(self, stage: str) -> bool:
        """Says whether a stage's result is computed or built upon."""
        return ORDER.index(stage) <= ORDER.index(self.last)

    @property
    def samples(self) -> bool:
        """Whether turns may be sampled, so that an engine is needed."""
        return self.computes("rollout") or self.computes("evaluation")

    @property
    def runs_code(self) -> bool:
        """Whether code may be executed, so that a sandbox is needed."""
        return ORDER.index(self.first) <= ORDER.index("execution") or self.computes("evaluation")
