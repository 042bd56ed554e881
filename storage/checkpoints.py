"""Policies on disk: a Hugging Face folder, with the optimiser's state beside the weights."""

import contextlib
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, NonNegativeInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from schemas.errors import PolicyError
from storage.files import link_files

# Progress bars and advice of transformers are not this project's output. Switched off once and
# for all: policies are opened on several threads, and one would switch them on for another.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

# transformers imports a model's modules when it is first opened, and fails where two threads do
# so at once.
one_at_a_time = threading.Lock()

OPTIMISER_FILE = "optimiser.pt"
ADAPTER_FILE = "lora.pt"
BASE_FILE = "lora_base.safetensors"
"""What an adapter was merged into: the same bytes from its first policy to its last."""
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
"""What the loaders raise at files that are not what they should be."""


class _Ends(BaseModel):
    """The end tokens of a configuration."""

    eos_token_id: NonNegativeInt | list[NonNegativeInt] | None = None


def save_policy(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimiser_state: dict[str, Any] | None,
    adapter: dict[str, Any] | None = None,
    base: dict[str, torch.Tensor] | Path | None = None,
) -> None:
    """Writes a policy into an empty folder, which `load_policy` and transformers both open.

    Args:
        folder: Where.
        model: Policy; one with an adapter, merged.
        tokenizer: Its tokenizer.
        optimiser_state: What is needed to go on training; null if there is nothing.
        adapter: The adapter that was merged.
        base: The matrices that it was merged into, by name, or a policy folder that has the same
            ones, whose file gets a second name here.

    Raises:
        OSError: If the file system refuses, with the system's error number where it is known.
    """
    if isinstance(base, Path):
        link_files(base, folder, [BASE_FILE])
    with _system_errors():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for name, kept in ((OPTIMISER_FILE, optimiser_state), (ADAPTER_FILE, adapter)):
        if kept is None:
            continue
        # Through memory: torch's own writer puts the file's name into the file, and aborts the
        # process, not the call, where the disk is full.
        buffer = io.BytesIO()
        torch.save(kept, buffer)
        (folder / name).write_bytes(buffer.getvalue())
    if isinstance(base, dict):
        (folder / BASE_FILE).write_bytes(save(base))


def load_policy(
    folder: str | Path, *, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Opens a policy folder, ready to sample from or to train.

    Raises:
        PolicyError: If the folder is missing or holds no causal language model and tokenizer.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise PolicyError(f"{folder} is no model folder: config.json is missing")
    with _opening(folder):
        opened: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    model: PreTrainedModel = opened[0]
    if missing := sorted(opened[1]["missing_keys"]):
        # transformers draws these at random, and says so only in its log.
        raise PolicyError(f"{folder} cannot be opened as a policy: it has no weights {missing[0]}")
    model.to(device)  # type: ignore[arg-type]  # transformers declares it without self
    return model.eval(), load_tokenizer(folder)


def load_given_policy(
    folder: str | Path, *, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Opens a policy folder that somebody else made, and looks at all of its weights.

    Raises:
        PolicyError: As `load_policy`, or if weights are NaN or infinite: whatever such a policy
            says is no number either, which would be found only once it samples.
    """
    model, tokenizer = load_policy(folder, device=device)
    for name, weight in model.named_parameters():
        finite = weight.isfinite()
        if not bool(finite.all()):
            raise PolicyError(
                f"{folder} cannot be used as a policy: {weight.numel() - int(finite.sum())} of "
                f"{weight.numel()} numbers of {name} are NaN or infinite; save or convert the "
                "model again, or take an earlier checkpoint of it"
            )
    return model, tokenizer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Opens the tokenizer of a policy folder, without the model.

    Raises:
        PolicyError: If the folder holds no tokenizer.
    """
    with _opening(Path(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # Without files transformers makes some tokenizers up: with special tokens and no others.
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not (
        tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    ):
        raise PolicyError(f"{folder} holds no tokenizer")
    for how_opened in ("is_local", "local_files_only"):  # would be saved with the tokenizer
        tokenizer.init_kwargs.pop(how_opened, None)
    return tokenizer


def end_ids(folder: str | Path) -> tuple[int, ...]:
    """Returns the tokens with which a policy ends what it writes, as its configurations say.

    Many pretrained models have several, of which the tokenizer names one: Llama 3 and GLM 4 end a
    call of a tool with another token than a message.

    Raises:
        PolicyError: If a configuration cannot be read, or its end tokens are no token ids.
    """
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        if path.is_file():
            found += _written_ends(path)
    return tuple(dict.fromkeys(found))


def load_optimiser_state(folder: str | Path) -> dict[str, Any] | None:
    """Reads the optimiser's state of a policy folder; null where it was never trained."""
    return _load_tensors(Path(folder) / OPTIMISER_FILE)


def load_adapter(folder: str | Path) -> dict[str, Any] | None:
    """Reads the adapter that was merged into a policy; null where none was."""
    return _load_tensors(Path(folder) / ADAPTER_FILE)


def _written_ends(path: Path) -> list[int]:
    try:
        written = json.loads(path.read_bytes())
        ids = _Ends.model_validate({**written.get("text_config", {}), **written}).eos_token_id
    except (ValueError, AttributeError, TypeError) as error:
        raise PolicyError(
            f"{path} cannot be read: its eos_token_id must be a token id or a list of them"
        ) from error
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def load_base(folder: str | Path) -> dict[str, torch.Tensor]:
    """Reads the matrices that a policy's adapter was merged into, by name.

    Raises:
        PolicyError: If they are missing or cannot be read.
    """
    try:
        return load_file(Path(folder) / BASE_FILE)
    except UNREADABLE as error:
        raise PolicyError(f"{folder}: {BASE_FILE} cannot be read: {error}") from error


def _load_tensors(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return kept


@contextlib.contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """Opens files one at a time, and makes `PolicyError` of what the loaders raise."""
    try:
        with one_at_a_time:
            yield
    except UNREADABLE as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PolicyError(f"{folder} cannot be opened as a policy: {first_line}") from error


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Makes `OSError` of what the Rust writers raise, which keeps the number in the text only."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is not None:
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        if isinstance(error, SafetensorError):
            raise OSError(str(error)) from error
        raise
