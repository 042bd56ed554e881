"""Examples: trajectories as sampled, conversations as a rollout holds them, and what is not."""

import polars as pl
import pytest
from transformers import PreTrainedTokenizerBase

from schemas.config import DialogueFormat
from schemas.errors import ImitationError
from stages.cold_start.conversations import Conversation, ConversationTurn
from stages.cold_start.examples import (
    NO_TOKEN,
    NOT_SCORED,
    TOO_LONG,
    UNREADABLE,
    examples_of_file,
    examples_of_run,
)
from stages.cold_start.examples import (
    WRONG as NOT_RIGHT,
)
from stages.cold_start.tiny_policy import make_tokenizer
from stages.dialogue import Dialogue, make_dialogue
from stages.dialogue.tags import TagDialogue
from tests.stages.cold_start.cold_start_builders import SMALL_POLICY
from tests.stages.cold_start.imitation_builders import (
    CUT_OFF,
    RIGHT,
    WRONG,
    Transcript,
    rollout_of,
)
from tests.stages.dialogue.chat_tokenizers import chat_tokenizer

FORMATS: list[DialogueFormat] = ["tags", "text", "chat"]
CONVERSATION = Conversation(
    row=1,
    problem="Take 12. Multiply it by 7.",
    turns=[
        ConversationTurn(text="product", code="print(12 * 7)", shown="84"),
        ConversationTurn(text="", answer="84"),
    ],
)


@pytest.fixture(scope="module")
def dialogues(dialogue: TagDialogue) -> dict[str, Dialogue]:
    tokenizer: PreTrainedTokenizerBase = chat_tokenizer()
    others: list[DialogueFormat] = ["text", "chat"]
    return {"tags": dialogue, **{name: make_dialogue(name, tokenizer) for name in others}}


def laid_end_to_end(transcript: Transcript, dialogue: Dialogue) -> list[tuple[int, bool]]:
    """Encodes a transcript part by part; a token is marked if it is the policy's own."""
    encode = {
        "problem": dialogue.encode_prompts,
        "turn": dialogue.encode_turns,
        "observation": dialogue.encode_observations,
    }
    return [(i, role == "turn") for role, text in transcript for i in encode[role]([text])[0]]


def learnt(examples: pl.DataFrame) -> list[list[tuple[int, bool]]]:
    rows = examples.filter(pl.col("left_out").is_null()).select("token_ids", "carries_loss")
    return [list(zip(*row, strict=True)) for row in rows.iter_rows()]


def reasons(examples: pl.DataFrame) -> list[str | None]:
    return examples["left_out"].to_list()


# Of a run


@pytest.mark.parametrize("name", FORMATS)
def test_a_trajectory_is_its_stored_tokens_end_to_end(
    name: str, dialogues: dict[str, Dialogue]
) -> None:
    dialogue = dialogues[name]
    rollout = rollout_of([RIGHT], dialogue)
    examples = examples_of_run({1: rollout}, dialogue, only_right=True, max_tokens=5_000)
    assert learnt(examples) == [laid_end_to_end(RIGHT, dialogue)]
    prompt = rollout.prompts["prompt_token_ids"].list.len()[0]
    assert examples.select("tokens", "prompt_tokens").rows() == [
        (len(laid_end_to_end(RIGHT, dialogue)), prompt)
    ]


def test_tokens_are_those_that_were_sampled_also_where_text_would_be_encoded_otherwise(
    dialogue: TagDialogue,
) -> None:
    rollout = rollout_of([RIGHT], dialogue)
    known = dialogue.tokenizer.get_vocab()
    letters = [known[letter] for letter in "product"]
    asked = pl.col("turn_index") == 0
    call = rollout.turns.filter(asked)["token_ids"][0].to_list()
    spelt = [*letters, *call[call.index(known["<code>"]) :]]
    turns = rollout.turns.with_columns(
        token_ids=pl.when(asked).then(pl.lit(spelt, pl.List(pl.Int32))).otherwise("token_ids")
    )
    sampled = type(rollout)(
        prompts=rollout.prompts,
        turns=turns,
        executions=rollout.executions,
        rewards=rollout.rewards,
    )
    assert spelt != call
    (row,) = learnt(examples_of_run({1: sampled}, dialogue, only_right=True, max_tokens=500))
    assert [token for token, own in row if own][: len(spelt)] == spelt


