import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.foreign.calls import turns_of
from stages.foreign.splitting import problem_of_prompt, split_text
from tests.stages.reward_frames import LAW

MARKS = [
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<code>", "</code>"),
    *("<interpreter>", "</interpreter>", "<output>", "</output>", "<|im_end|>\n", "<|im_end|>"),
    *("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_start|>tool\n", "\nuser\n"),
    *("\nassistant\n", "```python\n", "```output\n", "\n```\n", "```", "\n", " ", "x = 1"),
    *("<|start_header_id|>ipython<|end_header_id|>\n\n", "<|eot_id|>", "<answer>", "user"),
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
]
TEXTS = st.lists(st.sampled_from(MARKS) | st.text(max_size=5)).map("".join)


@given(TEXTS)
@LAW
def test_the_parts_joined_give_back_the_text(text: str) -> None:
    assert "".join(part.text for part in split_text(text)) == text


@given(TEXTS)
@LAW
def test_no_part_is_empty_and_no_two_said_ones_are_neighbours(text: str) -> None:
    parts = split_text(text)
    assert all(part.text for part in parts)
    said = [part.is_said for part in parts]
    assert (True, True) not in list(itertools.pairwise(said))


@given(TEXTS)
@LAW
def test_turns_say_in_order_what_was_said_and_nothing_else(text: str) -> None:
    said = "".join(part.text for part in split_text(text) if part.is_said)
    told = "".join(turn.text for turn in turns_of(split_text(text)))
    assert "".join(told.split()) == "".join(said.split())


CALL = '<tool_call>\n{"name": "python", "arguments": {"code": "print(6 * 7)"}}\n</tool_call>'
DIALOGUES = {
    "chatml": f"Try.{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response>"
    "<|im_end|>\n<|im_start|>assistant\nSo 42.<|im_end|>",
    "chatml without special tokens": f"Try.{CALL}\nuser\n<tool_response>\n42\n</tool_response>\n"
    "assistant\nSo 42.",
    "chatml with a role of tools": f"Try.{CALL}<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n"
    "<|im_start|>assistant\nSo 42.",
    "the same without special tokens": f"Try.{CALL}\ntool\n42\nassistant\nSo 42.",
    "llama 3": f"Try.{CALL}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n42<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nSo 42.<|eot_id|>",
    "tora": "Try.\n```python\nprint(6 * 7)\n```\n```output\n42\n```\nSo 42.",
    "retool": "Try.<code>\n```python\nprint(6 * 7)\n```\n</code>\n<interpreter>\n42\n</interpreter>"
    "\nSo 42.",
    "our own": "Try.<code>print(6 * 7)</code><output>42</output>So 42.",
}


@pytest.mark.parametrize("text", DIALOGUES.values(), ids=DIALOGUES)
def test_every_way_to_write_a_call_gives_the_same_two_turns(text: str) -> None:
    first, second = turns_of(split_text(text))
    assert (first.code, first.output) == ("print(6 * 7)", "42")
    assert first.reasoning.strip() == "Try."
    assert (second.code, second.output) == (None, None)
    assert second.text.strip().startswith("So 42.")


def test_several_responses_belong_to_the_calls_before_them() -> None:
    text = (
        f"{CALL}{CALL}\nuser\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n"
        "</tool_response>\nassistant\nDone."
    )
    first, _ = turns_of(split_text(text))
    assert first.code == "print(6 * 7)\nprint(6 * 7)"
    assert first.output == "1\n2"


def test_marks_inside_code_are_code() -> None:
    text = "<code>print('<output>1</output>')</code><output>2</output>End."
    first, _ = turns_of(split_text(text))
    assert first.code == "print('<output>1</output>')"
    assert first.output == "2"


def test_a_dialogue_that_was_cut_after_an_output_ends_there() -> None:
    (turn,) = turns_of(split_text(f"{CALL}\nuser\n<tool_response>\n42\n</tool_response>"))
    assert turn.output == "42"


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "system\nBe brief.\nuser\nWhat?\nassistant\n",
        "system\nBe brief.\nuser\nWhat?\nassistant\n<think>\n",
        "<|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\n",
        " What?\n",
    ],
)
def test_the_problem_is_what_the_user_asked(prompt: str) -> None:
    assert problem_of_prompt(prompt) == "What?"
