"""Measures the store against bare pyarrow: the same rows, codec and compression level.

The store validates every row, encodes, digests, waits for the disk and writes a manifest; when
reading it digests every byte before it decodes. pyarrow writes and reads the file, and that is
all; once more with a wait for the disk, which is what a write that survives a power cut costs.
The shortest of several repeats, which take turns: other work on the machine only ever adds. The
promise is at least half of pyarrow's speed, for writing against the write that waits for the disk.

    python benchmarks/store.py --rows 50000 --json
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from schemas.refs import TableRef
from schemas.tables import TABLES
from storage import Fingerprint, Slot, Store
from storage.tables import COMPRESSION_LEVEL, parquet_bytes, validated
from storage.verification import described_bytes

SEED = 0
TOKENS = 120
"""Mean number of tokens of a turn."""
VOCABULARY = 32_000


def turns(rows: int) -> pl.DataFrame:
    """Returns turns with token ids and log-probabilities as a language model has them."""
    random = np.random.default_rng(SEED)
    lengths = random.poisson(TOKENS, rows).clip(1)
    ids = random.zipf(1.3, lengths.sum()).clip(max=VOCABULARY - 1).astype(np.int32)
    logprobs = -random.exponential(0.4, lengths.sum()).astype(np.float32)
    ends = lengths.cumsum()[:-1]
    words = np.array([f"w{i:x}" for i in range(VOCABULARY)])
    texts = [" ".join(part) for part in np.split(words[ids], ends)]
    frame = pl.DataFrame(
        {
            "task_id": [f"task-{i // 32:06d}" for i in range(rows)],
            "sample_index": np.arange(rows, dtype=np.int32) // 4 % 8,
            "turn_index": np.arange(rows, dtype=np.int32) % 4,
            "text": texts,
            "token_ids": np.split(ids, ends),
            "logprobs": np.split(logprobs, ends),
            "finish_reason": ["code"] * rows,
            "reasoning": [text[: len(text) // 2] for text in texts],
            "code": [text[len(text) // 2 :] for text in texts],
            "answer": pl.Series([None] * rows, dtype=pl.String),
            "parse_error": pl.Series([None] * rows, dtype=pl.String),
            "temperature": [1.0] * rows,
            "top_p": [1.0] * rows,
            "top_k": [0] * rows,
            "policy_version": [3] * rows,
            "seed": random.integers(0, 2**62, rows),
        }
    )
    return TABLES["turns"].schema.cast(frame)


def measure(frame: pl.DataFrame, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of every repeat, by what was done."""
    store = Store.open(folder / "store", create=True)
    sampled = Store.open(folder / "store", verify="sampled")
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    file = folder / "bare.parquet"
    slot = Slot(run="bench", iteration=0, split="train", stage="rollout")
    seconds: dict[str, list[float]] = {}
    ref: TableRef | None = None

    def timed(name: str, action: Callable[[], object]) -> None:
        started = time.perf_counter()
        action()
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    for repeat in range(repeats):
        fingerprint = Fingerprint(
            stage="rollout", code={}, config={"repeat": repeat}, inputs={}, seed=0, libraries={}
        )

        def write(fingerprint: Fingerprint = fingerprint) -> None:
            nonlocal ref
            output = store.write(slot, fingerprint, tables={"turns": frame}, seconds=0, parents=[])
            ref = output.tables["turns"]

        timed("pyarrow write", lambda: write_bare(table, file))
        timed("pyarrow write, on disk", lambda: sync(write_bare(table, file)))
        timed("store write", write)
        assert ref is not None
        timed("pyarrow read", lambda: pq.read_table(file))
        timed("pyarrow read, as polars", lambda: pl.from_arrow(pq.read_table(file)))
        timed("store read", lambda: store.read(ref))
        timed("store find", lambda f=fingerprint: store.find(slot, f))
        timed("store find, sampled", lambda f=fingerprint: sampled.find(slot, f))
        timed("part: validate", lambda: validated("turns", frame))
        timed("part: encode", lambda: parquet_bytes(frame))
        timed("part: digest", lambda: described_bytes(file.read_bytes()))
    return seconds


def write_bare(table: pa.Table, file: Path) -> Path:
    pq.write_table(table, file, compression="zstd", compression_level=COMPRESSION_LEVEL)
    return file


def sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    frame = turns(options.rows)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        seconds = measure(frame, Path(folder), options.repeats)
        mib = (Path(folder) / "bare.parquet").stat().st_size / 2**20
    shortest = {name: min(times) for name, times in seconds.items()}
    ratios = {
        "write": shortest["pyarrow write, on disk"] / shortest["store write"],
        "read": shortest["pyarrow read, as polars"] / shortest["store read"],
    }
    if options.json:
        print(json.dumps({"rows": options.rows, "mib": mib, "seconds": shortest, "ratios": ratios}))
        return
    shown = Table(title=f"{options.rows} turns, {mib:.0f} MiB of Parquet, {os.cpu_count()} CPUs")
    for heading in ("", "seconds", "MiB/s"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, best in shortest.items():
        shown.add_row(name, f"{best:.3f}", f"{mib / best:.0f}")
    Console().print(shown)
    for name, ratio in ratios.items():
        Console().print(f"speed of the store, {name}: {ratio:.2f} of pyarrow")


if __name__ == "__main__":
    main()
