"""Contamination: benchmark problems that training has asked, exactly or nearly.

Texts are compared as words: runs of letters and digits in lower case, and each Han character for
itself. Two problems of equal words are the same. Else the overlap of a benchmark problem with a
training problem is the share of its distinct runs of 5 words that the training problem has too
(containment, Broder 1997); problems of fewer words count as one run. Runs of words rather than
words, because problems share their vocabulary; 5 and not the 13 of web corpora, because
problems are short.

It finds copies and rewordings here and there. It does not find translations, nor the same problem
with other numbers, which trains what is asked rather than what is answered.
"""

import polars as pl

RUN_WORDS = 5
NEAR = 0.5
"""Overlap from which a problem counts as nearly the same."""
CONTAMINATION_SCHEMA = {
    "benchmark": pl.String,
    "task_id": pl.String,
    "kind": pl.String,
    "overlap": pl.Float64,
    "training_task_id": pl.String,
    "problem": pl.String,
    "training_problem": pl.String,
}

_WORD = r"\p{Han}|[\p{L}\p{N}]+"


def find_contamination(benchmark: pl.DataFrame, training: pl.DataFrame) -> pl.DataFrame:
    """Returns the benchmark problems that are, or resemble, a training problem.

    Args:
        benchmark: `benchmark`, `task_id` and `problem`, all String.
        training: `task_id` and `problem`, all String; each text counts once.

    Returns:
        One row a problem that was found, with its nearest training problem, in the order of
        `benchmark`; columns of `CONTAMINATION_SCHEMA`, `kind` is `exact` or `near`, `overlap` is
        the share above, 1 for exact ones.
    """
    asked = _worded(benchmark.with_row_index("row"))
    trained = _worded(
        training.unique(subset="problem", maintain_order=True).with_row_index("training_row")
    )
    exact = asked.join(
        trained.unique(subset="words", maintain_order=True), on="words", suffix="_2"
    ).select("row", "training_row", overlap=pl.lit(1.0), kind=pl.lit("exact"))
    left = asked.join(exact, on="row", how="anti")
    found = pl.concat([exact, _near(left, trained)]).sort("row")
    return (
        found.join(asked, on="row")
        .join(
            trained.select("training_row", training_task_id="task_id", training_problem="problem"),
            on="training_row",
        )
        .sort("row")
        .select(pl.col(name).cast(kind) for name, kind in CONTAMINATION_SCHEMA.items())
    )


def _worded(problems: pl.DataFrame) -> pl.DataFrame:
    words = pl.col("problem").str.to_lowercase().str.extract_all(_WORD)
    worded = problems.with_columns(words=words.list.join(" "))
    return worded.filter(pl.col("words") != "")


def _near(asked: pl.DataFrame, trained: pl.DataFrame) -> pl.DataFrame:
    of_asked, of_trained = _runs(asked, "row"), _runs(trained, "training_row")
    size = of_asked.group_by("row").agg(size=pl.len())
    return (
        of_asked.join(of_trained, on="run")
        .group_by("row", "training_row")
        .agg(shared=pl.len())
        .join(size, on="row")
        .with_columns(overlap=pl.col("shared") / pl.col("size"), kind=pl.lit("near"))
        .filter(pl.col("overlap") >= NEAR)
        .sort("row", "overlap", "training_row", descending=[False, True, False])
        .unique(subset="row", keep="first", maintain_order=True)
        .select("row", "training_row", "overlap", "kind")
    )


def _runs(problems: pl.DataFrame, row: str) -> pl.DataFrame:
    """Returns the distinct runs of words of each problem, as hashes."""
    words = pl.col("words").str.split(" ")
    length = pl.min_horizontal(words.list.len(), RUN_WORDS)
    starts = pl.int_ranges(0, words.list.len().cast(pl.Int64) - length.cast(pl.Int64) + 1)
    return (
        problems.select(row, words=words, length=length, start=starts)
        .explode("start")
        .select(row, run=pl.col("words").list.slice("start", "length").list.join(" ").hash(seed=0))
        .unique()
    )
