"""Embedding folders: what is computed from them, and which are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from schemas.errors import EmbeddingError
from storage.embeddings import check_embedding_folder, load_embedding_model
from tests.embedding_folders import write_embedding_folder

TEXTS = ["a = 1", "print(a)", "a = 1\nb = 22\nprint(a + b)", "x"]
CLS = "pooling_mode_cls_token"


def hidden_states(folder: Path, text: str, max_tokens: int) -> torch.Tensor:
    """The last hidden states of one text alone, without padding, [tokens, dimensions]."""
    tokens = AutoTokenizer.from_pretrained(folder)(
        text, truncation=True, max_length=max_tokens, return_tensors="pt"
    )
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]


@pytest.mark.parametrize("pooling", ["pooling_mode_mean_tokens", CLS])
@pytest.mark.parametrize(
    "modules", [("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")]
)
def test_embeddings_are_those_of_each_text_alone(
    tmp_path: Path, pooling: str, modules: tuple[str, ...]
) -> None:
    folder = write_embedding_folder(tmp_path, pooling=pooling, modules=modules, max_tokens=12)
    expected = []
    for text in TEXTS:
        states = hidden_states(folder, text, 12)
        pooled = states[0] if pooling == CLS else states.mean(dim=0)
        expected.append(pooled / pooled.norm() if "Normalize" in modules else pooled)
    found = load_embedding_model(folder)(TEXTS)
    assert found == pytest.approx(torch.stack(expected).numpy(), abs=1e-5)


def test_more_texts_than_a_batch_keep_their_order(tmp_path: Path) -> None:
    model = load_embedding_model(write_embedding_folder(tmp_path))
    texts = ["a" * (1 + 7 * number % 29) for number in range(70)]
    alone = np.concatenate([model([text]) for text in texts])
    assert model(texts) == pytest.approx(alone, abs=1e-5)


def test_what_newer_versions_write_is_read(tmp_path: Path) -> None:
    folder = write_embedding_folder(tmp_path)
    expected = load_embedding_model(folder)(TEXTS)
    settings = {"embedding_dimension": 16, "pooling_mode": "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert (load_embedding_model(folder)(TEXTS) == expected).all()


def test_a_folder_that_is_no_such_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"modules\.json is missing") as raised:
        check_embedding_folder(tmp_path / "nothing")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"modules": ("Transformer", "Pooling", "Dense")}, "Dense"),
        ({"modules": ("Transformer",)}, "Pooling are needed"),
        ({"pooling": "pooling_mode_max_tokens"}, "pools by pooling_mode_max_tokens"),
    ],
)
def test_a_model_that_does_more_is_refused(
    tmp_path: Path, change: dict[str, str], told: str
) -> None:
    folder = write_embedding_folder(tmp_path, **change)  # type: ignore[arg-type]
    with pytest.raises(EmbeddingError, match=told):
        check_embedding_folder(folder)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "null"])
def test_damaged_settings_are_refused(tmp_path: Path, name: str, text: str) -> None:
    folder = write_embedding_folder(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(EmbeddingError):
        check_embedding_folder(folder)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = write_embedding_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(EmbeddingError, match="cannot be opened as a model"):
        load_embedding_model(folder)
