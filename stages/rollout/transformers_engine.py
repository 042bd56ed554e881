"""The embedded engine: batched decoding of any transformers causal language model.

Each distinct context is prefilled once, however many samples share it. Rows are aligned on the
right of a preallocated cache, so that every row writes its next key into the same column; rows
that are finished leave the batch when enough of them have gathered. Randomness comes from one
counter-based stream a row, so a row's draws do not depend on its neighbours.

Calls are served one at a time: on one device a second batch beside the first only slows both.
"""

import threading
from dataclasses import dataclass
from typing import cast

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from schemas.errors import PolicyError
from stages.randomness import uniforms
from stages.rollout.engine import Generations, Requests

PREFILL_TOKENS = 8_192
"""Tokens of one prefill pass, padding included: bounds the memory of activations."""
PREFILL_TOKENS_ON_CPU = 1_024
"""The same on a CPU, where activations that leave the cache cost more than further passes."""
COMPACT_BELOW = 0.7
"""Finished rows are dropped when fewer than this share of the batch still runs."""


class TransformersEngine:
    """Samples from a transformers model on its own device."""

    def __init__(self, model: PreTrainedModel, *, policy_version: int) -> None:
        """Wraps a model, which is only read.

        Args:
            model: Causal language model in evaluation mode.
            policy_version: Version written beside everything it samples.
        """
        self._model = model
        self._policy_version = policy_version
        self._one_at_a_time = threading.Lock()

    @property
    def policy_version(self) -> int:
        """Version of the policy that samples."""
        return self._policy_version

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of a context with its continuation."""
        return int(self._model.config.max_position_embeddings)

    def generate(self, requests: Requests) -> Generations:
        """Samples a continuation of every context.

        Args:
            requests: Contexts, each shorter than `max_context_tokens`.

        Returns:
            Sampled tokens with their log-probabilities, in the order of the requests.

        Raises:
            PolicyError: If the policy yields no numbers, or attends to fewer tokens than a
                context with its continuation has.
        """
        if not requests.contexts:
            return Generations(token_ids=[], logprobs=[])
        with self._one_at_a_time, torch.inference_mode():
            return self._decode(requests)

    def _decode(self, requests: Requests) -> Generations:
        device = self._model.device
        budget = int(requests.max_new_tokens.max())
        batch = self._prefill(requests, budget)
        noise = torch.from_numpy(uniforms(requests.seeds, budget)).to(device)
        limits = torch.from_numpy(requests.max_new_tokens).to(device)
        stops = torch.tensor(requests.stop_ids, device=device)
        count = len(requests.contexts)
        tokens = torch.zeros((count, budget), dtype=torch.long, device=device)
        logprobs = torch.zeros((count, budget), dtype=torch.float32, device=device)
        lengths = torch.zeros(count, dtype=torch.long, device=device)
        for step in range(budget):
            token, logprob = _sample(batch.logits, noise[batch.rows, step], requests.temperature)
            tokens[batch.rows, step] = token
            logprobs[batch.rows, step] = logprob
            lengths[batch.rows[batch.running]] = step + 1
            batch.running &= ~torch.isin(token, stops) & (limits[batch.rows] > step + 1)
            running = int(batch.running.sum())
            if running == 0:
                break
            if running < COMPACT_BELOW * len(batch.rows):
                token = token[batch.running]
                batch.keep(batch.running)
            batch.logits = self._forward(batch, token)
        if not bool(logprobs.isfinite().all()):
            raise PolicyError("the policy yields no finite log-probabilities: its weights diverged")
        ends = lengths.tolist()
        return Generations(
            token_ids=[row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)],
            logprobs=[row[:end] for row, end in zip(logprobs.tolist(), ends, strict=True)],
        )

    def _forward(self, batch: "_Batch", token: torch.Tensor) -> torch.Tensor:
        """Feeds one token a row; returns the next logits, [rows, vocabulary]."""
        # Finished rows stay where they are: beyond the last position a model may know none.
        batch.positions += batch.running
        columns = batch.cache.get_seq_length() + 1
        output = self._model(
            input_ids=token[:, None],
            attention_mask=self._mask(batch.visible[:, None, None, :columns]),
            position_ids=batch.positions[:, None],
            past_key_values=batch.cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _prefill(self, requests: Requests, budget: int) -> "_Batch":
        """Runs every distinct context once and lays the results out for decoding."""
        device = self._model.device
        distinct: dict[tuple[int, ...], int] = {}
        owner = [distinct.setdefault(tuple(c), len(distinct)) for c in requests.contexts]
        contexts = [torch.tensor(context) for context in distinct]
        lengths = torch.tensor([len(context) for context in contexts])
        width = int(lengths.max())
        self._refuse_short_attention(width + budget)
        tokens_at_once = PREFILL_TOKENS_ON_CPU if device.type == "cpu" else PREFILL_TOKENS
        caches, logits = [], []
        by_length = torch.argsort(lengths, descending=True, stable=True).tolist()
        while by_length:
            rows_at_once = max(1, tokens_at_once // len(contexts[by_length[0]]))
            part, by_length = by_length[:rows_at_once], by_length[rows_at_once:]
            cache, last = self._prefill_part([contexts[i] for i in part])
            caches.append((part, cache))
            logits.append((part, last))
        order = torch.tensor([i for part, _ in logits for i in part])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        source = place[torch.tensor(owner)].to(device)
        visible = torch.zeros((len(owner), width + budget), dtype=torch.bool, device=device)
        row_lengths = lengths[torch.tensor(owner)].to(device)
        visible[:] = torch.arange(width + budget, device=device) >= width - row_lengths[:, None]
        return _Batch(
            rows=torch.arange(len(owner), device=device),
            running=torch.ones(len(owner), dtype=torch.bool, device=device),
            logits=torch.cat([last for _, last in logits])[source],
            positions=row_lengths - 1,
            visible=visible,
            cache=_join([cache for _, cache in caches], source, width, width + budget),
        )

    def _prefill_part(self, contexts: list[torch.Tensor]) -> tuple[DynamicCache, torch.Tensor]:
        """Prefills contexts padded on the left to the longest of them."""
        device = self._model.device
        width = max(len(context) for context in contexts)
        ids = torch.zeros((len(contexts), width), dtype=torch.long)
        for row, context in enumerate(contexts):
            ids[row, width - len(context) :] = context
        pads = width - torch.tensor([len(context) for context in contexts])
        columns = torch.arange(width)
        real = columns >= pads[:, None]
        mask = real[:, None, :] & (columns[None, :] <= columns[:, None])
        # A padding query sees itself: with nothing to see it would turn into NaN and spread.
        mask |= torch.eye(width, dtype=torch.bool)
        output = self._model(
            input_ids=ids.to(device),
            attention_mask=self._mask(mask[:, None].to(device)),
            position_ids=(columns - pads[:, None]).clamp(min=0).to(device),
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )
        return output.past_key_values, output.logits[:, -1]

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """Returns the attention mask in the form that the model's attention takes."""
        if self._model.config._attn_implementation == "sdpa":
            return visible
        hidden = torch.finfo(self._model.dtype).min
        return torch.zeros_like(visible, dtype=self._model.dtype).masked_fill_(~visible, hidden)

    def _refuse_short_attention(self, tokens: int) -> None:
        """Refuses what a sliding window would cut, which the masks made here do not do."""
        window = getattr(self._model.config.get_text_config(), "sliding_window", None)
        if window is not None and tokens > window:
            raise PolicyError(
                f"the policy attends to {window} tokens at most, {tokens} are needed: "
                "sliding-window attention is not supported beyond its window"
            )


