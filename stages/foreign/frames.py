"""Tables of foreign trajectories: prompts, turns, executions, labels and rejected rows.

What others did not keep is not made up: token ids are empty, times and exit codes null. Where the
schema asks for a value of the sampling (temperature, top-p, top-k, policy version, seed) it is 1,
1, 0, 0 and 0; only optimisation would read it, and that is refused for imported runs.

An execution is `error` where its output ends in an error of Python, else `ok`: nothing more can be
told from a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import dataframely as dy
import polars as pl

from schemas.categories import ExecutionStatus, FinishReason, ParseError
from schemas.tables import (
    TRAJECTORY_KEY,
    TURN_KEY,
    Executions,
    ForeignLabels,
    Prompts,
    RejectedTrajectories,
    Turns,
)
from stages.answers import final_answers
from stages.foreign.record import ForeignTrajectory
from stages.python_syntax import is_no_python

_FAILED = (
    r"Traceback \(most recent call last\)"
    r"|(?:^|\n)[A-Za-z_][\w.]*(?:Error|Exception)(?::[^\n]*)?\s*$"
)
"""A traceback, or a last line such as `NameError: name 'x' is not defined`."""

_TURN_SCHEMA = {
    "task_id": pl.String,
    "sample_index": pl.Int32,
    "turn_index": pl.Int32,
    "text": pl.String,
    "reasoning": pl.String,
    "code": pl.String,
    "output": pl.String,
    "parse_error": pl.String,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A trajectory and the row where it stood."""

    row: int
    trajectory: ForeignTrajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The samples of one problem."""

    task_id: str
    problem: str
    gold: str
    row: int
    """Row of the first sample."""
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row that cannot be used."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTables:
    """A rollout that somebody else made."""

    prompts: dy.DataFrame[Prompts]
    """Groups, in the order of their first rows."""
    turns: dy.DataFrame[Turns]
    executions: dy.DataFrame[Executions]
    """Of turns with code whose output is known."""
    labels: dy.DataFrame[ForeignLabels]
    """One row a trajectory."""
    rejected: dy.DataFrame[RejectedTrajectories]

    @property
    def max_turns(self) -> int:
        """Most turns of a trajectory; one more where the last one was executed.

        In a rollout of ours the code of the last turn is not, so there is a turn after each
        execution, if only an empty one.
        """
        return max(_most(self.turns), _most(self.executions) + 1)

    @property
    def max_samples(self) -> int:
        """Most samples of a group."""
        return int(self.labels.group_by("task_id").len()["len"].max())  # type: ignore[arg-type]


def make_tables(
    groups: Sequence[Group], rejected: Sequence[Rejected], *, source: str
) -> ImportedTables:
    """Makes the tables of groups that have a sample each.

    Args:
        groups: In the order that they shall have.
        rejected: Rows that are in no group.
        source: Name for the `source` column.
    """
    turns = _turn_rows(groups)
    return ImportedTables(
        prompts=_prompts(groups, source),
        turns=_turns(turns, groups),
        executions=_executions(turns),
        labels=_labels(groups),
        rejected=RejectedTrajectories.validate(
            pl.DataFrame(
                [(r.row, r.reason, r.text) for r in rejected],
                schema=pl.Schema(RejectedTrajectories),
                orient="row",
            )
        ),
    )


def _most(turns: pl.DataFrame) -> int:
    return max(turns["turn_index"].to_list(), default=-1) + 1


def _prompts(groups: Sequence[Group], source: str) -> dy.DataFrame[Prompts]:
    named = pl.DataFrame(
        [(group.task_id, group.problem, group.gold) for group in groups],
        schema=["task_id", "problem", "answer"],
        orient="row",
    )
    return Prompts.validate(
        named.with_columns(
            source=pl.lit(source),
            level=pl.lit(None, pl.Int32),
            prompt_token_ids=pl.lit([], pl.List(pl.Int32)),
            round=pl.lit(0, pl.Int32),
        )
    )


def _labels(groups: Sequence[Group]) -> dy.DataFrame[ForeignLabels]:
    rows = [
        (
            *(group.task_id, index, sample.row, sample.trajectory.score),
            sum(t.code is None and t.output is not None for t in sample.trajectory.turns),
        )
        for group in groups
        for index, sample in enumerate(group.samples)
    ]
    return ForeignLabels.validate(pl.DataFrame(rows, schema=pl.Schema(ForeignLabels), orient="row"))


def _turn_rows(groups: Sequence[Group]) -> pl.DataFrame:
    """Returns one row a turn, with what the record says of it."""
    rows = [
        (
            *(group.task_id, sample_index, turn_index),
            *(turn.text, turn.reasoning, turn.code, turn.output, turn.parse_error),
        )
        for group in groups
        for sample_index, sample in enumerate(group.samples)
        for turn_index, turn in enumerate(sample.trajectory.turns)
    ]
    return pl.DataFrame(rows, schema=_TURN_SCHEMA, orient="row")


def _predictions(groups: Sequence[Group]) -> pl.DataFrame:
    """Returns the final answer of every trajectory: its own, else that of its last turn's text."""
    rows = [
        (group.task_id, index, sample.trajectory.prediction, sample.trajectory.turns[-1].text)
        for group in groups
        for index, sample in enumerate(group.samples)
    ]
    schema = {
        "task_id": pl.String,
        "sample_index": pl.Int32,
        "prediction": pl.String,
        "text": pl.String,
    }
    named = pl.DataFrame(rows, schema=schema, orient="row")
    without = named.with_columns(text=pl.when(pl.col("prediction").is_null()).then("text"))
    return named.select(
        *TRAJECTORY_KEY, answer=pl.coalesce("prediction", final_answers(without["text"])["answer"])
    )