def test_wrong_trajectories_stay_and_are_not_learnt(dialogue: TagDialogue) -> None:
    rollout = rollout_of([WRONG, RIGHT], dialogue)
    examples = examples_of_run({1: rollout}, dialogue, only_right=True, max_tokens=500)
    assert reasons(examples) == [NOT_RIGHT, None]
    assert examples["sample_index"].to_list() == [0, 1]
    assert examples["token_ids"].is_null().to_list() == [True, False]


def test_all_trajectories_can_be_learnt(dialogue: TagDialogue) -> None:
    rollout = rollout_of([WRONG, RIGHT], dialogue)
    examples = examples_of_run({1: rollout}, dialogue, only_right=False, max_tokens=500)
    assert learnt(examples) == [laid_end_to_end(t, dialogue) for t in (WRONG, RIGHT)]


def test_what_was_shown_after_the_last_sampled_token_is_no_part(dialogue: TagDialogue) -> None:
    rollout = rollout_of([CUT_OFF], dialogue)
    examples = examples_of_run({1: rollout}, dialogue, only_right=False, max_tokens=500)
    assert learnt(examples) == [laid_end_to_end(CUT_OFF[:2], dialogue)]


def test_a_trajectory_without_a_token_of_its_own_is_left_out(dialogue: TagDialogue) -> None:
    rollout = rollout_of([RIGHT, [RIGHT[0], ("turn", "")]], dialogue)
    examples = examples_of_run({1: rollout}, dialogue, only_right=False, max_tokens=500)
    assert reasons(examples) == [None, NO_TOKEN]


def test_a_trajectory_whose_machine_failed_is_left_out(dialogue: TagDialogue) -> None:
    rollouts = {1: rollout_of([RIGHT], dialogue, status="infrastructure")}
    rollouts[2] = rollout_of([RIGHT], dialogue)
    examples = examples_of_run(rollouts, dialogue, only_right=False, max_tokens=500)
    assert examples.select("sampled_in", "left_out").rows() == [(1, NOT_SCORED), (2, None)]


def test_what_is_longer_than_the_context_is_left_out_with_its_length(
    dialogue: TagDialogue,
) -> None:
    length = len(laid_end_to_end(RIGHT, dialogue))
    call_alone = [*RIGHT[:2], RIGHT[2], ("turn", "<answer>84</answer>")]
    longer = [RIGHT[0], ("turn", "product product<code>print(12 * 7)</code>"), *call_alone[2:]]
    rollout = rollout_of([RIGHT, longer], dialogue)
    examples = examples_of_run({1: rollout}, dialogue, only_right=True, max_tokens=length)
    assert reasons(examples) == [None, TOO_LONG]
    assert examples["tokens"].to_list() == [length, len(laid_end_to_end(longer, dialogue))]


def test_token_ids_of_another_tokenizer_are_refused(
    dialogue: TagDialogue, demonstrated_texts: list[str]
) -> None:
    other = TagDialogue(make_tokenizer(demonstrated_texts[:20], SMALL_POLICY))
    with pytest.raises(ImitationError, match="has other token ids here: take a policy with the"):
        examples_of_run({1: rollout_of([RIGHT], dialogue)}, other, only_right=True, max_tokens=500)


def test_prompts_of_another_dialogue_are_refused(dialogues: dict[str, Dialogue]) -> None:
    rollouts = {1: rollout_of([RIGHT], dialogues["text"])}
    with pytest.raises(ImitationError, match="the prompt of t has other token ids here"):
        examples_of_run(rollouts, dialogues["chat"], only_right=True, max_tokens=5_000)


def test_nothing_left_is_refused_with_the_reasons(dialogue: TagDialogue) -> None:
    rollouts = {1: rollout_of([WRONG, WRONG], dialogue)}
    with pytest.raises(ImitationError, match="nothing is left to imitate: 2 not right"):
        examples_of_run(rollouts, dialogue, only_right=True, max_tokens=500)


# Of a file


