"""Evaluation: outcomes of samples on benchmark problems, and what they say of a policy.

`outcomes` grades, `summary` takes means over problems. Beside the stage, and no part of its
fingerprint: `at_k` has pass@k and maj@k, `answer_classes` which answers are the same, `breakdown`
accuracy by level and by number of turns, and `paired` compares two policies.
"""

from stages.evaluation.outcomes import evaluate
from stages.evaluation.summary import summarise

__all__ = ["evaluate", "summarise"]
