"""Rows as a long training leaves them, made without a policy: prompts, turns and executions.

Problems are drawn from the embedded families, one a group and no two alike, so nothing is gained
by remembering equal codes or answers of other groups beyond what a real training repeats. The
samples of a group differ in style, number of turns and mistakes. Integers are the answers of
most groups; the others have fractions, decimals, and expressions that only math-verify can
compare. Code is not run: what it would print is computed.

Token ids and log-probabilities are random and do not spell the text; they have its length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import pyarrow as pa

from schemas.tables import TURN_KEY, Executions, Prompts, Turns
from stages.cold_start.families import FAMILIES, EmbeddedProblem, draw_problems

SAMPLES = 8
"""Trajectories of a group."""
TURNS_OF_GROUP = 27
"""Turns of a group on average, somewhat less."""
MAX_TURNS = 5
LEVELS = (1, 2, 3, 4)
NAMES = ("x", "n", "value", "start", "number", "total")
DENOMINATORS = (7, 9, 11, 13)
FRACTIONS_SHARE = 0.07
DECIMALS_SHARE = 0.07
MEAN_TOKENS = 40
"""Generated tokens of a turn."""
VOCABULARY = 32_000

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRows:
    """What a rollout of whole groups leaves."""

    prompts: dy.DataFrame[Prompts]
    turns: dy.DataFrame[Turns]
    executions: dy.DataFrame[Executions]


def ledger_rows(
    turns: int, *, shards: int, expressions_share: float = 0.05, seed: int = 0
) -> Iterator[LedgerRows]:
    """Yields shards of whole groups, parted as `take_shard` does, 8 samples of 1 to 5 turns each.

    Args:
        turns: Turns of all shards, of which there are about 1 % more.
        shards: Number of shards.
        expressions_share: Share of the groups whose answer is neither integer, fraction nor
            decimal. It is 0.2 in MATH 500, and 0 in GSM8K, AIME and the embedded families.
        seed: Equal seeds give equal rows.
    """
    random = Random(seed)
    problems = _distinct(draw_problems(random, split="train", levels=LEVELS))
    groups_in_all = -(-turns // TURNS_OF_GROUP)
    for shard, part in enumerate(np.array_split(np.arange(groups_in_all), shards)):
        groups = _Groups(random, expressions_share)
        for problem in islice(problems, len(part)):
            groups.add(problem)
        yield groups.rows(np.random.default_rng([seed, shard]))


def _distinct(problems: Iterator[EmbeddedProblem]) -> Iterator[EmbeddedProblem]:
    seen: set[str] = set()
    for problem in problems:
        if problem.task_id not in seen:
            seen.add(problem.task_id)
            yield problem


class _Groups:
    """Groups of one shard, as they are added."""

    def __init__(self, random: Random, expressions_share: float) -> None:
        self._random = random
        self._expressions_share = expressions_share
        self._prompts: list[Row] = []
        self.turns: list[tuple[Any, ...]] = []
        """Task, sample, turn, reasoning, code, answer, parse error, status, observation."""

    def add(self, problem: EmbeddedProblem) -> None:
        """Adds a group of 8 trajectories."""
        kind, parameter = self._draw_kind()
        gold = _writings(kind, problem.answer, parameter)[0]
        self._prompts.append(
            {
                "task_id": problem.task_id,
                "problem": problem.text,
                "answer": gold,
                "source": problem.source,
                "level": len(problem.steps),
                "prompt_token_ids": list(range(5, 5 + len(problem.text) // 3)),
                "round": 0,
            }
        )
        skill = self._random.uniform(0.55, 1.0)  # a problem may be hard for all of its samples
        for sample in range(SAMPLES):
            for index, turn in enumerate(self._trajectory(problem, kind, parameter, skill)):
                self.turns.append((problem.task_id, sample, index, *turn))

    def _draw_kind(self) -> tuple[str, int]:
        draw = self._random.random()
        for kind, share in (
            ("expression", self._expressions_share),
            ("fraction", FRACTIONS_SHARE),
            ("decimal", DECIMALS_SHARE),
        ):
            if draw < share:
                return kind, self._random.choice(DENOMINATORS)
            draw -= share
        return "integer", 0

    def _trajectory(
        self, problem: EmbeddedProblem, kind: str, parameter: int, skill: float
    ) -> Iterator[tuple[Any, ...]]:
        random = self._random
        value, turns = problem.steps[0].before, 0
        for step in problem.steps:
            number, flaw = FAMILIES.index(step.family), random.random() > skill
            if value > step.family.largest_input or turns == MAX_TURNS - 1:
                break
            if flaw and random.random() < 0.1:  # an answer too early, or no tool at all
                break
            if flaw and random.random() < 0.15:
                error = random.choice(("unclosed_code", "empty_code", "unclosed_answer"))
                yield (f"Now {step.family.name}.", None, None, error, None, None)
                return
            code = _styled(random, step.family.code, step.parameters, value)
            said = f"Step {turns + 1}: {step.family.name.replace('_', ' ')} of {value}. "
            if flaw and random.random() < 0.35:
                error = "syntax_error" if random.random() < 0.4 else None
                broken = code.removesuffix(")") if error else f"result = y + 1\n{code}"
                status = "infrastructure" if random.random() < 0.01 else "error"
                yield (said, broken, None, error, status, "NameError: name 'y' is not defined")
                turns += 1
                if random.random() < 0.3 or turns == MAX_TURNS - 1:
                    break
            elif flaw:
                value += random.choice((-2, -1, 1, 2))
                code = _styled(random, step.family.code, step.parameters, value)
            value = _computed(number, max(value, 1), step.parameters)
            yield (said, code, None, None, "ok", str(value))
            turns += 1
        if random.random() < 0.03:
            yield ("So it must be", None, None, None, None, None)
            return
        writings = _writings(kind, value, parameter)
        usual = writings[0] if random.random() < 0.8 else random.choice(writings)
        yield (f"The result is {value}. ", None, usual, None, None, None)

    def rows(self, random: np.random.Generator) -> LedgerRows:
        """Returns the frames of what was added."""
        columns = ("reasoning", "code", "answer", "parse_error", "status", "observation")
        frame = pl.DataFrame(
            self.turns,
            schema={
                "task_id": pl.String,
                "sample_index": pl.Int32,
                "turn_index": pl.Int32,
                **dict.fromkeys(columns, pl.String),
            },
            orient="row",
        )
        return LedgerRows(
            prompts=Prompts.validate(
                pl.DataFrame(self._prompts, infer_schema_length=None), cast=True
            ),
            turns=_turns(frame, random),
            executions=_executions(frame, random),
        )


def _styled(random: Random, code: str, parameters: tuple[int, ...], value: int) -> str:
    """Returns code of 1 to 8 lines that prints the result of a step."""
    name = random.choice(NAMES)
    style = random.randrange(5)
    if style == 0:
        return code.format(*parameters, x=value)
    named = code.format(*parameters, x=name)
    if style == 1:
        return f"{name} = {value}\n{named}"
    if style == 2:
        return f"# start from {value}\n{name} = {value}\nassert {name} > 0\n\n# the step\n{named}"
    if style == 3:
        indented = named.replace("\n", "\n    ")
        return f"def step({name}):\n    {indented}\n\nstep({value})"
    return f"{name} = {value - 1} + 1\nif {name} != {value}:\n    raise ValueError\n{named}"


@lru_cache(maxsize=1 << 18)
def _computed(family: int, value: int, parameters: tuple[int, ...]) -> int:
    return FAMILIES[family].compute(value, *parameters)


def _writings(kind: str, value: int, parameter: int) -> list[str]:
    """Returns ways to write an answer, the gold one first."""
    if kind == "fraction":
        plain = rf"\frac{{{value}}}{{{parameter}}}"
        return [plain, f"{value}/{parameter}", repr(value / parameter), rf"$\d{plain[1:]}$"]
    if kind == "decimal":
        plain = f"{value / 8:.3f}"
        return [plain, f"${plain}$", str(value / 8), f"{value}/8"]
    if kind == "expression" and value % 2:
        plain = rf"{value}\sqrt{{{parameter + 4}}}"
        return [plain, f"{value}*sqrt({parameter + 4})", f"${plain}$", rf"\boxed{{{plain}}}"]
    if kind == "expression":
        plain = rf"\frac{{{value}\pi}}{{{parameter}}}"
        return [plain, f"{value}*pi/{parameter}", f"${plain}$", rf"\boxed{{{plain}}}"]
    return [str(value), f"{value:,}", f"${value}$", rf"\boxed{{{value}}}", f"{value}.0"]


def _lists(flat: np.ndarray, lengths: np.ndarray) -> pl.Series:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat)))
    assert isinstance(series, pl.Series)
    return series


def _turns(frame: pl.DataFrame, random: np.random.Generator) -> dy.DataFrame[Turns]:
    lengths = random.integers(MEAN_TOKENS // 2, 3 * MEAN_TOKENS // 2 + 1, frame.height)
    tokens = int(lengths.sum())
    # Few tokens are frequent and most are rare, as in text.
    ids = (VOCABULARY * random.random(tokens) ** 3).astype(np.int32)
    logprobs = -random.exponential(0.4, tokens).astype(np.float32)
    tagged = (
        pl.when(pl.col("code").is_not_null())
        .then(pl.format("{}<code>{}</code>", "reasoning", "code"))
        .when(pl.col("answer").is_not_null())
        .then(pl.format("{}<answer>{}</answer>", "reasoning", "answer"))
        .otherwise("reasoning")
    )
    reason = (
        pl.when(pl.col("code").is_not_null())
        .then(pl.lit("code"))
        .when(pl.col("answer").is_not_null())
        .then(pl.lit("answer"))
        .otherwise(pl.lit("length"))
    )
    return Turns.validate(
        frame.with_columns(
            text=tagged,
            token_ids=_lists(ids, lengths),
            logprobs=_lists(logprobs, lengths),
            finish_reason=reason,
            temperature=pl.lit(1.0),
            top_p=pl.lit(1.0),
            top_k=pl.lit(0),
            policy_version=pl.lit(1),
            seed=pl.Series(random.integers(0, 2**62, frame.height)),
        ).select(Turns.column_names()),
        cast=True,
    )


def _executions(frame: pl.DataFrame, random: np.random.Generator) -> dy.DataFrame[Executions]:
    executed = frame.filter(pl.col("code").is_not_null())
    failed = pl.col("status") != "ok"
    lengths = random.integers(3, 12, executed.height)
    observed = executed.select(
        *TURN_KEY,
        "status",
        "observation",
        stdout=pl.when(failed).then(pl.lit("")).otherwise(pl.col("observation") + "\n"),
        stderr=pl.when(failed).then("observation").otherwise(pl.lit("")),
        exit_code=failed.cast(pl.Int32),
        wall_s=pl.Series(random.gamma(2.0, 0.02, executed.height)),
        cpu_s=pl.Series(random.gamma(2.0, 0.01, executed.height)),
        observation_token_ids=_lists(
            random.integers(0, VOCABULARY, int(lengths.sum()), dtype=np.int32), lengths
        ),
    )
    return Executions.validate(observed.select(Executions.column_names()), cast=True)
