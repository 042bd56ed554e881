"""A parsed turn, and the columns that many of them make."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from schemas.categories import FinishReason, ParseError
from stages.python_syntax import is_no_python


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTurn:
    """What a turn holds; code exactly with finish reason `code`, an answer with `answer`."""

    finish_reason: FinishReason
    reasoning: str
    code: str | None = None
    answer: str | None = None
    parse_error: ParseError | None = None

    @classmethod
    def call(cls, reasoning: str, code: str) -> "ParsedTurn":
        """Returns a turn whose call holds this code, which may be blank or no Python."""
        if not code.strip():
            return cls.broken(FinishReason.END, reasoning, ParseError.EMPTY_CODE)
        return cls(
            finish_reason=FinishReason.CODE,
            reasoning=reasoning,
            code=code,
            parse_error=ParseError.SYNTAX_ERROR if is_no_python(code) else None,
        )

    @classmethod
    def broken(
        cls, finish_reason: FinishReason, reasoning: str, error: ParseError | None
    ) -> "ParsedTurn":
        """Returns a turn with neither code nor answer."""
        return cls(finish_reason=finish_reason, reasoning=reasoning, parse_error=error)


def parsed_columns(turns: Iterable[ParsedTurn]) -> pl.DataFrame:
    """Returns the columns of the turns table that parsing makes, a row a turn."""
    return pl.DataFrame(
        [
            (turn.finish_reason.value, turn.reasoning, turn.code, turn.answer, turn.parse_error)
            for turn in turns
        ],
        schema={
            "finish_reason": pl.Enum([reason.value for reason in FinishReason]),
            "reasoning": pl.String,
            "code": pl.String,
            "answer": pl.String,
            "parse_error": pl.Enum([error.value for error in ParseError]),
        },
        orient="row",
    )
