from pathlib import Path

import polars as pl
import pytest

from flows.cli_options import write_frame
from schemas.errors import TurnledgerError


def test_a_frame_comes_back(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, None]})
    write_frame(frame, tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "a.parquet").equals(frame)


@pytest.mark.parametrize("place", ["/nonexistent/a.parquet", "/dev/full", "/"])
def test_a_place_that_cannot_be_written_is_told(place: str) -> None:
    with pytest.raises(TurnledgerError, match=rf"^{place} cannot be written: [^\n]*$"):
        write_frame(pl.DataFrame({"a": [1]}), Path(place))
