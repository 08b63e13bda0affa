"""The weaker model of autoguidance: found as it is typed and as it is recorded, one name for each."""

import json
from pathlib import Path

import pytest
from tiny_home import spoken

from lmsd.cli.build.weaker import short, weaker
from lmsd.errors import UserError


def test_records_of_different_weaker_models_have_different_names():
    told = [f"outputs/{run}/checkpoints/step_000000096.ckpt@{ema}" for run in "ab" for ema in ("64", "raw")]
    assert len(set(map(short, told))) == 4
    assert short(told[0]).startswith("awaystep_000000096_")


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    with pytest.raises(UserError, match="me@host/run"):
        weaker(tmp_path, "me@host/run@raw")


def test_what_is_recorded_of_an_exported_folder_opens_it(tmp_path):
    (tmp_path / "lmsd.json").write_text("{}")
    with pytest.raises(UserError, match=r"lmsd\.json") as refusal:
        weaker(tmp_path, f"{tmp_path / 'lmsd.json'}@raw")
    assert "checkpoint" not in str(refusal.value)


def test_a_grid_remembers_the_checkpoint_that_it_was_guided_away_from(home):
    words = ["sample", "run=outputs/first", "prompts=[a red circle]", "guidance=2", "steps=1"]
    found = [spoken([*words, "autoguidance=outputs/first@raw"]).strip()]
    told = json.loads(Path(found[0]).with_suffix(".json").read_text())["options"]["autoguidance"]
    assert told == "outputs/first/checkpoints/step_000000192.ckpt@raw"
    found += [spoken(["sample", f"again={Path(found[0]).with_suffix('.json')}"]).strip()]
    assert Path(found[0]).read_bytes() == Path(found[1]).read_bytes()
