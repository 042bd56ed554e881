"""Dialogue: how problems, turns and observations become token ids and back.

`tags` reads and writes control tokens that the cold start teaches, `text_tags` the same kind of
tags as plain text, and `chat` the tool calls of a model's own chat template.
"""

from transformers import PreTrainedTokenizerBase

from schemas.config import DialogueFormat
from stages.dialogue.chat import chat_dialogue
from stages.dialogue.protocol import Dialogue
from stages.dialogue.tags import TagDialogue
from stages.dialogue.text_tags import text_dialogue

__all__ = ["Dialogue", "make_dialogue"]


def make_dialogue(name: DialogueFormat, tokenizer: PreTrainedTokenizerBase) -> Dialogue:
    """Returns the dialogue format of that name for a tokenizer.

    Raises:
        schemas.errors.PolicyError: If the tokenizer, or its chat template, does not suit it.
    """
    if name == "chat":
        return chat_dialogue(tokenizer)
    if name == "text":
        return text_dialogue(tokenizer)
    return TagDialogue(tokenizer)
