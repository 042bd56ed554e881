"""What a stored run takes on disk: bytes a sampled token, and bytes a turn beside them.

Columns of token ids, log-probabilities, texts and code grow with the tokens; all others, and the
heads of the files, with turns and files. Reads metadata of Parquet files only.

    python -m benchmarks.table_bytes --store turnledger-store --run train-df8d3d8d
"""

import argparse
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from benchmarks.printing import print_figures
from storage import open_table

TABLES = ("turns", "executions", "turn_rewards", "shaped_rewards", "advantages", "turn_updates")
GROWING = ("token_ids", "logprobs", "text", "reasoning", "code", "observation", "stdout", "stderr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = options.store / f"run={options.run}"
    growing = whole = 0
    for table in TABLES:
        for file in folder.glob(f"iteration=*/split=train/**/{table}.parquet"):
            whole += file.stat().st_size
            growing += column_bytes(file)
    turns = open_table(options.store, options.run, "turns").select(
        turns=pl.len(), tokens=pl.col("token_ids").list.len().sum()
    )
    counted = turns.collect().row(0, named=True)
    print_figures(
        {
            "turns": counted["turns"],
            "sampled_tokens": counted["tokens"],
            "megabytes": whole / 1e6,
            "bytes_a_sampled_token": growing / counted["tokens"],
            "bytes_a_turn": (whole - growing) / counted["turns"],
        },
        f"tables of {options.run}",
        as_json=options.json,
    )


def column_bytes(file: Path) -> int:
    """Returns the stored bytes of the columns that grow with the tokens."""
    metadata = pq.read_metadata(file)
    return sum(
        group.column(i).total_compressed_size
        for group in (metadata.row_group(n) for n in range(metadata.num_row_groups))
        for i in range(group.num_columns)
        if group.column(i).path_in_schema.partition(".")[0].startswith(GROWING)
    )


if __name__ == "__main__":
    main()
