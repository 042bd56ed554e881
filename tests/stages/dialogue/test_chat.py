"""Tool calls through a chat template: what is written is read back; what is inserted is exact."""

import json
from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from schemas.categories import FinishReason
from schemas.errors import PolicyError
from stages.dialogue.chat import INSTRUCTIONS, TAGS, TOOL, chat_dialogue, read_turn, write_turn
from stages.dialogue.tags import Demonstrated
from stages.dialogue.text_dialogue import TextDialogue
from stages.dialogue.text_tags import text_dialogue
from tests.stages.dialogue.chat_tokenizers import (
    CHATML,
    END,
    START,
    chat_tokenizer,
    qwen_like,
    smol_like,
)
from tests.stages.reward_frames import LAW

ENDED, LENGTH = FinishReason.END, FinishReason.LENGTH
TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [qwen_like(), smol_like()], ids=["tokens", "text"]
)


def call(arguments: object, name: str = "python") -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


TURNS = [
    # text, what ended it if no call did, finish reason, code, answer, parse error
    (call({"code": "print(1)"}), LENGTH, "code", "print(1)", None, None),
    (call({"code": "print(1)", "more": 2}) + "\n", LENGTH, "code", "print(1)", None, None),
    ('<tool_call>{"name": "python", "arguments": {"code": "a\nb"}}</tool_call>', LENGTH, "code",
     "a\nb", None, None),
    (call({"code": "print("}), LENGTH, "code", "print(", None, "syntax_error"),
    ("<tool_call>no " + call({"code": "1"}), LENGTH, "code", "1", None, None),
    (call({"code": " "}), LENGTH, "end", None, None, "empty_code"),
    (call({"cod": "1"}), LENGTH, "end", None, None, "malformed_call"),
    (call({"code": 1}), LENGTH, "end", None, None, "malformed_call"),
    (call("print(1)"), LENGTH, "end", None, None, "malformed_call"),
    (call({"code": "1"}, name="search"), LENGTH, "end", None, None, "malformed_call"),
    ("<tool_call>print(1)</tool_call>", LENGTH, "end", None, None, "malformed_call"),
    ("<tool_call>[1]</tool_call>", LENGTH, "end", None, None, "malformed_call"),
    ("<tool_call>" + "[" * 100_000 + "</tool_call>", LENGTH, "end", None, None, "malformed_call"),
    ("<tool_call>" + "9" * 5_000 + "</tool_call>", LENGTH, "end", None, None, "malformed_call"),
    (call({"code": "\ud800"}), LENGTH, "end", None, None, "malformed_call"),
    ("1</tool_call>", LENGTH, "end", None, None, "unclosed_code"),
    ("<tool_call>{", ENDED, "end", None, None, "unclosed_code"),
    ("<tool_call>\\boxed{84}", ENDED, "end", None, None, "unclosed_code"),
    ("<tool_call>{", LENGTH, "length", None, None, "unclosed_code"),
    ("It is \\boxed{8} or \\boxed{ 84 }.", ENDED, "answer", None, "84", None),
    ("It is \\boxed{84}.", LENGTH, "length", None, None, None),
    ("It is 84.", ENDED, "end", None, None, None),
    ("", FinishReason.CONTEXT, "context", None, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "ended", "reason", "code", "answer", "error"), TURNS)
def test_turns_are_read_as_documented(
    text: str,
    ended: FinishReason,
    reason: str,
    code: str | None,
    answer: str | None,
    error: str | None,
) -> None:
    turn = read_turn(text, ended)
    assert (turn.finish_reason, turn.code, turn.answer) == (reason, code, answer)
    assert turn.parse_error == error


@LAW
@given(
    reasoning=st.text(max_size=30).filter(lambda text: "<" not in text),
    code=st.text(min_size=1).filter(lambda text: text.strip() and "_call>" not in text),
)
def test_a_call_is_read_as_it_was_written(reasoning: str, code: str) -> None:
    turn = read_turn(write_turn(Demonstrated(reasoning=reasoning, code=code, answer=None)), LENGTH)
    assert (turn.reasoning, turn.code, turn.finish_reason) == (reasoning, code, "code")


@LAW
@given(answer=st.integers() | st.fractions())
def test_an_answer_is_read_as_it_was_written(answer: object) -> None:
    written = write_turn(Demonstrated(reasoning="So.", code=None, answer=str(answer)))
    turn = read_turn(written, ENDED)
    assert (turn.answer, turn.finish_reason) == (str(answer), "answer")


