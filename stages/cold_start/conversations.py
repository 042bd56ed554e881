"""Rows of a file as conversations to imitate: a problem, turns, and what was shown after each.

A row with `messages` holds the whole conversation; others are of a format that
`stages.foreign` reads. The policy is told what its own dialogue tells it, so system messages are
left out, and the problem is what the user asked last before the first turn.

Rows with a gold answer are graded, and marked as right or not. Those of `messages` are taken on
trust: what their other fields mean nobody knows.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from schemas.categories import Verdict
from schemas.errors import ImitationError, TrajectoryFileError
from stages.answers import final_answers
from stages.foreign.calls import turns_of
from stages.foreign.messages import parts_of, problem_of
from stages.foreign.reading import FORMATS, format_of
from stages.foreign.record import Fields, ForeignTurn, RejectedRow, Row, require_content
from stages.grading import grade

MESSAGES = "messages"
"""Field that holds a whole conversation, and the name of that format."""
ROLES = ("system", "developer", "user", "assistant", "tool")
_LOOKED_AT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTurn:
    """What the policy is to produce at once, and what it is shown then."""

    text: str
    """All that was said, up to the call if there is one."""
    code: str | None = None
    answer: str | None = None
    """Final answer of a last turn; null where it states none."""
    shown: str | None = None

    @property
    def ways_to_write(self) -> list[str]:
        """The turn in the tag protocol, in the order of preference.

        A text that states its answer in words may be enough for a dialogue; if not, a tag follows.
        """
        if self.code is not None:
            return [f"{self.text}<code>{self.code}</code>"]
        if self.answer is None:
            return [self.text]
        tagged = f"{self.text}<answer>{self.answer}</answer>"
        return [self.text, tagged] if self.text.strip() else [tagged]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One row of a file."""

    row: int
    """Its number, from 1."""
    problem: str = ""
    turns: Sequence[ConversationTurn] = ()
    """Every one but the last has code, and something was shown after it."""
    is_right: bool | None = None
    """Whether its answer is the gold answer; null where the row has none."""
    unusable: str | None = None
    """Why it cannot be imitated; null if it can."""


def read_conversations(rows: Iterable[Row], *, time_s: float) -> list[Conversation]:
    """Returns the rows of a file as conversations, those that cannot be used with the reason.

    Args:
        rows: In the order of the file; all of them of one format.
        time_s: Wall time, seconds, after which the comparison with one gold answer is given up.

    Raises:
        ImitationError: If the format is not known.
    """
    first = list(itertools.islice(it := iter(rows), _LOOKED_AT))
    is_chat = any(row.fields is not None and MESSAGES in row.fields for row in first)
    name = MESSAGES if is_chat else _known_format(first)
    numbered = enumerate(itertools.chain(first, it), start=1)
    read = [_read(number, row, name) for number, row in numbered]
    return _graded([conversation for conversation, _ in read], [gold for _, gold in read], time_s)


def _known_format(rows: Sequence[Row]) -> str:
    try:
        return format_of(rows)
    except TrajectoryFileError as error:
        told = str(error).partition(": say it with --format")[0]
        raise ImitationError(
            f"{told}: take rows with {MESSAGES}, or of a format that import-trajectories reads"
        ) from error


def _read(number: int, row: Row, format_name: str) -> tuple[Conversation, str | None]:
    """Returns a row as a conversation, with its gold answer if it has one."""
    try:
        if row.fields is None:
            raise RejectedRow(row.problem or "no fields")
        if format_name == MESSAGES:
            problem, turns = _of_messages(row.fields)
            prediction, gold = None, None
        else:
            known = FORMATS[format_name].parse_row(row.fields)
            problem, turns = known.problem, require_content(known.turns)
            prediction, gold = known.prediction, known.gold
        parsed = _turns(turns, prediction)
    except RejectedRow as reason:
        return Conversation(row=number, unusable=str(reason)), None
    return Conversation(row=number, problem=problem, turns=parsed), gold


def _of_messages(fields: Fields) -> tuple[str, Sequence[ForeignTurn]]:
    messages = fields.get(MESSAGES)
    if not isinstance(messages, list | tuple) or not messages:
        raise RejectedRow("no messages")
    roles = [_role(message) for message in messages]
    if "assistant" not in roles:
        raise RejectedRow("no message of the assistant")
    first = roles.index("assistant")
    return problem_of(messages[:first]), require_content(turns_of(parts_of(messages[first:])))


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise RejectedRow(f"a message of role {role}" if role else "a message without role")
    return str(role)


def _turns(turns: Sequence[ForeignTurn], prediction: str | None) -> list[ConversationTurn]:
    """Returns turns as dialogues here have them.

    Raises:
        RejectedRow: If there is one before the last without call, or without what it showed.
    """
    for turn in turns:
        if turn.parse_error is not None:
            raise RejectedRow(f"a call with {turn.parse_error.value.replace('_', ' ')}")
    for turn in turns[:-1]:
        if turn.code is None:
            raise RejectedRow("a turn without call before the last")
        if turn.output is None:
            raise RejectedRow("a call without what it showed")
    last = turns[-1]
    said, answer = last.reasoning, None
    if last.code is None:
        said = said.partition("<answer>")[0]
        answer = prediction or final_answers(pl.Series([last.text], dtype=pl.String))["answer"][0]
    return [
        *(ConversationTurn(text=t.reasoning, code=t.code, shown=t.output) for t in turns[:-1]),
        ConversationTurn(text=said, code=last.code, answer=answer),
    ]


def _graded(
    conversations: list[Conversation], golds: Sequence[str | None], time_s: float
) -> list[Conversation]:
    """Marks the conversations that have a gold answer as right or not."""
    known = [index for index, gold in enumerate(golds) if gold is not None]
    answers = [conversations[index].turns[-1].answer for index in known]
    pairs = pl.DataFrame(
        {"prediction": answers, "answer": [golds[index] for index in known]},
        schema={"prediction": pl.String, "answer": pl.String},
    )
    verdicts = grade(pairs, time_s=time_s)["verdict"].cast(pl.String)
    for index, verdict in zip(known, verdicts, strict=True):
        conversations[index] = replace(conversations[index], is_right=verdict == Verdict.RIGHT)
    return conversations
