"""The file that remembers a sweep's trials."""

from pathlib import Path

import pytest

from lmsd.cli.sweeps.trials import Ledger
from lmsd.errors import UserError


@pytest.mark.parametrize(
    "text", ['{"trials": [', "[]", '{"trials": [{"number": 0}]}'], ids=["cut", "a list", "another version"]
)
def test_a_damaged_file_of_trials_is_told_of_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "trials.json").write_text(text)
    with pytest.raises(UserError, match=r"is damaged or of another version: give another sweep\.name="):
        Ledger(tmp_path)
    assert (tmp_path / "trials.json").read_text() == text
