"""Chat templates: cut where they can be, refused where not."""

import pytest

from schemas.errors import PolicyError
from stages.dialogue.templates import (
    PROBLEM,
    Around,
    around_observation,
    around_problem,
    end_of_message,
    rendered,
)
from tests.stages.dialogue.chat_tokenizers import CHATML, THINKING, WITH_TOOLS, chat_tokenizer

OPENING = [{"role": "system", "content": "Solve."}, {"role": "user", "content": PROBLEM}]


def test_what_stands_around_a_problem_and_an_observation() -> None:
    tokenizer = chat_tokenizer(WITH_TOOLS)
    assert around_problem(tokenizer, OPENING) == Around(
        before="<|im_start|>system\nSolve.<|im_end|>\n<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
    )
    assert around_observation(tokenizer, OPENING) == Around(
        before="<|im_end|>\n<|im_start|>user\n<tool_response>\n",
        after="\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    )
    assert end_of_message(tokenizer, OPENING) == "<|im_end|>\n"


@pytest.mark.parametrize("template", [CHATML, WITH_TOOLS])
def test_pieces_make_up_what_the_template_writes(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    problem = around_problem(tokenizer, OPENING)
    observation = around_observation(tokenizer, OPENING)
    messages = [
        OPENING[0],
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "I add."},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "I look."},
        {"role": "tool", "content": "5"},
    ]
    pieces = f"{problem.before}2 + 2?{problem.after}"
    for turn, shown in (("I add.", "4"), ("I look.", "5")):
        pieces += f"{turn}{observation.before}{shown}{observation.after}"
    assert rendered(tokenizer, messages) == pieces


def test_a_template_may_open_messages_with_a_thought() -> None:
    after = around_observation(chat_tokenizer(THINKING), OPENING).after
    assert after == "<|im_end|>\n<|im_start|>assistant\n<think>\n"


REFUSED = {
    "unknown role": (
        "{% for m in messages if m.role != 'tool' %}[{{ m.content }}]{% endfor %}",
        "it does not write every message once and as it is",
    ),
    "role that raises": (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}[{{ m.content }}]{% endfor %}",
        "refuses messages of system, user, assistant, tool: no tools",
    ),
    "observation as JSON": (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ m.content | tojson }}"
        "{% else %}[{{ m.content }}]{% endif %}{% endfor %}",
        "it does not write every message once and as it is",
    ),
    "content twice": (
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "it does not write every message once and as it is",
    ),
    "earlier messages change": (
        "{{ messages | length }}{% for m in messages %}[{{ m.content }}]{% endfor %}",
        "it writes earlier messages otherwise once others follow",
    ),
    "observations differ": (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ loop.index }}{% endif %}"
        "[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}",
        "it does not write every observation alike",
    ),
    "no template code": ("{% for %}", "refuses messages of system, user"),
    "division by zero": ("{{ 1 / 0 }}", "refuses messages of system, user: division by zero"),
    "endless macro": (
        "{% macro more() %}{{ more() }}{% endmacro %}{{ more() }}",
        "refuses messages of system, user: maximum recursion depth exceeded",
    ),
    "endless loop": ("{% for i in range(10 ** 9) %}{% endfor %}", "refuses messages of system"),
}


@pytest.mark.parametrize(("template", "message"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_cannot_be_cut_is_refused_in_one_line(template: str, message: str) -> None:
    with pytest.raises(PolicyError) as refusal:
        around_observation(chat_tokenizer(template), OPENING)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_template_that_leaves_the_instructions_out_is_refused() -> None:
    template = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
    with pytest.raises(PolicyError, match="does not write the message of role system"):
        around_problem(chat_tokenizer(template), OPENING)


def test_a_template_that_does_not_start_the_policys_message_is_refused() -> None:
    heads_only_what_is_there = CHATML.partition("{% if add_generation_prompt")[0]
    with pytest.raises(PolicyError, match="does not start the policy's message"):
        end_of_message(chat_tokenizer(heads_only_what_is_there), OPENING)


def test_a_template_whose_messages_have_no_head_needs_no_start() -> None:
    """As those of Llama 2 and Mistral: what ends the user's message starts the policy's."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}<|im_end|>"
        "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
    )
    assert end_of_message(chat_tokenizer(template), OPENING) == "<|im_end|>"


def test_a_template_that_writes_the_date_writes_the_same_one_every_day() -> None:
    template = (
        "{% macro today() %}{{ strftime_now('%A, %d %b %Y') }} ({{ strftime_now('%Y-%m-%d') }})"
        "{% endmacro %}{% if strftime_now is defined %}{{ today() }}\n{% endif %}" + CHATML
    )
    text = rendered(chat_tokenizer(template), OPENING)
    assert text.startswith("Friday, 26 Jul 2024 (2024-07-26)\n<|im_start|>system")


@pytest.mark.parametrize("template", [CHATML, WITH_TOOLS, "\n" + CHATML, "  " + CHATML])
def test_all_else_is_written_as_transformers_does(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    written = tokenizer.apply_chat_template(OPENING, tokenize=False, add_generation_prompt=True)
    assert rendered(tokenizer, OPENING) == written
