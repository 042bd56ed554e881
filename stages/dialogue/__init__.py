"""Dialogue: how problems, turns and observations become token ids and back.

`tags` reads and writes control tokens that the cold start teaches, `text_tags` the same kind of
tags as plain text, and `chat` the tool calls of a model's own chat template.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from schemas.config import DialogueFormat
from stages.dialogue.chat import chat_dialogue
from stages.dialogue.protocol import Dialogue
from stages.dialogue.tags import TagDialogue
from stages.dialogue.text_tags import text_dialogue

__all__ = ["Dialogue", "make_dialogue"]


def make_dialogue(
    name: DialogueFormat, tokenizer: PreTrainedTokenizerBase, *, end_ids: Sequence[int] = ()
) -> Dialogue:
    """Returns the dialogue format of that name for a tokenizer.

    Args:
        name: Of the format.
        tokenizer: The policy's tokenizer.
        end_ids: Tokens that end what the policy writes, beside the tokenizer's own, as its
            configuration names them. Some name what is text to the tokenizer, such as the defaults
            of transformers' classes: that ends nothing. Needed only to sample.

    Raises:
        schemas.errors.PolicyError: If the tokenizer, or its chat template, does not suit it.
    """
    if name == "chat":
        return chat_dialogue(tokenizer, end_ids=end_ids)
    if name == "text":
        return text_dialogue(tokenizer, end_ids=end_ids)
    return TagDialogue(tokenizer, end_ids=end_ids)
