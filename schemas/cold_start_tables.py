"""Tables of the cold start: what it learns from, and its steps."""

import dataframely as dy
import polars as pl


class Demonstrations(dy.Schema):
    """Grain: demonstration. What the cold start learns from."""

    demonstration_id = dy.Int64(primary_key=True, min=0, metadata={"doc": "Position, from 0."})
    task_id = dy.String(metadata={"doc": "Problem demonstrated."})
    problem = dy.String(metadata={"doc": "Problem text."})
    answer = dy.String(metadata={"doc": "Gold answer."})
    source = dy.String(metadata={"doc": "Task families of the problem."})
    level = dy.Int32(metadata={"doc": "Number of chained steps."})
    right = dy.Bool(metadata={"doc": "Whether the demonstrated answer is right."})
    flaw = dy.String(nullable=True, metadata={"doc": "Kind of the planted mistake, if any."})
    segments = dy.List(
        dy.Struct({"role": dy.String(), "text": dy.String()}),
        metadata={
            "doc": "Transcript in order: a `problem`, then `turn` and `observation` in turn; "
            "only turns carry loss."
        },
    )


class ColdStartExamples(dy.Schema):
    """Grain: trajectory or conversation that the cold start was given. What it learnt from it."""

    example = dy.Int64(primary_key=True, min=0, metadata={"doc": "Position, from 0."})
    sampled_in = dy.Int32(
        nullable=True,
        min=0,
        metadata={"doc": "Iteration of the run that sampled it; null if from a file."},
    )
    task_id = dy.String(nullable=True, metadata={"doc": "Group in the run; null if from a file."})
    sample_index = dy.Int32(
        nullable=True, min=0, metadata={"doc": "Trajectory in its group; null if from a file."}
    )
    row = dy.Int64(nullable=True, min=1, metadata={"doc": "Row of the file; null if from a run."})
    left_out = dy.String(
        nullable=True, metadata={"doc": "Why nothing was learnt from it; null if it was learnt."}
    )
    tokens = dy.Int32(
        nullable=True,
        min=1,
        metadata={"doc": "Tokens up to the last of its own; null if it was not written as tokens."},
    )
    prompt_tokens = dy.Int32(
        nullable=True, min=0, metadata={"doc": "How many of them are the prompt."}
    )
    token_ids = dy.List(
        dy.Int32(),
        nullable=True,
        metadata={"doc": "[tokens] what was learnt from; null if it was left out."},
    )
    carries_loss = dy.List(
        dy.Bool(),
        nullable=True,
        metadata={"doc": "[tokens] whether the policy is to produce the token."},
    )

    @dy.rule()
    def learnt_or_left_out(cls) -> pl.Expr:
        """An example has tokens, or a reason why not."""
        return pl.col("left_out").is_null() == pl.col("token_ids").is_not_null()

    @dy.rule()
    def one_mark_a_token(cls) -> pl.Expr:
        """Every token says whether it carries loss."""
        return pl.col("token_ids").list.len().eq_missing(pl.col("carries_loss").list.len())


class ColdStartUpdates(dy.Schema):
    """Grain: optimiser step of the supervised cold start."""

    step = dy.Int32(primary_key=True, min=0, metadata={"doc": "Step, from 0."})
    loss = dy.Float64(metadata={"doc": "Mean negative log-likelihood, nats a token."})
    learning_rate = dy.Float64(metadata={"doc": "Learning rate of the AdamW group."})
    tokens = dy.Int64(metadata={"doc": "Tokens of the batch, padding left out."})
    seconds = dy.Float64(metadata={"doc": "Wall time of the step, seconds.", "measured": True})
