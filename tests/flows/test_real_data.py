"""Problems and policies that are not the embedded ones go through every stage."""

import json
from pathlib import Path

import polars as pl
import pytest
from small_runs import SMALL, Cli, sets

from storage import open_table

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl"


@pytest.mark.skipif(not GSM8K.exists(), reason="the published problem set is not beside the tree")
def test_published_problems_go_through_every_stage(cli: Cli, tmp_path: Path) -> None:
    lines = GSM8K.read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:40]))
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines[40:50]))
    store = tmp_path / "store"
    cli.train(
        store,
        f"problems.path={tmp_path / 'train.jsonl'}",
        f"evaluation.path={tmp_path / 'held_out.jsonl'}",
    )
    asked = open_table(store, "small", "prompts").collect()
    assert asked.height == 12
    assert asked["task_id"].n_unique() == 12
    known = {json.loads(line)["problem"] for line in lines[:40]}
    assert set(asked["problem"]) <= known
    credited = open_table(store, "small", "advantages").collect()
    assert set(credited["task_id"]) == set(asked["task_id"])
    evaluated = open_table(store, "small", "evaluations", split="evaluation").collect()
    assert set(evaluated["benchmark"]) == {"held_out.jsonl"}


def test_rejected_problems_are_kept_with_their_reasons(cli: Cli, tmp_path: Path) -> None:
    rows = [{"problem": f"What is {n} + 1?", "answer": n + 1} for n in range(8)]
    bad = [{"problem": "What is 9 + 1?"}, {"problem": "", "answer": "3"}]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *bad]))
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"problem": "What is 20 + 1?", "answer": 21}\n')
    store = tmp_path / "store"
    cli.train(store, f"problems.path={path}", f"evaluation.path={held_out}")
    rejected = open_table(store, "small", "rejected_problems").collect()
    assert rejected["row"].to_list() == [9, 10]
    assert rejected["reason"].str.len_chars().min() > 0


def test_foreign_policy_is_taught_the_tags_and_trained(cli: Cli, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        )
    )
    folder = tmp_path / "llama"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    store = tmp_path / "store"
    cli.train(store, f"policy.path={folder}", "iterations=1", "evaluation.every=1")
    turns = open_table(store, "small", "turns").collect()
    assert turns.height >= 24
    assert turns["token_ids"].explode().max() < 257 + 8
    assert (turns["policy_version"] == 0).all()
    later = open_table(store, "small", "turns", split="evaluation").collect()
    assert set(later.filter(pl.col("iteration") == 1)["policy_version"]) == {1}


def test_folder_with_a_model_that_generates_nothing_is_refused(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    done = cli.run("train", "--store", str(tmp_path / "store"), *sets(*SMALL),
                   "--set", f"policy.path={folder}")  # fmt: skip
    assert done.returncode == 1
    assert "cannot be opened as a policy" in done.stderr
    assert done.stderr.count("\n") == 1


def test_held_out_problems_that_are_trained_on_are_refused(cli: Cli, tmp_path: Path) -> None:
    rows = [{"problem": f"What is {n} + 1?", "answer": n + 1} for n in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text('{"problem": "what is  3 + 1?", "answer": 4}\n')
    done = cli.run("train", "--store", str(tmp_path / "store"), *sets(*SMALL),
                   *sets(f"problems.path={tmp_path / 'a.jsonl'}"),
                   *sets(f"evaluation.path={tmp_path / 'b.jsonl'}"))  # fmt: skip
    assert done.returncode == 1
    assert "1 held-out problems are training problems too" in done.stderr


def test_a_renamed_problem_file_is_read_again(cli: Cli, tmp_path: Path) -> None:
    rows = [{"problem": f"What is {n} + 1?", "answer": n + 1} for n in range(8)]
    (tmp_path / "held.jsonl").write_text('{"problem": "What is 20 + 1?", "answer": 21}\n')
    for name in ("aaa", "bbb"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cli.train(tmp_path / "store", f"problems.path={path}", "iterations=1",
                  f"evaluation.path={tmp_path / 'held.jsonl'}", run=name)  # fmt: skip
        asked = open_table(tmp_path / "store", name, "prompts").collect()
        assert set(asked["source"]) == {name}
