"""How benchmarks gather and print their figures."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


def print_figures(figures: Mapping[str, float], title: str, *, as_json: bool) -> None:
    """Prints figures by name, as a table or as JSON."""
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(title=title)
    table.add_column("")
    table.add_column("figure", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.2f}")
    Console().print(table)


@dataclass(slots=True)
class Figures:
    """Measurements, by the name they are reported under."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Adds one measurement of each."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def medians(self) -> dict[str, float]:
        """Returns the median of each figure."""
        return {name: statistics.median(values) for name, values in self.values.items()}