def test_a_template_that_takes_tools_is_given_the_tool() -> None:
    dialogue = chat_dialogue(qwen_like())
    (text,) = dialogue.decode_turns(dialogue.encode_prompts(["2 + 2?"]))
    assert text == (
        f"<|im_start|>system\n{INSTRUCTIONS}\n# Tools\n{json.dumps(TOOL)}\n"
        'Call with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_any_other_is_told_of_it_in_the_system_message() -> None:
    dialogue = chat_dialogue(smol_like())
    (text,) = dialogue.decode_turns(dialogue.encode_prompts(["2 + 2?"]))
    system, _, rest = text.partition("<|im_end|>\n")
    assert system.startswith(f"<|im_start|>system\n{INSTRUCTIONS}")
    assert json.dumps(TOOL) in system
    assert rest == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"


def test_an_observation_ends_the_message_and_starts_the_next() -> None:
    shown = [d.decode_turns(d.encode_observations(["4"]))[0] for d in map(chat_dialogue, (
        smol_like(), qwen_like()))]  # fmt: skip
    assert shown == [
        "<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n",
    ]


@TOKENIZERS
def test_a_turn_stops_at_its_call_and_at_the_end_of_its_message(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    dialogue = chat_dialogue(tokenizer)
    known = tokenizer.get_added_vocab()
    tokens = [known[text] for text in (END, "</tool_call>") if text in known]
    assert list(dialogue.stop_ids) == tokens
    assert dialogue.stop_strings == ("</tool_call>",)


def test_a_message_ends_with_the_templates_token_beside_the_tokenizers() -> None:
    tokenizer = chat_tokenizer(CHATML, end=START)
    ends = [tokenizer.get_added_vocab()[END], tokenizer.eos_token_id]
    assert list(chat_dialogue(tokenizer).stop_ids) == ends


@TOKENIZERS
@LAW
@given(
    text=st.lists(
        st.one_of(st.sampled_from([*TAGS, START, END, "<", "\n"]), st.text(max_size=5))
    ).map("".join)
)
def test_nothing_inserted_holds_a_control_token_or_a_tag_in_text(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    dialogue = chat_dialogue(tokenizer)
    control = set(tokenizer.get_added_vocab().values())
    for encode in (dialogue.encode_prompts, dialogue.encode_observations):
        empty, forged = encode(["", text])
        assert [i for i in forged if i in control] == [i for i in empty if i in control]
        (shown,), (frame,) = dialogue.decode_turns([forged]), dialogue.decode_turns([empty])
        written = set(TAGS) - set(tokenizer.get_added_vocab())
        assert [shown.count(tag) for tag in written] == [frame.count(tag) for tag in written]


def test_a_tokenizer_without_template_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"no chat template, which rollout\.dialogue=chat needs"):
        chat_dialogue(chat_tokenizer(None))


def test_a_tokenizer_that_ends_nothing_is_refused() -> None:
    bare = "{% for m in messages %}[{{ m.content }}{% endfor %}{% if add_generation_prompt %}[{% endif %}"  # noqa: E501
    with pytest.raises(PolicyError, match="no end-of-sequence token"):
        chat_dialogue(chat_tokenizer(bare, end=None))


@pytest.mark.parametrize(
    ("end", "tokens"),
    [("\n<|im_end|>\n", "\n<|im_end|>"), ("<|im_end|><|im_start|>", "<|im_end|>")],
)
def test_a_message_ends_at_the_first_control_token_behind_it(end: str, tokens: str) -> None:
    """The tokenizer's own end token is another one, as that of many pretrained models is."""
    tokenizer = chat_tokenizer(CHATML.replace("<|im_end|>\n", end), end="</s>")
    dialogue = chat_dialogue(tokenizer)
    known = tokenizer.get_added_vocab()
    assert list(dialogue.stop_ids) == [known[END], known["</s>"]]
    written = dialogue.encode_turns(["So.<answer>5</answer>"])
    assert dialogue.decode_turns(written)[0].endswith(tokens)
    turns = pl.DataFrame({"text": dialogue.decode_turns(written), "token_ids": written})
    read = dialogue.parse_turns(turns.with_columns(limit=pl.lit("length")))
    assert (read["finish_reason"].item(), read["answer"].item()) == ("answer", "5")


@pytest.mark.parametrize("make", [chat_dialogue, text_dialogue])
def test_a_template_that_ends_messages_with_mere_text_is_refused(
    make: Callable[[PreTrainedTokenizerFast], TextDialogue],
) -> None:
    tokenizer = chat_tokenizer(CHATML.replace("<|im_end|>", "<|end_of_it|>"), end=END)
    with pytest.raises(PolicyError, match=r"ends its messages with '<\|end_of_it\|>', which is no"):
        make(tokenizer)
