"""`evaluate.metrics`: metrics of torchmetrics from the configuration to records and the report."""

import json
from pathlib import Path

import pytest
from tiny_home import TINY, Home, spoken

from lmsd import cli
from lmsd.errors import UserError
from lmsd.spec import build

TV = "evaluate.metrics.tv._target_=torchmetrics.image.TotalVariation"
FID = "{_target_: torchmetrics.image.fid.FrechetInceptionDistance, feature: {_target_: nets_of_mine.Means}}"
NET = """
import torch

class Means(torch.nn.Module):
    num_features = 3

    def forward(self, x):
        return x.float().mean(dim=(2, 3))
"""


def test_a_run_is_scored_by_them_while_it_trains_and_after(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_mine.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LMSD_ALLOW", "nets_of_mine")
    words = [*TINY, "data.shards=data/shapes", "run_dir=outputs/theirs", "name=theirs", "images=96"]
    said = spoken(["train", *words, TV, f"evaluate.metrics.theirs={FID}"])
    assert "\ntv " in said
    lines = [json.loads(line) for line in Path("outputs/theirs/metrics.jsonl").read_text().splitlines()]
    values = [line["val/tv"] for line in lines if "val/tv" in line]
    assert len(values) == 2
    assert len(set(values)) == 2, "of the images of each moment"
    assert all(line["val/theirs"] > 0.0 for line in lines if "val/tv" in line)
    assert not [key for line in lines for key in line if key.startswith("val/tv/")], "no interval"
    assert "\ntheirs " in spoken(["evaluate", "run=outputs/theirs", "split=test", "n=32", "seeds=[0,1]"])
    record = json.loads(Path("outputs/theirs/eval/test/metrics.json").read_text())["scores"]
    assert record["tv"]["low"] is None
    assert len(record["tv"]["by_seed"]) == 2
    report = Path("outputs/theirs/report.html").read_text()
    assert ">tv<" in report
    assert "nan" not in report.lower().replace("nano", "")


def test_torchmetrics_is_allowed_there_alone(refused) -> None:
    node = {"_target_": "torchmetrics.image.TotalVariation"}
    with pytest.raises(UserError, match="may not be built"):
        build(node)
    build(node, ("torchmetrics.",))
    for place in ("callbacks.mine", "logger.mine", "net"):
        assert "may not be built" in refused("train", f"{place}._target_=torchmetrics.image.TotalVariation")
    assert "may not be built" in refused("train", "evaluate.metrics.x._target_=os.system")
    assert "may not be built" in refused(
        "train", "evaluate.metrics.x={_target_: torchmetrics.X, f: {_target_: os.x}}"
    )


def test_what_is_wrong_is_told_before_a_run_begins(home: Home, refused) -> None:
    own = ["train", *TINY, "data.shards=data/shapes", "run_dir=outputs/never"]
    pairs = "evaluate.metrics.x._target_=torchmetrics.image.StructuralSimilarityIndexMeasure"
    assert "an image and its own original" in refused(*own, pairs)
    lacking = "evaluate.metrics.x._target_=torchmetrics.image.LearnedPerceptualImagePatchSimilarity"
    assert "torchvision, torch-fidelity or piq is not there without them" in refused(*own, lacking)
    assert "nothing is downloaded" in refused(
        *own, "evaluate.metrics.x._target_=torchmetrics.image.fid.FrechetInceptionDistance"
    )
    assert "begins with evaluate.metrics.x._target_=" in refused(*own, "evaluate.metrics.x=[1]")
    assert not Path("outputs/never").exists()
    assert cli.run(["train", "--cfg", "job", TV, "~evaluate.metrics.tv"]) == 0
