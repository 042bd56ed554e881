"""The stage: executes the code of turns and says what the policy sees of it."""

from collections.abc import Callable, Sequence

import dataframely as dy
import polars as pl

from schemas.config import ExecutionConfig
from schemas.tables import Executions, FinishReason, Turns
from stages.execution.namespaces import NamespaceExecutor
from stages.execution.observation import observation_text
from stages.execution.protocol import SNIPPET_SCHEMA, Executor
from stages.execution.unsafe_local import UnsafeLocalExecutor


def make_executor(config: ExecutionConfig) -> Executor:
    """Returns the executor that the configuration names, ready to use.

    Raises:
        schemas.errors.ExecutorError: If `namespaces` cannot isolate code on this machine.
    """
    if config.backend == "unsafe_local":
        return UnsafeLocalExecutor(config)
    return NamespaceExecutor(config)


def execute_turns(
    turns: dy.DataFrame[Turns],
    *,
    executor: Executor,
    config: ExecutionConfig,
    encode_observation: Callable[[Sequence[str]], list[list[int]]],
) -> dy.DataFrame[Executions]:
    """Executes the code of every turn that ended in a closed tool call.

    Args:
        turns: Turns of any kind. Those without a call, or whose call holds no code, have no row
            in the result.
        executor: Runs the code.
        config: Its `observation_chars` bounds what the policy sees.
        encode_observation: Turns observation texts into the token ids to insert, one list a
            text.
    """
    snippets = turns.filter(
        pl.col("finish_reason") == FinishReason.CODE.value, pl.col("code").is_not_null()
    ).select(SNIPPET_SCHEMA.names())
    outcomes = executor.execute(snippets)
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