def _turns(rows: pl.DataFrame, groups: Sequence[Group]) -> dy.DataFrame[Turns]:
    is_last = pl.col("turn_index") == pl.col("turn_index").max().over(TRAJECTORY_KEY)
    has_code = pl.col("code").is_not_null()
    unparsable = rows["code"].map_elements(is_no_python, return_dtype=pl.Boolean, skip_nulls=True)
    frame = (
        rows.join(_predictions(groups), on=TRAJECTORY_KEY, how="left", maintain_order="left")
        .with_columns(answer=pl.when(is_last).then("answer"), unparsable=unparsable)
        .with_columns(
            finish_reason=pl.when(has_code)
            .then(pl.lit(FinishReason.CODE.value))
            .when(pl.col("answer").is_not_null())
            .then(pl.lit(FinishReason.ANSWER.value))
            .otherwise(pl.lit(FinishReason.END.value)),
            parse_error=pl.when(pl.col("unparsable").fill_null(False))
            .then(pl.lit(ParseError.SYNTAX_ERROR.value))
            .otherwise("parse_error"),
            token_ids=pl.lit([], pl.List(pl.Int32)),
            logprobs=pl.lit([], pl.List(pl.Float32)),
            temperature=pl.lit(1.0),
            top_p=pl.lit(1.0),
            top_k=pl.lit(0),
            policy_version=pl.lit(0),
            seed=pl.lit(0),
        )
    )
    return Turns.validate(frame.select(Turns.column_names()), cast=True)


def _executions(rows: pl.DataFrame) -> dy.DataFrame[Executions]:
    status = (
        pl.when(pl.col("output").str.contains(_FAILED))
        .then(pl.lit(ExecutionStatus.ERROR.value))
        .otherwise(pl.lit(ExecutionStatus.OK.value))
    )
    ran = pl.col("code").is_not_null() & pl.col("output").is_not_null()
    frame = rows.filter(ran).select(
        *TURN_KEY,
        status=status,
        stdout="output",
        stderr=pl.lit(""),
        exit_code=pl.lit(None, pl.Int32),
        wall_s=pl.lit(None, pl.Float64),
        cpu_s=pl.lit(None, pl.Float64),
        observation="output",
        observation_token_ids=pl.lit([], pl.List(pl.Int32)),
    )
    return Executions.validate(frame, cast=True)
