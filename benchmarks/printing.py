"""How benchmarks print their figures."""

import json
from collections.abc import Mapping

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
