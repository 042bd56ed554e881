"""Small policies and transcripts for the tests of the cold start."""

import contextlib
import io
from collections.abc import Mapping, Sequence

import dataframely as dy
import polars as pl

from schemas.cold_start_tables import Demonstrations
from schemas.config import PolicyConfig

LEVELS = (1, 2, 3)
SMALL_POLICY = PolicyConfig(hidden_size=32, layers=2, heads=2, feed_forward_size=64)
"""Trains some steps within a second; its tokenizer is of the default size."""

Segment = Mapping[str, str]


def output_of(code: str) -> str:
    """Returns what one of the project's own snippets prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<snippet>", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def texts_of(segments: Sequence[Segment], role: str) -> list[str]:
    return [segment["text"] for segment in segments if segment["role"] == role]


def calls_of(segments: Sequence[Segment]) -> list[tuple[str, str]]:
    """Returns the code of every call of a transcript with the observation that follows it."""
    turns, observations = texts_of(segments, "turn"), texts_of(segments, "observation")
    codes = [turn.partition("<code>")[2].removesuffix("</code>") for turn in turns[:-1]]
    return list(zip(codes, observations, strict=True))


def demonstrations_frame(
    transcripts: Sequence[Sequence[tuple[str, str]]],
) -> dy.DataFrame[Demonstrations]:
    """Returns demonstrations of transcripts, (role, text) each."""
    rows = [
        {
            "demonstration_id": index,
            "task_id": str(index),
            "problem": "?",
            "answer": "1",
            "source": "test",
            "level": 1,
            "right": True,
            "flaw": None,
            "segments": [{"role": role, "text": text} for role, text in transcript],
        }
        for index, transcript in enumerate(transcripts)
    ]
    return Demonstrations.validate(pl.DataFrame(rows, infer_schema_length=None), cast=True)
