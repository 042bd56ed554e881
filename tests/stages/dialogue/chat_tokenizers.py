"""Tokenizers with chat templates, made on the spot, as pretrained models bring them."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Knows every role and no tools, as that of SmolLM2."""
WITH_TOOLS = (
    "<|im_start|>system\n{{ messages[0].content }}"
    "{% if tools %}{{ '\n# Tools\n' }}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Call with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>{% endif %}<|im_end|>\n'
    "{% for message in messages[1:] %}{% if message.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ message.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Tells of tools and shows observations as users' messages, as that of Qwen 2.5."""
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""Opens the policy's messages with a thought."""


def chat_tokenizer(
    template: str | None = CHATML,
    *,
    calls_are_tokens: bool = False,
    folds_widths: bool = False,
    end: str | None = END,
) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer.

    Args:
        template: Its chat template.
        calls_are_tokens: Whether the tags of calls are added tokens, not special, as Qwen has them.
        folds_widths: Whether it takes full-width characters for plain ones.
        end: Its end-of-sequence token.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if folds_widths:
        backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    if calls_are_tokens:
        backend.add_tokens([AddedToken(tag) for tag in ("<tool_call>", "</tool_call>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)
    tokenizer.chat_template = template
    return tokenizer


@cache
def qwen_like() -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose template takes tools and whose calls are tokens; only read it."""
    return chat_tokenizer(WITH_TOOLS, calls_are_tokens=True)


@cache
def smol_like() -> PreTrainedTokenizerFast:
    """Returns a tokenizer to which calls are plain text; only read it."""
    return chat_tokenizer(CHATML)
