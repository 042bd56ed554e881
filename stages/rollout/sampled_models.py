"""Which models the embedded engine can sample from, told by their configuration alone."""

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from schemas.errors import PolicyError

_ADVICE = "try rollout.engine=vllm"
_FULL = "full_attention"
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers, in transformers' words, that attend to a part of the context, and the setting
that says to how much."""


def refuse_other_folder(folder: str) -> None:
    """Refuses a policy that is stored in a folder, without loading its weights.

    Raises:
        PolicyError: As `refuse_other_models`, or if the folder's config.json is none, or not of a
            model that generates text.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PolicyError(f"{folder} cannot be opened as a policy: {reason}") from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise PolicyError(
            f"{folder} cannot be opened as a policy: a model of type {config.model_type} generates "
            "no text"
        )
    refuse_other_models(config)


def refuse_other_models(config: PreTrainedConfig, *, is_stateful: bool = False) -> None:
    """Refuses models whose past is more than keys and values, or that forget a part of it.

    The first are such as Mamba's or LFM2's. The others attend to a window that is shorter than
    their context, which the masks of the engine do not know.

    Args:
        config: Of the model.
        is_stateful: Whether transformers says so of the model's class.

    Raises:
        PolicyError: If it is so, or nothing bounds the context.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    bound = getattr(text, "max_position_embeddings", None)
    if is_stateful or kinds - {_FULL, *_WINDOWS} or not isinstance(bound, int):
        raise PolicyError(
            f"a policy of type {text.model_type} cannot be sampled from by the engine "
            "transformers: it takes models whose layers all attend, within "
            f"max_position_embeddings tokens; {_ADVICE}"
        )
    # Where layers have no kinds they are all alike, and a window holds for each.
    narrow = [name for kind, name in _WINDOWS.items() if kind in kinds or not kinds]
    windows = {name: getattr(text, name, None) for name in narrow}
    for name, window in windows.items():
        if window is not None and window < bound:
            raise PolicyError(
                f"the policy has layers that attend to {window} tokens ({name}) of its context of "
                f"{bound}, which the engine transformers does not do: {_ADVICE}, or set "
                "max_position_embeddings in its config.json to that number"
            )
