"""Tags in plain text: what is written is read back, and nothing inserted writes a tag."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.categories import FinishReason
from stages.dialogue.tags import Demonstrated
from stages.dialogue.text_tags import INSTRUCTIONS, TAGS, read_turn, text_dialogue, write_turn
from tests.stages.dialogue.chat_tokenizers import START, chat_tokenizer, smol_like
from tests.stages.reward_frames import LAW

END, LENGTH = FinishReason.END, FinishReason.LENGTH
UNTAGGED = st.text(max_size=30).filter(lambda text: "<" not in text and "\\" not in text)
TURNS = [
    # text, what ended it if no tag did, finish reason, code, answer, parse error
    ("<code>\n```python\nprint(1)\n```\n</code>", LENGTH, "code", "print(1)", None, None),
    ("<code>```py\nprint(1)```</code>\n", LENGTH, "code", "print(1)", None, None),
    ("<code>\nprint(1)\n</code>", LENGTH, "code", "print(1)", None, None),
    ("<code>```python\nif 1:\n  x\n```</code>", LENGTH, "code", "if 1:\n  x", None, None),
    ("<code>```python\nprint(</code>", LENGTH, "code", "```python\nprint(", None, "syntax_error"),
    ("<code>1</code><answer>2</answer>", END, "code", "1", None, None),
    ("a<code>x<code>2</code>", END, "code", "2", None, None),
    ("<answer>\\boxed{84}</answer>", LENGTH, "answer", None, "84", None),
    ("<answer> 84 </answer>", LENGTH, "answer", None, "84", None),
    ("<answer>so \\boxed{8} or \\boxed{\\frac{1}{2}}</answer>", END, "answer", None, "\\frac{1}{2}",
     None),
    ("It is \\boxed{84}.", END, "answer", None, "84", None),
    ("<answer>\\boxed{84}", END, "answer", None, "84", None),
    ("It is \\boxed{84}.", LENGTH, "length", None, None, None),
    ("<code>print('\\boxed{84}')", END, "end", None, None, "unclosed_code"),
    ("```python\nprint(1)\n```", END, "end", None, None, None),
    ("<code>\n```python\n```\n</code>", LENGTH, "end", None, None, "empty_code"),
    ("print(1)</code>", LENGTH, "end", None, None, "unclosed_code"),
    ("<code>print(1)</answer>", LENGTH, "end", None, None, "unclosed_code"),
    ("84</answer>", LENGTH, "end", None, None, "unclosed_answer"),
    ("<answer>84", END, "end", None, None, "unclosed_answer"),
    ("<code>print(", LENGTH, "length", None, None, "unclosed_code"),
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


def test_the_first_tag_ends_the_reasoning() -> None:
    assert read_turn("one <answer>\\boxed{1}</answer>", END).reasoning == "one "


@LAW
@given(reasoning=UNTAGGED, code=st.text(min_size=1).filter(str.strip))
def test_a_call_is_read_as_it_was_written(reasoning: str, code: str) -> None:
    if "</code>" in code or "</answer>" in code or "<code>" in code:
        return
    turn = read_turn(write_turn(Demonstrated(reasoning=reasoning, code=code, answer=None)), LENGTH)
    assert (turn.reasoning, turn.code, turn.finish_reason) == (reasoning, code, "code")


@LAW
@given(reasoning=UNTAGGED, answer=st.integers() | st.fractions())
def test_an_answer_is_read_as_it_was_written(reasoning: str, answer: object) -> None:
    written = write_turn(Demonstrated(reasoning=reasoning, code=None, answer=str(answer)))
    turn = read_turn(written, LENGTH)
    assert (turn.reasoning, turn.answer, turn.finish_reason) == (reasoning, str(answer), "answer")


@LAW
@given(text=st.lists(st.one_of(st.sampled_from([*TAGS, "<", "\n"]), st.text(max_size=5))))
def test_an_observation_cannot_close_its_tag(text: list[str]) -> None:
    dialogue = text_dialogue(smol_like())
    (shown,) = dialogue.decode_turns(dialogue.encode_observations(["".join(text)]))
    assert shown.startswith("\n<interpreter>\n")
    assert shown.endswith("\n</interpreter>\n")
    assert sum(shown.count(tag) for tag in TAGS) == 2


def test_a_prompt_holds_the_problem_inside_the_models_template() -> None:
    dialogue = text_dialogue(smol_like())
    (text,) = dialogue.decode_turns(dialogue.encode_prompts(["2 + 2?</code>"]))
    assert text == (
        f"<|im_start|>user\n{INSTRUCTIONS}2 + 2?< /code><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_model_without_template_is_given_the_text_alone() -> None:
    tokenizer = chat_tokenizer(None)
    dialogue = text_dialogue(tokenizer)
    (text,) = dialogue.decode_turns(dialogue.encode_prompts(["2 + 2?"]))
    assert text == f"{INSTRUCTIONS}2 + 2?\n\nSolution:\n"
    assert dialogue.stop_ids == (tokenizer.eos_token_id,)


def test_a_text_begins_with_the_start_token_if_the_tokenizer_writes_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat_tokenizer(None)
    tokenizer.bos_token = START
    assert text_dialogue(tokenizer).encode_prompts(["?"])[0][0] != tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.bos_token_id)]
    )
    ids = text_dialogue(tokenizer).encode_prompts(["?"])[0]
    assert (ids[0], ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
