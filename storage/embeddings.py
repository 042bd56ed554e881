"""Embedding models on disk: a sentence-transformers folder, opened with transformers.

Such a folder says in `modules.json` what follows what: a transformer, a pooling of its last hidden
states, and perhaps a normalisation. These are done here as the package `sentence-transformers`
would do them, which is not needed. Folders with other modules are refused, and prompts that a
model may want before its texts are not added.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from schemas.errors import EmbeddingError
from storage.checkpoints import UNREADABLE, one_at_a_time

BATCH_TEXTS = 32
"""Texts of one forward pass."""
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


class EmbeddingModel:
    """Embeds texts with one model."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pooling: str,
        normalise: bool,
        max_tokens: int,
        lower_case: bool = False,
    ) -> None:
        """Takes the parts of a model.

        Args:
            model: Encoder of transformers, in evaluation mode.
            tokenizer: Its tokenizer.
            pooling: `mean` of a text's hidden states, or that of its first token, `cls`.
            normalise: Whether embeddings have length 1.
            max_tokens: Where longer texts are cut off.
            lower_case: Whether texts are embedded in lower case.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._pooling = pooling
        self._normalise = normalise
        self._max_tokens = max_tokens
        self._lower_case = lower_case

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the embedding of each text, [texts, dimensions]."""
        if self._lower_case:
            texts = [text.lower() for text in texts]
        # Texts of like length share a batch, so that little is padded.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), BATCH_TEXTS):
            rows = order[start : start + BATCH_TEXTS]
            for row, embedding in zip(rows, self._embed([texts[i] for i in rows]), strict=True):
                found[row] = embedding
        return np.stack(found) if found else np.empty((0, 0), dtype=np.float32)

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> np.ndarray:
        tokens = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._model.device)
        states = self._model(**tokens).last_hidden_state.float()
        if self._pooling == "cls":
            # The first token that is no padding: some tokenizers pad in front.
            firsts = tokens["attention_mask"].argmax(dim=1)
            pooled = states[torch.arange(len(texts)), firsts]
        else:
            mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        if self._normalise:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        embeddings: np.ndarray = pooled.cpu().numpy()
        return embeddings


def check_embedding_folder(folder: Path) -> None:
    """Refuses a folder that is no sentence-transformers model, without opening the weights.

    Raises:
        EmbeddingError: If so, saying what is wrong.
    """
    _plan(folder)


def load_embedding_model(folder: Path, *, device: str = "cpu") -> EmbeddingModel:
    """Opens a sentence-transformers folder.

    Raises:
        EmbeddingError: If it is none, or one that does more than pooling and normalisation.
    """
    parts = _plan(folder)
    place = folder / parts["Transformer"]
    limits = _json(place / "sentence_bert_config.json", default={})
    try:
        with one_at_a_time:
            opened: Any = AutoModel.from_pretrained(
                place, local_files_only=True, output_loading_info=True
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except UNREADABLE as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EmbeddingError(f"{folder} cannot be opened as a model: {first_line}") from error
    model = opened[0]
    # The pooler of a BERT is not used, and many such folders lack it.
    if missing := sorted(key for key in opened[1]["missing_keys"] if "pooler" not in key):
        raise EmbeddingError(f"{folder} cannot be opened as a model: it has no {missing[0]}")
    known = (
        limits.get("max_seq_length"),
        getattr(tokenizer, "model_max_length", None),
        getattr(model.config, "max_position_embeddings", None),
    )
    return EmbeddingModel(
        model.to(device).eval(),
        tokenizer,
        pooling=_pooling(folder, parts["Pooling"]),
        normalise="Normalize" in parts,
        max_tokens=min(int(limit) for limit in known if limit),
        lower_case=bool(limits.get("do_lower_case", False)),
    )


def _plan(folder: Path) -> dict[str, str]:
    """Returns the modules of a folder, each with the path of its own folder in it."""
    modules = _json(folder / "modules.json")
    try:
        parts = {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in modules}
    except (TypeError, KeyError) as error:
        raise EmbeddingError(f"{folder}: modules.json does not list modules") from error
    others = [name for name in parts if name not in _MODULES]
    if others or [*parts][:2] != ["Transformer", "Pooling"]:
        raise EmbeddingError(
            f"{folder} is a model of the modules {', '.join(parts) or 'none'}: "
            "Transformer and Pooling are needed, and Normalize is the only other one known"
        )
    if not (folder / parts["Transformer"] / "config.json").is_file():
        raise EmbeddingError(f"{folder} is no sentence-transformers model: it has no config.json")
    _pooling(folder, parts["Pooling"])
    return parts


def _pooling(folder: Path, path: str) -> str:
    config = _json(folder / path / "config.json")
    if not isinstance(config, dict):
        raise EmbeddingError(f"{folder / path}: config.json holds no settings of a pooling")
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    named = [_POOLING.get(mode) for mode in modes]
    if "pooling_mode" in config:  # newer versions write one name
        named = [config["pooling_mode"] if config["pooling_mode"] in _POOLING.values() else None]
        modes = [str(config["pooling_mode"])]
    if len(named) != 1 or named[0] is None:
        raise EmbeddingError(
            f"{folder} pools by {' and '.join(modes) or 'nothing'}: the mean of the tokens and the "
            "first token are known"
        )
    return named[0]


def _json(path: Path, default: Any = None) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        if default is not None:
            return default
        raise EmbeddingError(
            f"{path.parent} is no sentence-transformers model: {path.name} is missing"
        ) from error
    except (OSError, ValueError) as error:
        raise EmbeddingError(f"{path} cannot be read as JSON: {error}") from error
