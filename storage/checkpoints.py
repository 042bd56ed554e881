"""Policies on disk: a Hugging Face folder, with the optimiser's state beside the weights."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from schemas.errors import PolicyError

OPTIMISER_FILE = "optimiser.pt"


def save_policy(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimiser_state: dict[str, Any] | None,
) -> None:
    """Writes a policy into an empty folder, which `load_policy` and transformers both open."""
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if optimiser_state is not None:
        # Through memory: torch's own writer puts the file's name into the file, and aborts the
        # process, not the call, where the disk is full.
        buffer = io.BytesIO()
        torch.save(optimiser_state, buffer)
        (folder / OPTIMISER_FILE).write_bytes(buffer.getvalue())


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
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PolicyError(f"{folder} cannot be opened as a policy: {first_line}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise PolicyError(f"{folder} holds no tokenizer")
    model.to(device)  # type: ignore[arg-type]  # transformers declares it without self
    return model.eval(), tokenizer


def load_optimiser_state(folder: str | Path) -> dict[str, Any] | None:
    """Reads the optimiser's state of a policy folder; null where it was never trained."""
    path = Path(folder) / OPTIMISER_FILE
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps transformers' own progress bars and advice out of the run's output."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