@dataclass(slots=True, kw_only=True)
class _Batch:
    """Rows being decoded; all tensors share the first dimension."""

    rows: torch.Tensor  # [batch] position in the requests
    running: torch.Tensor  # [batch] not yet finished
    logits: torch.Tensor  # [batch, vocabulary] of the next token
    positions: torch.Tensor  # [batch] position of the last token fed
    visible: torch.Tensor  # [batch, columns] cache columns that hold the row's tokens
    cache: DynamicCache

    def keep(self, chosen: torch.Tensor) -> None:
        """Drops the other rows, and cache columns that no row left uses."""
        self.rows, self.running = self.rows[chosen], self.running[chosen]
        self.logits, self.positions = self.logits[chosen], self.positions[chosen]
        self.visible = self.visible[chosen]
        first = int(self.visible.any(0).long().argmax())
        self.visible = self.visible[:, first:]
        for layer in self.cache.layers:
            cast(_PreallocatedLayer, layer).keep(chosen, first)


class _PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer in buffers that are written in place, not grown."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: torch.Tensor = keys  # [rows, heads, columns, size]
        self.values: torch.Tensor = values
        self.filled = filled
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.filled

    def keep(self, chosen: torch.Tensor, first: int) -> None:
        self.keys = self.keys[:, :, first:][chosen]
        self.values = self.values[:, :, first:][chosen]
        self.filled -= first


def _join(
    caches: list[DynamicCache], source: torch.Tensor, width: int, capacity: int
) -> DynamicCache:
    """Gathers prefilled rows, aligned on column `width`, into buffers of `capacity` columns."""
    joined = DynamicCache()
    joined.layers = []
    for index in range(len(caches[0].layers)):
        both = []
        for name in ("keys", "values"):
            parts = [getattr(cache.layers[index], name) for cache in caches]
            distinct = sum(part.shape[0] for part in parts)
            _, heads, _, size = parts[0].shape
            aligned = parts[0].new_zeros((distinct, heads, width, size))
            start = 0
            for part in parts:
                aligned[start : start + part.shape[0], :, width - part.shape[2] :] = part
                start += part.shape[0]
            buffer = aligned.new_empty((len(source), heads, capacity, size))
            buffer[:, :, :width] = aligned[source]
            both.append(buffer)
        joined.layers.append(_PreallocatedLayer(both[0], both[1], width))
    return joined


def _sample(
    logits: torch.Tensor, noise: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one token a row by inverting the cumulative distribution at the row's noise.

    Args:
        logits: [rows, vocabulary].
        noise: [rows] float64, even over [0, 1).
        temperature: 0 takes the likeliest token.

    Returns:
        Tokens and their log-probabilities, [rows] each.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        token = logprobs.argmax(dim=-1)
    else:
        cumulative = logprobs.double().exp().cumsum(dim=-1)
        point = noise * cumulative[:, -1]
        token = torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None])[:, 0]
