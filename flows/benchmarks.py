"""Benchmarks: a stored policy on problem sets by name, each a part of its iteration in the store.

A shard is a sample of some problems, so further samples, or another benchmark, compute only what
is new. All policies meet the same luck: the tokens of a sample depend on the run's seed, the
benchmark, the problem and the sample's number.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows.adoption import adopt, taken_policy
from flows.binding import Place
from flows.credit_tasks import benchmark_task
from flows.policies import stored_policy
from flows.resources import server_given_up_on_interrupt
from flows.rollouts import ask, results_of, submit_rollout
from flows.sampling_tasks import problems_task
from flows.task_inputs import Shard
from flows.train import SHARDS_AT_ONCE
from schemas.config import ProblemsConfig, RunConfig
from schemas.errors import ConfigError, ProblemFileError
from schemas.refs import StageOutput, TableRef
from storage.layout import SPLIT_NAME, SPLITS
from storage.problem_sources import field_names, find_source

EMBEDDED = "held_out"
"""Benchmark of the embedded families' held-out problems, which needs no file."""
PROBLEMS_A_SHARD = 64
PROBLEM_FIELDS = ("problem", "question_concat", "question")
ANSWER_FIELDS = ("answer", "final_answer")
ID_FIELDS = ("id", "unique_id", "problem_id")


class ProblemSet(BaseModel):
    """A benchmark as asked for."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Its name, which is that of its part in the store."""
    path: str | None = None
    """File or folder of its problems; null for what is stored under the name."""

    @classmethod
    def parse(cls, text: str) -> "ProblemSet":
        """Reads `NAME=PATH`, or `NAME` alone.

        Raises:
            ConfigError: If the name cannot be used.
        """
        name, equals, path = text.partition("=")
        if not re.fullmatch(SPLIT_NAME, name) or name in SPLITS:
            raise ConfigError(
                f"benchmark name {name!r} cannot be used: take up to 40 small letters, digits and "
                f"underscores, a letter first, and neither {' nor '.join(SPLITS)}"
            )
        if equals and not path:
            raise ConfigError(f"--on {text}: the path is missing")
        if path and name == EMBEDDED:
            raise ConfigError(f"{EMBEDDED} stands for the embedded problems: take another name")
        return cls(name=name, path=path or None)


class Graded(BaseModel):
    """What a flow left of one benchmark."""

    model_config = ConfigDict(frozen=True)

    name: str
    prompts: TableRef
    evaluations: tuple[TableRef, ...]
    generation_times: tuple[TableRef, ...]


@flow(name="benchmark", task_runner=SHARDS_AT_ONCE, persist_result=False)
def benchmark(
    store: str,
    source: str,
    into: str,
    iteration: int,
    sets: list[ProblemSet],
    samples: int,
    config: RunConfig,
) -> list[Graded]:
    """Samples a stored policy on benchmarks and grades its answers.

    Args:
        store: Folder or address of the store.
        source: Run that holds the policy.
        into: Run that receives the results; `source` itself, or a branch.
        iteration: Iteration that made the policy.
        sets: The benchmarks.
        samples: Samples a problem.
        config: How to sample, execute and grade: the sections rollout, execution, turn_rewards,
            and the temperature, top_p and top_k of evaluation.

    Returns:
        References to the results, in the order of `sets`.

    Raises:
        StoreError: If the run does not hold the policy.
        ProblemFileError: If a problem file cannot be used.
        ConfigError: If another file is stored under the name of a benchmark.
    """
    old = Place(store=store, run=source, iteration=iteration, verify=config.compute.verify)
    new = old.model_copy(update={"run": into})
    for place, target in ((old.at(0), new.at(0)), (old, new)):
        taken_policy(place, target)
    for chosen in sets:
        stored = (place.at(0).on(chosen.name).slot("problems") for place in (old, new))
        adopt(new, *stored)
    with server_given_up_on_interrupt():
        return [sampled(new, chosen, samples, config) for chosen in sets]


