"""The tag protocol: how problems, turns and observations become token ids and back.

A trajectory reads

    <problem>Take 12. Multiply it by 7.</problem>
    Multiply.<code>print(12 * 7)</code><output>84</output>
    <answer>84</answer>

where the tags are single control tokens. The policy samples a turn up to `</code>`, `</answer>`
or its end token; the program inserts everything else. Text that is inserted is encoded with
control tokens switched off, so no problem and no printed line can forge one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from transformers import PreTrainedTokenizerBase

from schemas.categories import FinishReason, ParseError
from schemas.errors import PolicyError
from stages.dialogue.encoding import TextEncoder, decoded
from stages.python_syntax import is_no_python

TAGS = (
    "<problem>",
    "</problem>",
    "<code>",
    "</code>",
    "<output>",
    "</output>",
    "<answer>",
    "</answer>",
)


_DEMONSTRATED = re.compile(r"(?s)(.*?)<(code|answer)>(.*)</\2>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrated:
    """A turn to imitate; with code, or an answer, or neither."""

    reasoning: str
    code: str | None
    answer: str | None


def demonstrated(text: str) -> Demonstrated:
    """Reads a demonstrated turn, which is written in the tag protocol."""
    found = _DEMONSTRATED.fullmatch(text)
    if found is None:
        return Demonstrated(reasoning=text, code=None, answer=None)
    reasoning, tag, content = found.groups()
    is_code = tag == "code"
    return Demonstrated(
        reasoning=reasoning,
        code=content if is_code else None,
        answer=None if is_code else content,
    )


class TagDialogue:
    """Renders and parses the tag protocol for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, end_ids: Sequence[int] = ()) -> None:
        """Looks the control tokens up.

        Args:
            tokenizer: A fast tokenizer that knows every tag as one special token.
            end_ids: Tokens that end a turn beside the tokenizer's end token, as the model says;
                those that are text do not.

        Raises:
            PolicyError: If a tag or the end token is missing, or if inserted text could forge a
                control token, such as a tag that the tokenizer does not hold for a special one.
        """
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        missing = [tag for tag in TAGS if tag not in vocabulary]
        if missing or tokenizer.eos_token_id is None:
            what = missing[0] if missing else "an end-of-sequence token"
            raise PolicyError(f"the policy's tokenizer does not know {what}: run the cold start")
        self._ids: dict[str, int] = {tag: vocabulary[tag] for tag in TAGS}
        for tag, ids in zip(TAGS, self._encode(TAGS, control_tokens=False), strict=True):
            if not set(ids).isdisjoint(self._ids.values()):
                raise PolicyError(
                    f"the policy's tokenizer takes {tag} in inserted text for a control token: "
                    "make it a special token and run the cold start"
                )
        self._encoder = TextEncoder(tokenizer)
        self.code_end_id = self._ids["</code>"]
        self.answer_end_id = self._ids["</answer>"]
        self.eos_id = int(tokenizer.eos_token_id)
        pad_id = tokenizer.pad_token_id
        self.pad_id = self.eos_id if pad_id is None else int(pad_id)
        tags = (self.code_end_id, self.answer_end_id)
        ends = [index for index in end_ids if index in tokenizer.added_tokens_decoder]
        self.stop_ids = tuple(dict.fromkeys([*tags, self.eos_id, *ends]))
        self.stop_strings = ()

    def encode_prompts(self, problems: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each problem as the policy sees it."""
        start = self.tokenizer.bos_token_id
        prefix = [] if start is None else [int(start)]
        return [prefix + ids for ids in self._encode_between("<problem>", problems, "</problem>")]

    def encode_observations(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids that are inserted after a call, tags included."""
        return self._encode_between("<output>", texts, "</output>")

    def encode_turns(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of demonstrated turns, whose tags are control tokens."""
        return [list(ids) for ids in self._encode(texts, control_tokens=True)]

    def decode_turns(self, token_ids: list[list[int]]) -> list[str]:
        """Returns the text of sampled turns, control tags included."""
        return decoded(self.tokenizer, token_ids)

    def parse_turns(self, turns: pl.DataFrame) -> pl.DataFrame:
        """Splits turns into reasoning, code and answer, and names what is malformed."""
        last = pl.col("token_ids").list.last()
        stop = (
            pl.when(last == self.code_end_id)
            .then(pl.lit("code"))
            .when(last == self.answer_end_id)
            .then(pl.lit("answer"))
            .when(last.is_in(self.stop_ids))
            .then(pl.lit("end"))
            .otherwise("limit")
        )
        return parse_turns(turns.select("text", stop=stop))

    def _encode_between(self, opening: str, texts: Sequence[str], closing: str) -> list[list[int]]:
        return [
            [self._ids[opening], *ids, self._ids[closing]] for ids in self._encoder.encode(texts)
        ]

    def _encode(self, texts: Sequence[str], *, control_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=not control_tokens
        )["input_ids"]
        return ids


def parse_turns(turns: pl.DataFrame) -> pl.DataFrame:
    """Splits generated text into reasoning, code and answer, and names what is malformed.

    Args:
        turns: Frame with `text`, where control tags stand as text, and `stop`, one of `code`,
            `answer`, `end`, `length` and `context`: what sampling stopped at.

    Returns:
        The columns `finish_reason`, `reasoning`, `code`, `answer` and `parse_error` of the
        turns table, in the order of the input.
    """
    text = pl.col("text")
    call = text.str.extract(r"(?s)^.*<code>(.*)</code>$", 1)
    given = text.str.extract(r"(?s)^.*<answer>(.*)</answer>$", 1)
    stopped_at = pl.col("stop")
    parsed = turns.select(
        "stop",
        reasoning=text.str.extract(r"(?s)^(.*?)(?:<code>|<answer>|$)", 1).fill_null(""),
        code=pl.when((stopped_at == "code") & (call.str.strip_chars() != "")).then(
            call.str.strip_chars("\n")
        ),
        empty_call=(stopped_at == "code") & (call.str.strip_chars() == ""),
        answer=pl.when(stopped_at == "answer").then(given.str.strip_chars()),
        open_call=text.str.contains("<code>", literal=True) | (stopped_at == "code"),
        open_answer=text.str.contains("<answer>", literal=True) | (stopped_at == "answer"),
    )
    unparsable = parsed["code"].map_elements(is_no_python, return_dtype=pl.Boolean, skip_nulls=True)
    return parsed.select(
        finish_reason=pl.when((stopped_at == "code") & pl.col("code").is_null())
        .then(pl.lit(FinishReason.END.value))
        .when((stopped_at == "answer") & pl.col("answer").is_null())
        .then(pl.lit(FinishReason.END.value))
        .otherwise(stopped_at)
        .cast(pl.Enum([r.value for r in FinishReason])),
        reasoning="reasoning",
        code="code",
        answer="answer",
        parse_error=pl.when(unparsable.fill_null(False))
        .then(pl.lit(ParseError.SYNTAX_ERROR.value))
        .when(pl.col("code").is_not_null() | pl.col("answer").is_not_null())
        .then(None)
        .when(pl.col("empty_call").fill_null(False))
        .then(pl.lit(ParseError.EMPTY_CODE.value))
        .when("open_call")
        .then(pl.lit(ParseError.UNCLOSED_CODE.value))
        .when("open_answer")
        .then(pl.lit(ParseError.UNCLOSED_ANSWER.value))
        .cast(pl.Enum([e.value for e in ParseError])),
    )
