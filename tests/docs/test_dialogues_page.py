"""The page on dialogues shows what the code renders."""

import re
from typing import get_args

import pytest
from docs_pages import DOCS, rows_of

from schemas.categories import FinishReason
from schemas.config import DialogueFormat
from stages.dialogue import Dialogue, make_dialogue
from tests.stages.dialogue.chat_tokenizers import smol_like
from tests.stages.tag_tokenizers import tiny_tokenizer

PAGE = DOCS / "dialogues.md"
CALL, ANSWER = "Multiply.\n<code>print(12 * 7)</code>", "So:\n<answer>84</answer>"


def dialogue_of(name: DialogueFormat) -> Dialogue:
    return make_dialogue(name, tiny_tokenizer() if name == "tags" else smol_like())


def transcript(dialogue: Dialogue) -> str:
    """Returns a trajectory line by line, each with who wrote it."""
    (prompt,) = dialogue.encode_prompts(["Take 12. Multiply it by 7."])
    call, answer = dialogue.encode_turns([CALL, ANSWER])
    (shown,) = dialogue.encode_observations(["84"])
    parts = [("inserted", prompt), ("sampled", call), ("inserted", shown), ("sampled", answer)]
    lines = []
    for who, ids in parts:
        (text,) = dialogue.decode_turns([ids])
        lines += [f"    {who:8} | {line}".rstrip() for line in text.removesuffix("\n").split("\n")]
    return "\n".join(lines)


@pytest.mark.parametrize("name", get_args(DialogueFormat))
def test_page_shows_what_each_format_writes(name: DialogueFormat) -> None:
    rendered = transcript(dialogue_of(name))
    page = PAGE.read_text()
    shown = re.search(rf"<!-- rendered: {name} -->\n\n(.*?)\n\n<!-- end -->", page, re.S)
    assert shown is not None
    assert shown[1] == rendered, f"write it as\n{rendered}"


def test_page_lists_every_format() -> None:
    assert [row[0] for row in rows_of(PAGE, "`rollout.dialogue`")] == list(get_args(DialogueFormat))


def test_page_lists_every_finish_reason() -> None:
    assert [row[0] for row in rows_of(PAGE, "finish reason")] == [r.value for r in FinishReason]


@pytest.mark.parametrize("name", get_args(DialogueFormat))
def test_page_says_where_each_format_stops(name: DialogueFormat) -> None:
    dialogue = dialogue_of(name)
    tokens = [dialogue.decode_turns([[index]])[0] for index in dialogue.stop_ids]
    (stops,) = (row[2] for row in rows_of(PAGE, "`rollout.dialogue`") if row[0] == name)
    named = set(re.findall(r"</?\w+>", stops))
    assert named == {stop for stop in [*tokens, *dialogue.stop_strings] if stop.startswith("</")}