def sampled(place: Place, chosen: ProblemSet, samples: int, config: RunConfig) -> Graded:
    """Samples and grades one benchmark inside a flow."""
    at = place.on(chosen.name)
    first = stored_policy(place.open(), place.run, 0)
    policy = stored_policy(place.open(), place.run, place.iteration)
    problems = problem_set(at.at(0), chosen, config)
    count = config.evaluation.problems if problems is None else problems.rows
    evaluation = config.evaluation.model_copy(update={"problems": count, "samples": 1})
    asked = config.model_copy(update={"evaluation": evaluation})
    prompts = ask(at, first, {chosen.name: problems}, asked)
    chains = submit_rollout(at, prompts, shards_of(count, samples), policy, first, asked)
    graded = [
        benchmark_task.submit(
            at,
            chain.shard,
            prompts,
            chain.turns,
            chain.executions,
            config.turn_rewards.grading_time_s,
        )
        for chain in chains
    ]
    turns = [output for chain in chains for output in chain.turns]
    executions = [output for chain in chains for output in chain.executions]
    results: list[StageOutput] = results_of([*turns, *executions, *graded])
    return Graded(
        name=chosen.name,
        prompts=prompts,
        evaluations=tuple(o.tables["evaluations"] for o in results[-len(graded) :]),
        generation_times=tuple(o.tables["generation_times"] for o in results[: len(turns)]),
    )


def shards_of(problems: int, samples: int) -> list[Shard]:
    """Returns one shard a sample and block of problems.

    Args:
        problems: Problems of the benchmark, at least 1.
        samples: Samples a problem.
    """
    blocks = -(-problems // PROBLEMS_A_SHARD)
    return [
        Shard(index=block, of=blocks, before=sample * blocks, first_sample=sample)
        for sample in range(samples)
        for block in range(blocks)
    ]


def problem_set(first: Place, chosen: ProblemSet, config: RunConfig) -> TableRef | None:
    """Returns the stored problems of a benchmark; null stands for the embedded ones.

    Args:
        first: Iteration 0 of the run, on the benchmark.
        chosen: The benchmark.
        config: Settings of the run.

    Raises:
        ProblemFileError: If the file cannot be used.
        ConfigError: If no file is named and none stored, or another one is stored.
    """
    if chosen.name == EMBEDDED:
        return None
    manifest = first.open().manifest(first.slot("problems"))
    if chosen.path is None:
        if manifest is None:
            raise ConfigError(
                f"benchmark {chosen.name}: run {first.run} does not know its problems yet; name "
                f"their file once, as in --on {chosen.name}=problems.jsonl"
            )
        return manifest.output(first.slot("problems").uri).tables["problems"]
    section = section_of(chosen.path, config)
    run = problems_task.describe(first, section, first)
    if manifest is not None and manifest.fingerprint.inputs != run.fingerprint.inputs:
        raise ConfigError(
            f"benchmark {chosen.name}: run {first.run} has stored results on another content of "
            f"it than {chosen.path} holds; take another name for this one"
        )
    return problems_task(first, section, first).tables["problems"]


def section_of(path: str, config: RunConfig) -> ProblemsConfig:
    """Returns how a benchmark's file is read: its fields are found by their usual names.

    Raises:
        ProblemFileError: If the file cannot be read, or has no such fields.
    """
    names = field_names(find_source(Path(path)))
    found = {
        what: _first_known(names, known)
        for what, known in (
            ("problem_field", PROBLEM_FIELDS),
            ("answer_field", ANSWER_FIELDS),
            ("id_field", ID_FIELDS),
        )
    }
    for what, known in (("problem_field", PROBLEM_FIELDS), ("answer_field", ANSWER_FIELDS)):
        if found[what] is None:
            raise ProblemFileError(
                f"{path} has the fields {', '.join(names) or '(none)'}, and none of "
                f"{', '.join(known)}: rename the one meant"
            )
    return config.problems.model_copy(update={"path": path, **found})


def _first_known(names: Sequence[str], known: Sequence[str]) -> str | None:
    by_small = {name.lower(): name for name in reversed(names)}
    return next((by_small[name] for name in known if name in by_small), None)
