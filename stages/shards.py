"""Shards: parts of whole groups, which run beside each other."""

import dataframely as dy
import numpy as np
import polars as pl

from schemas.tables import Prompts


def take_shard(prompts: dy.DataFrame[Prompts], shard: int, shards: int) -> dy.DataFrame[Prompts]:
    """Returns one of `shards` parts of whole groups, of sizes that differ by one at most."""
    part = np.array_split(np.arange(len(prompts)), shards)[shard]
    rows: pl.DataFrame = prompts[part.tolist()]
    return Prompts.validate(rows)