@pytest.mark.parametrize("name", FORMATS)
def test_a_conversation_is_written_as_a_rollout_would_hold_it(
    name: str, dialogues: dict[str, Dialogue]
) -> None:
    dialogue = dialogues[name]
    rollouts = {1: rollout_of([RIGHT], dialogue)}
    sampled = examples_of_run(rollouts, dialogue, only_right=True, max_tokens=5_000)
    written = examples_of_file([CONVERSATION], dialogue, only_right=True, max_tokens=5_000)
    assert learnt(written) == learnt(sampled)


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_in_words_is_written_so_that_the_dialogue_finds_it(
    name: str, dialogues: dict[str, Dialogue]
) -> None:
    dialogue = dialogues[name]
    told = ConversationTurn(text="It is \\boxed{84}.", answer="84")
    conversation = Conversation(row=1, problem="12 * 7?", turns=[told])
    (row,) = learnt(examples_of_file([conversation], dialogue, only_right=True, max_tokens=5_000))
    ids = [token for token, own in row if own]
    (text,) = dialogue.decode_turns([ids])
    frame = pl.DataFrame({"token_ids": [ids], "text": [text], "limit": ["length"]})
    assert dialogue.parse_turns(frame)["answer"].to_list() == ["84"]
    assert text.count("84") == (2 if name == "tags" else 1)


@pytest.mark.parametrize("name", FORMATS)
def test_a_last_turn_without_answer_is_learnt_where_the_dialogue_ends_it(
    name: str, dialogues: dict[str, Dialogue]
) -> None:
    silent = Conversation(row=2, problem="?", turns=[ConversationTurn(text="I do not know.")])
    examples = examples_of_file(
        [CONVERSATION, silent], dialogues[name], only_right=True, max_tokens=5_000
    )
    assert reasons(examples) == [None, UNREADABLE if name == "tags" else None]


@pytest.mark.parametrize("name", FORMATS)
def test_code_that_would_close_its_call_is_left_out(
    name: str, dialogues: dict[str, Dialogue]
) -> None:
    closing = "</tool_call>" if name == "chat" else "</code>"
    forged = ConversationTurn(text="", code=f"print('{closing}')", shown="")
    conversation = Conversation(row=2, problem="?", turns=[forged, CONVERSATION.turns[1]])
    examples = examples_of_file(
        [CONVERSATION, conversation], dialogues[name], only_right=True, max_tokens=5_000
    )
    assert reasons(examples) == [None, UNREADABLE]


def test_a_turn_that_would_have_ended_before_is_left_out(dialogues: dict[str, Dialogue]) -> None:
    ended = ConversationTurn(text="It is<|im_end|>\\boxed{84}.", answer="84")
    conversation = Conversation(row=2, problem="?", turns=[ended])
    examples = examples_of_file(
        [CONVERSATION, conversation], dialogues["chat"], only_right=True, max_tokens=5_000
    )
    assert reasons(examples) == [None, UNREADABLE]


def test_a_wrong_conversation_is_learnt_only_if_all_are(dialogue: TagDialogue) -> None:
    wrong = Conversation(
        row=2, problem=CONVERSATION.problem, turns=CONVERSATION.turns, is_right=False
    )
    for only_right, reason in ((True, NOT_RIGHT), (False, None)):
        examples = examples_of_file(
            [CONVERSATION, wrong], dialogue, only_right=only_right, max_tokens=500
        )
        assert reasons(examples) == [None, reason]


def test_a_conversation_longer_than_the_context_is_left_out(dialogue: TagDialogue) -> None:
    length = len(laid_end_to_end(RIGHT, dialogue))
    for max_tokens, reason in ((length, None), (length - 1, TOO_LONG)):
        short = Conversation(row=2, problem="?", turns=[ConversationTurn(text="", answer="1")])
        examples = examples_of_file(
            [CONVERSATION, short], dialogue, only_right=True, max_tokens=max_tokens
        )
        assert reasons(examples) == [reason, None]
        assert examples["tokens"][0] == length


def test_rows_that_could_not_be_read_stay_with_their_reason(dialogue: TagDialogue) -> None:
    examples = examples_of_file(
        [Conversation(row=1, unusable="not JSON"), CONVERSATION],
        dialogue,
        only_right=True,
        max_tokens=500,
    )
    assert examples.select("row", "left_out").rows() == [(1, "not JSON"), (1, None)]


def test_a_file_of_which_nothing_is_left_is_refused_with_the_reasons(
    dialogue: TagDialogue,
) -> None:
    unusable = [Conversation(row=row, unusable="not JSON") for row in (1, 2)]
    with pytest.raises(ImitationError, match="nothing is left to imitate: 2 not JSON"):
        examples_of_file(unusable, dialogue, only_right=True, max_tokens=500)


def test_an_empty_file_is_refused(dialogue: TagDialogue) -> None:
    with pytest.raises(ImitationError, match="there is nothing to imitate"):
        examples_of_file([], dialogue, only_right=True, max_tokens=500)
