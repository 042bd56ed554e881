"""The distribution that tokens are sampled from: after temperature, top-k and top-p.

Rollout samples from it and optimisation trains it, so that both mean the same probabilities.
"""

import torch


def log_distribution(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor | float,
    top_p: torch.Tensor | float = 1.0,
    top_k: torch.Tensor | int = 0,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns log-probabilities, [rows, vocabulary]; minus infinity for tokens that are cut.

    Top-k keeps the k likeliest tokens; then top-p, the nucleus of Holtzman et al., "The curious
    case of neural text degeneration" (arXiv 1904.09751), the likeliest ones up to the first at
    which their share reaches p. The kept ones are normalised again.

    Args:
        logits: [rows, vocabulary].
        temperature: Divisor of the logits, above 0; a number, or [rows].
        top_p: Above 0 and at most 1, where 1 keeps all; a number, or [rows].
        top_k: 0 keeps all; a number, or [rows].
        kept: [rows] a token of each row that is never cut: what was sampled under weights that
            have changed since.
    """
    scaled = logits.float() / _column(temperature)
    top_p, top_k = torch.as_tensor(top_p), torch.as_tensor(top_k)
    if not bool((top_p < 1).any() or (top_k > 0).any()):
        return torch.log_softmax(scaled, dim=-1)
    with torch.no_grad():
        values, order = scaled.sort(dim=-1, descending=True, stable=True)
        places = torch.arange(values.shape[-1], device=values.device)
        limit = torch.where(top_k > 0, top_k, values.shape[-1]).to(values.device)
        beyond = places >= _column(limit)
        probabilities = torch.softmax(values.masked_fill(beyond, -torch.inf), dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        rest = before >= _column(top_p.to(values.device))
        beyond = beyond | (rest & (places > 0))
        cut = torch.zeros_like(beyond).scatter(-1, order, beyond)
        if kept is not None:
            cut.scatter_(-1, kept[:, None], value=False)
    return torch.log_softmax(scaled.masked_fill(cut, -torch.inf), dim=-1)


def entropy_of(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Returns the entropy of each row, nats; tokens of probability zero add nothing."""
    # Masked before the product, whose gradient would be 0 times infinity there.
    finite = log_probabilities.masked_fill(log_probabilities == -torch.inf, 0.0)
    return -(log_probabilities.exp() * finite).sum(dim=-1)


def _column(value: torch.Tensor | float) -> torch.Tensor | float:
    """Stands one value a row beside the vocabulary."""
    return value[:, None] if isinstance(value, torch.Tensor) and value.ndim else value
