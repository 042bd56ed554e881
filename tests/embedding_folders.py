"""Tiny sentence-transformers folders: real BERT encoders with random weights."""

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

TYPES = "sentence_transformers.models."


def write_embedding_folder(
    folder: Path,
    *,
    pooling: str = "pooling_mode_mean_tokens",
    modules: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
    max_tokens: int = 32,
    seed: int = 0,
) -> Path:
    """Writes a model of one layer that knows single characters, and returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(33, 127)]
    vocabulary += [*characters, *(f"##{character}" for character in characters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    paths = {name: f"{number}_{name}" for number, name in enumerate(modules)}
    paths["Transformer"] = ""
    listed = [
        {"idx": number, "name": str(number), "path": paths[name], "type": TYPES + name}
        for number, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": 16, pooling: True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return folder
