"""Texts that end a row, found token by token without decoding what came before.

A text is watched for by the automaton of Knuth, Morris and Pratt: its state is how much of the
text the row ends with. What every token does in every state is looked up in a table, made once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase


class StopStrings:
    """Watches rows for texts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        *,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        """Makes the tables.

        Args:
            tokenizer: Knows what each token writes.
            texts: At least one; none is empty.
            vocabulary: Tokens of the policy, at least those of the tokenizer.
            device: Where rows are sampled.
        """
        pieces = _pieces(tokenizer, vocabulary)
        self._tables = [torch.from_numpy(_table(text, pieces)).to(device) for text in texts]
        self._ends = torch.tensor([len(text) for text in texts], device=device)

    def start(self, rows: int) -> torch.Tensor:
        """Returns the states of rows that have written nothing, [rows, texts]."""
        return torch.zeros((rows, len(self._tables)), dtype=torch.long, device=self._ends.device)

    def advance(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the states of rows after one more token each, [rows, texts]."""
        columns = [table[tokens, states[:, i]] for i, table in enumerate(self._tables)]
        return torch.stack(columns, dim=1).long()

    def ended(self, states: torch.Tensor) -> torch.Tensor:
        """Says which rows have written one of the texts, [rows]."""
        return (states == self._ends).any(dim=1)


def _pieces(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[str]:
    """Returns what each token writes within a text; nothing for tokens that are none."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1]
    alone = str(tokenizer.decode([anchor]))
    count = min(vocabulary, len(tokenizer))
    # Behind another token: some tokenizers leave the space before a first word out.
    both = [str(tokenizer.decode([anchor, token])) for token in range(count)]
    return [text.removeprefix(alone) for text in both] + [""] * (vocabulary - count)


def _table(text: str, pieces: Sequence[str]) -> NDArray[np.int16]:
    """Returns the state after each token from each state, [vocabulary, len(text) + 1]."""
    letters = {letter: index for index, letter in enumerate(sorted(set(text)), start=1)}
    step = _automaton(text, letters)
    table = np.tile(np.arange(len(text) + 1, dtype=np.int16), (len(pieces), 1))
    codes = [np.array([letters.get(c, 0) for c in piece], dtype=np.int16) for piece in pieces]
    lengths = np.array([len(code) for code in codes])
    for place in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > place)
        read = np.array([codes[row][place] for row in rows])
        table[rows] = step[table[rows], read[:, None]]
    return table


def _automaton(text: str, letters: dict[str, int]) -> NDArray[np.int16]:
    """Returns the state after each letter, [len(text) + 1, letters + 1]; letter 0 is any other.

    The last state is never left: what follows a text within its last token does not matter.
    """
    end = len(text)
    step = np.zeros((end + 1, len(letters) + 1), dtype=np.int16)
    step[end] = end
    for state in range(end):
        for letter, index in letters.items():
            written = text[:state] + letter
            step[state, index] = next(
                size
                for size in range(len(written), -1, -1)
                if text.startswith(written[-size:] if size else "")
            )
    return step
