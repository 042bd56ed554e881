"""What the report says of the measured updates."""

import polars as pl

from flows.study_report import typical_noise


def test_a_seed_without_a_last_update_counts_among_the_first() -> None:
    rows = [("deep", "grpo", seed, at, 4, 1.0, 8.0) for seed, at in ((1, 1), (1, 20), (2, 1))]
    columns = ["task", "arm", "seed", "iteration", "groups", "signal", "noise"]
    told = typical_noise(pl.DataFrame(rows, schema=columns, orient="row"))
    assert told.select("update", "seeds").rows() == [("first", 2), ("last", 1)]
