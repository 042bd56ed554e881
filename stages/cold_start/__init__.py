"""Cold start: the embedded task families, imperfect demonstrations, and learning from them."""

from stages.cold_start.start import StartedPolicy, start_policy

__all__ = ["StartedPolicy", "start_policy"]
