"""What stages ask of a dialogue format."""

from collections.abc import Sequence
from typing import Protocol

import polars as pl
from transformers import PreTrainedTokenizerBase


class Dialogue(Protocol):
    """Renders prompts and observations as token ids, and parses turns, for one tokenizer.

    A trajectory is a prompt, then turns and observations in turn: its token ids are theirs, end
    to end. The policy samples the turns; all else is inserted. Nothing is ever encoded again.
    """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn; the stopping token is part of it."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end a turn; the token that completes one is the last of it."""

    @property
    def pad_id(self) -> int:
        """Token that fills short rows of a batch."""

    def encode_prompts(self, problems: Sequence[str]) -> list[list[int]]:
        """Returns all that stands before the first turn, a list of token ids a problem."""

    def encode_observations(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns all that stands between a turn that called the tool and the next turn."""

    def encode_turns(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns demonstrated turns, which are written in the tag protocol, as sampled ones."""

    def decode_turns(self, token_ids: list[list[int]]) -> list[str]:
        """Returns the text of sampled turns, control tokens included."""

    def parse_turns(self, turns: pl.DataFrame) -> pl.DataFrame:
        """Splits turns into reasoning, code and answer, and names what is malformed.

        Args:
            turns: Frame with `token_ids`, their `text`, and `limit`, one of `length` and
                `context`: which limit ended the turn if nothing else did.

        Returns:
            The columns `finish_reason`, `reasoning`, `code`, `answer` and `parse_error` of the
            turns table, in the order of the input. A turn has code exactly if it finished for
            `code`, and an answer exactly if for `answer`.
        """
