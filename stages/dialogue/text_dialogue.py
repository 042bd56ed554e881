"""A dialogue in text: its format says what to insert, where a turn stops and how to read one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
from transformers import PreTrainedTokenizerBase

from schemas.categories import FinishReason
from schemas.errors import PolicyError
from stages.dialogue.encoding import (
    TextEncoder,
    decoded,
    encoded_with_control_tokens,
    with_tags_broken,
)
from stages.dialogue.parsed import ParsedTurn, parsed_columns
from stages.dialogue.tags import Demonstrated, demonstrated
from stages.dialogue.templates import Around


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat:
    """What tells one dialogue in text from another."""

    problem: Around
    """What is inserted around a problem."""
    observation: Around
    """What is inserted around an observation, from the end of one turn to the start of the next."""
    stop_strings: tuple[str, ...]
    """Texts that end a turn."""
    tags: tuple[str, ...]
    """Tags that no problem or observation can write."""
    read: Callable[[str, FinishReason], ParsedTurn]
    """Parses the text of a turn, without the token that ended its message. The reason is `end` if
    there was such a token, else the limit that ended the turn if its text did not."""
    write: Callable[[Demonstrated], str]
    """Writes a demonstrated turn."""


class TextDialogue:
    """Renders and parses a dialogue in text for one tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_format: TextFormat,
        *,
        end: str,
        end_ids: Sequence[int] = (),
    ) -> None:
        """Encodes what will be inserted.

        Args:
            tokenizer: The policy's tokenizer.
            text_format: What to insert and how to read.
            end: What follows the policy's last message. The first control token in it ends a
                message, beside the tokenizer's own end token.
            end_ids: Tokens that end one too, as the model says; those that are text do not.

        Raises:
            PolicyError: If nothing could end a message, the template ends one with mere text, or
                inserted text could forge a control token.
        """
        self.tokenizer = tokenizer
        self._format = text_format
        self._encoder = TextEncoder(tokenizer)
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        written = self._up_to_control_token(end, own)
        ends = [*written[-1:], *own]
        if not ends:
            raise PolicyError("the policy's tokenizer has no end-of-sequence token")
        all_ends = [*ends, *filter(self._encoder.is_control, end_ids)]
        self._end_texts = dict(
            zip(all_ends, self.decode_turns([[index] for index in all_ends]), strict=True)
        )
        self.stop_strings = text_format.stop_strings
        # Engines may leave special tokens out of the text in which they look for strings.
        known = tokenizer.get_added_vocab()
        stops = [known[text] for text in self.stop_strings if text in known]
        self.stop_ids = tuple(dict.fromkeys([*all_ends, *stops]))
        self._end = written or own
        pad_id = tokenizer.pad_token_id
        self.pad_id = ends[-1] if pad_id is None else int(pad_id)
        self._problem = self._encoded(text_format.problem)
        self._observation = self._encoded(text_format.observation)
        # Tags that are control tokens cannot be forged as it is: only text needs to be changed.
        self._tags = tuple(tag for tag in text_format.tags if tag not in known)

    def encode_prompts(self, problems: Sequence[str]) -> list[list[int]]:
        """Returns all that stands before the first turn, a list of token ids a problem."""
        return self._between(self._problem, problems)

    def encode_observations(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns all that stands between a turn that called the tool and the next turn."""
        return self._between(self._observation, texts)

    def encode_turns(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns demonstrated turns, which are written in the tag protocol, as sampled ones."""
        return [self._encoded_turn(demonstrated(text)) for text in texts]

    def decode_turns(self, token_ids: list[list[int]]) -> list[str]:
        """Returns the text of sampled turns, control tokens included."""
        return decoded(self.tokenizer, token_ids)

    def parse_turns(self, turns: pl.DataFrame) -> pl.DataFrame:
        """Splits turns into reasoning, code and answer, and names what is malformed."""
        last = pl.col("token_ids").list.last()
        return parsed_columns(
            self._format.read(text, FinishReason(limit))
            if (end := self._end_texts.get(last_id)) is None
            else self._format.read(text.removesuffix(end), FinishReason.END)
            for text, last_id, limit in turns.select("text", last, "limit").iter_rows()
        )

    def _encoded_turn(self, turn: Demonstrated) -> list[int]:
        text = self._format.write(turn)
        stops = any(text.endswith(stop) for stop in self.stop_strings)
        ids = encoded_with_control_tokens(self.tokenizer, text)
        return ids if stops else [*ids, *self._end]

    def _up_to_control_token(self, end: str, own: Sequence[int]) -> list[int]:
        """Returns what ends a message, up to the token by which that is known; none if blank.

        A template may write white space before that token, and more tokens behind it.
        """
        ids = encoded_with_control_tokens(self.tokenizer, end)
        for count, index in enumerate(ids, start=1):
            if self._encoder.is_control(index) or index in own:
                return ids[:count]
        if end.strip():
            raise PolicyError(
                f"the policy's chat template ends its messages with {end.strip()!r}, which is no "
                "token of its tokenizer, so that no turn would end there: add it to the tokenizer "
                "as a special token"
            )
        return []

    def _encoded(self, around: Around) -> tuple[list[int], list[int]]:
        return (
            encoded_with_control_tokens(self.tokenizer, around.before),
            encoded_with_control_tokens(self.tokenizer, around.after),
        )

    def _between(
        self, around: tuple[list[int], list[int]], texts: Sequence[str]
    ) -> list[list[int]]:
        before, after = around
        harmless = [with_tags_broken(text, self._tags) for text in texts]
        return [[*before, *ids, *after] for ids in self._encoder.encode(harmless)]
