"""The stage: executes the code of turns and says what the policy sees of it."""

from collections.abc import Callable, Sequence

import dataframely as dy
import polars as pl

from schemas.categories import ExecutionStatus, FinishReason
from schemas.config import ExecutionConfig
from schemas.tables import TURN_KEY, Executions, Turns
from stages.execution.observation import observation_text
from stages.execution.protocol import Executor, Outcome, outcome_frame
from stages.execution.sandbox import SandboxExecutor
from stages.execution.sandbox_fusion import FusionExecutor
from stages.execution.unsafe_local import UnsafeLocalExecutor
from stages.randomness import derive_seed, uniforms

TOOL_FAULT = Outcome(ExecutionStatus.ERROR, stderr="ConnectionError: the tool did not answer")
"""What a call comes to that `execution.fault_rate` lets fail."""
_FAULT_STREAM = derive_seed("tool fault")


def make_executor(config: ExecutionConfig) -> Executor:
    """Returns the executor that the configuration names, ready to use.

    Raises:
        schemas.errors.ExecutorError: If `sandbox` cannot isolate code on this machine, or the
            server of `sandbox_fusion` does not answer.
    """
    if config.backend == "unsafe_local":
        return UnsafeLocalExecutor(config)
    if config.backend == "sandbox_fusion":
        return FusionExecutor(config)
    return SandboxExecutor(config)


def execute_turns(
    turns: dy.DataFrame[Turns],
    *,
    executor: Executor,
    config: ExecutionConfig,
    encode_observation: Callable[[Sequence[str]], list[list[int]]],
    earlier: dy.DataFrame[Turns] | None = None,
) -> dy.DataFrame[Executions]:
    """Executes the code of every turn that ended in a closed tool call.

    Args:
        turns: Turns of any kind. Those without a call, or whose call holds no code, have no row
            in the result.
        executor: Runs the code.
        config: Its `observation_chars` bounds what the policy sees. Of the calls a share of
            `fault_rate` is not run and has the outcome `TOOL_FAULT`.
        encode_observation: Turns observation texts into the token ids to insert, one list a
            text.
        earlier: Turns before them, of the same trajectories, whose code is run again first; null
            where snippets start afresh.
    """
    calls = _calls(turns, config.fault_rate)
    states = (
        _calls(Turns.create_empty() if earlier is None else earlier, config.fault_rate)
        .filter(~pl.col("faulty"))
        .sort("turn_index")
        .group_by("task_id", "sample_index")
        .agg(pl.col("code").alias("earlier"))
    )
    snippets = calls.join(
        states, on=["task_id", "sample_index"], how="left", maintain_order="left"
    ).select(*TURN_KEY, "code", pl.col("earlier").fill_null([]))
    faulty = calls["faulty"]
    run = executor.execute(snippets.filter(~faulty))
    not_run = outcome_frame(snippets.filter(faulty), [TOOL_FAULT] * int(faulty.sum()))
    outcomes = snippets.select(TURN_KEY).join(
        pl.concat([run, not_run]), on=TURN_KEY, how="left", maintain_order="left"
    )
    observations = [
        observation_text(status, stdout, stderr, max_chars=config.observation_chars)
        for status, stdout, stderr in outcomes.select("status", "stdout", "stderr").iter_rows()
    ]
    token_ids = encode_observation(observations) if observations else []
    executions = outcomes.with_columns(
        pl.Series("observation", observations, dtype=pl.String),
        pl.Series("observation_token_ids", token_ids, dtype=pl.List(pl.Int32)),
    )
    return Executions.validate(executions)


def _calls(turns: pl.DataFrame, fault_rate: float) -> pl.DataFrame:
    is_call = pl.col("finish_reason") == FinishReason.CODE.value
    calls = turns.filter(is_call, pl.col("code").is_not_null())
    # A stream of its own: the turn's tokens were drawn from that of the seed itself.
    streams = calls["seed"].to_numpy() ^ _FAULT_STREAM
    faulty = pl.Series("faulty", uniforms(streams, 1)[:, 0] < fault_rate, dtype=pl.Boolean)
    return calls.select(*TURN_KEY, "code").with_columns(faulty)
