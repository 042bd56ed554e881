"""Texts to token ids and back, so that no inserted text ever becomes a control token."""

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from schemas.errors import PolicyError


class TextEncoder:
    """Encodes text that others wrote: problems and observations.

    Special tokens are split like any text. Added tokens that are not special, such as the
    `<tool_call>` of Qwen, are found by a tokenizer all the same: a text is cut within each, and
    its pieces are encoded one by one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Looks the control tokens up: all added tokens but single characters and white space.

        Raises:
            PolicyError: If the tokenizer makes a control token of its text even so.
        """
        self._tokenizer = tokenizer
        added = {
            token.content: (index, token.special)
            for index, token in tokenizer.added_tokens_decoder.items()
            if len(token.content) > 1 and token.content.strip()
        }
        self._control_ids = frozenset(index for index, _ in added.values())
        plain = sorted((text for text, (_, special) in added.items() if not special), key=len)
        self._cut = re.compile("|".join(map(re.escape, plain))) if plain else None
        for token, ids in zip(added, self.encode(list(added)), strict=True):
            if not self._control_ids.isdisjoint(ids):
                raise PolicyError(
                    f"the policy's tokenizer takes {token} in inserted text for a control token"
                )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, none of them a control token."""
        pieces = [self._pieces(text) for text in texts]
        encoded = iter(self._encode([piece for part in pieces for piece in part]))
        found = [[index for _ in part for index in next(encoded)] for part in pieces]
        return [
            # A normaliser may write a control token that the text does not hold.
            ids if self._control_ids.isdisjoint(ids) else _joined(self._encode(list(text)))
            for text, ids in zip(texts, found, strict=True)
        ]

    def _pieces(self, text: str) -> list[str]:
        """Cuts a text after the first character of every control token in it."""
        pieces, start = [], 0
        while self._cut is not None and (found := self._cut.search(text, start)):
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
        return [*pieces, text[start:]]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    def is_control(self, index: int) -> bool:
        """Says whether a token is a control token."""
        return index in self._control_ids


def encoded_with_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the token ids of a text of this program's own, in which control tokens are meant."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=False)[
        "input_ids"
    ]
    return ids


def decoded(tokenizer: PreTrainedTokenizerBase, token_ids: list[list[int]]) -> list[str]:
    """Returns the text of token ids, character for character, control tokens included."""
    if not token_ids:
        return []
    return list(
        tokenizer.batch_decode(
            token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )


def with_tags_broken(text: str, tags: Iterable[str]) -> str:
    """Writes a space into every tag of a text, behind its first character: `< /code>`.

    Where tags are plain text, this is what keeps an observation from closing its own.
    """
    found = "|".join(re.escape(tag[1:]) for tag in tags)
    starts = "".join({re.escape(tag[0]) for tag in tags})
    return re.sub(rf"([{starts}])(?={found})", r"\1 ", text) if found else text


def _joined(parts: Iterable[list[int]]) -> list[int]:
    return [index for part in parts for index in part]
