"""Policy folders: what is written is read again, and what is wrong is one line."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, ViTConfig

from schemas.config import PolicyConfig
from schemas.errors import PolicyError, StoreError
from stages.cold_start.tiny_policy import make_model, make_tokenizer
from storage import Store
from storage.checkpoints import (
    end_ids,
    load_given_policy,
    load_optimiser_state,
    load_policy,
    save_policy,
)

CONFIG = PolicyConfig(hidden_size=16, layers=1, heads=2, feed_forward_size=16)
TOKENIZER = make_tokenizer(["one two 1 2 3"], CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    save_policy(folder, make_model(TOKENIZER, CONFIG, seed=0), TOKENIZER, None)
    return folder


def test_weights_and_tokens_come_back_bit_for_bit(folder: Path) -> None:
    model, tokenizer = load_policy(folder)
    written = make_model(TOKENIZER, CONFIG, seed=0).state_dict()
    assert model.state_dict().keys() == written.keys()
    assert all(torch.equal(value, written[name]) for name, value in model.state_dict().items())
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert tokenizer.encode("two 13") == TOKENIZER.encode("two 13")


def test_a_loaded_policy_does_not_drop_out(folder: Path) -> None:
    assert not load_policy(folder)[0].training


def test_transformers_opens_it(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == load_policy(folder)[0].num_parameters()
    assert len(AutoTokenizer.from_pretrained(folder)) == len(TOKENIZER)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, {}, ()),
        ({}, {"eos_token_id": 3}, (3,)),
        ({"eos_token_id": [5, 4]}, {"eos_token_id": 4}, (5, 4)),
        ({"eos_token_id": 2}, {"eos_token_id": [2, 9]}, (2, 9)),
        ({"eos_token_id": None}, {"text_config": {"eos_token_id": 7}}, (7,)),
    ],
)
def test_the_end_tokens_of_both_configurations_count(
    tmp_path: Path,
    generation: dict[str, object] | None,
    config: dict[str, object],
    expected: tuple[int, ...],
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_ids(tmp_path) == expected


@pytest.mark.parametrize("content", ['{"eos_token_id": "no"}', '{"eos_token_id": [-1]}', "[]", "{"])
def test_end_tokens_that_are_none_are_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(PolicyError, match="a token id or a list of them") as raised:
        end_ids(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_policy_keeps_its_end_tokens(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [4, 1]}')
    again = tmp_path / "again"
    again.mkdir()
    save_policy(again, *load_policy(folder), None)
    assert end_ids(again) == (4, 1)


def test_the_same_policy_makes_the_same_files(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    save_policy(again, *load_policy(folder), None)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_the_state_of_the_optimiser_comes_back(tmp_path: Path) -> None:
    model = make_model(TOKENIZER, CONFIG, seed=0)
    state = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.5}]}
    save_policy(tmp_path, model, TOKENIZER, state)
    assert load_optimiser_state(tmp_path) == state


def test_a_policy_never_trained_has_no_optimiser(folder: Path) -> None:
    assert load_optimiser_state(folder) is None


def garbage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights" * 10)


def truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def missing_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.norm.weight")
    save_file(tensors, path, metadata={"format": "pt"})


def weights_of_other_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=32)


def config_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def config_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def config_of_wrong_type(folder: Path) -> None:
    edit_config(folder, hidden_size="wide")


def vision_model(folder: Path) -> None:
    ViTConfig().save_pretrained(folder)


def translation_model(folder: Path) -> None:
    T5Config().save_pretrained(folder)


def unknown_model(folder: Path) -> None:
    edit_config(folder, model_type="nonesuch")


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


def damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (garbage_weights, "cannot be opened as a policy"),
        (truncated_weights, "cannot be opened as a policy"),
        (no_weights, "no file named model.safetensors"),
        (missing_weight, "it has no weights model.norm.weight"),
        (weights_of_other_shape, "cannot be opened as a policy"),
        (config_no_json, "not a valid JSON"),
        (config_list, "model_type"),
        (config_of_wrong_type, "hidden_size"),
        (vision_model, "AutoModelForCausalLM"),
        (translation_model, "AutoModelForCausalLM"),
        (unknown_model, "nonesuch"),
        (no_tokenizer, "holds no tokenizer"),
        (damaged_tokenizer, "cannot be opened as a policy"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    folder: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(folder)
    with pytest.raises(PolicyError, match=says) as refused:
        load_policy(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_given_policy_with_weights_that_are_no_numbers_is_refused(
    folder: Path, value: float
) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(PolicyError, match=r"1 of \d+ numbers of model.norm.weight") as refused:
        load_given_policy(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_given_policy_is_opened_like_any_other(folder: Path) -> None:
    given, stored = load_given_policy(folder)[0], load_policy(folder)[0]
    for name, weight in stored.state_dict().items():
        assert torch.equal(given.state_dict()[name], weight)


def test_a_missing_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"absent is no model folder: config.json is missing$"):
        load_policy(tmp_path / "absent")


def test_a_folder_without_config_is_refused_in_one_line(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(PolicyError, match=r"config.json is missing$"):
        load_policy(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of some KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder]
        if subprocess.run(command, check=False).returncode:
            pytest.skip("this machine does not let mount")
        mounted.append(folder)
        return folder

    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)


# A policy takes 26 KiB of weights, 8 KiB of tokenizer, and here 40 KiB of optimiser state.
@pytest.mark.parametrize("kib", [4, 16, 40, 60])
def test_a_full_disk_is_an_error_of_the_system(disk: Callable[[int], Path], kib: int) -> None:
    model, state = make_model(TOKENIZER, CONFIG, seed=0), {"state": torch.zeros(10_000)}
    with pytest.raises(OSError, match="No space left on device") as refused:
        save_policy(disk(kib), model, TOKENIZER, state)
    assert refused.value.errno == errno.ENOSPC


def test_a_store_tells_a_full_disk_in_one_line(disk: Callable[[int], Path]) -> None:
    from storage_builders import fingerprint, slot

    store = Store.open(disk(48) / "store", create=True)
    model = make_model(TOKENIZER, CONFIG, seed=0)
    with pytest.raises(StoreError, match=r"cannot write .*optimisation: No space left on device$"):
        store.write(
            slot(),
            fingerprint(),
            tables={},
            checkpoint_writer=lambda folder: save_policy(folder, model, TOKENIZER, None),
            policy_version=1,
            seconds=0,
            parents=[],
        )
    assert not (store.root / slot().uri).exists()
