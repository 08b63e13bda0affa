"""Runs side by side: which records, by which names, at which settings, and Holm's test over the scores."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from lmsd.errors import UserError
from lmsd.evaluation import Scores
from lmsd.evaluation.compare import labels, write_comparison
from lmsd.evaluation.measures import measures
from lmsd.evaluation.records import read_record, read_records, records_by_age
from lmsd.evaluation.versus import holm
from lmsd.metrics import prompts_score

SETUP = {"split": "test", "data": "d", "extractor_sha256": "e", "sampler": "FewStep", "steps": 4, "nfe": 4.0}
SETUP |= {"guidance": 1.0, "ema": "ema", "right_by": "x@1", "checkpoint": "step_9.ckpt"}


def scored(folder: Path, seed: int, *, shift: float = 0.0, right: float = 0.9, **setup: object) -> Path:
    """A run folder with one more record: FD, KID and prompts of 100 features."""
    real = torch.randn(100, 4, generator=torch.Generator().manual_seed(99))
    fresh = torch.Generator().manual_seed(seed)
    fake = torch.randn(100, 4, generator=fresh) + shift
    found = measures([fake], real, [0] * 100, halvings=1).scores
    named = {f"{kind}[x@1]": score for kind, score in found.items() if kind in ("fd", "kid")}
    hits = torch.rand(100, 1, generator=fresh) < right
    named |= {"right": prompts_score(hits, share=True), "right_real": prompts_score(hits, share=True)}
    Scores("x@1", 100, (0,), named, None, (), SETUP | setup).write(folder)
    return folder


def test_folders_of_one_name_are_two_runs(tmp_path):
    a, b = (scored(tmp_path / place / "run0", seed, shift=seed) for seed, place in enumerate("pq"))
    line = '{"images": 1, "val/fd[x@1]": 2.0}\n{"images": 9, "val/fd[x@1]": 1.0}\n'
    for folder in (a, b):
        (folder / "metrics.jsonl").write_text(line)
    page, words = write_comparison([a, b], tmp_path / "c.html")
    assert words.startswith("p/run0 against q/run0: test, n=100, paired")
    assert "p/run0 and q/run0 differ: fd[x@1]" in page.read_text()
    assert page.read_text().count(">q/run0<") > 1, "a line in the chart, and a head in the table"


def test_labels_are_as_short_as_they_can_be(tmp_path):
    paths = [tmp_path / name for name in ("p/run", "q/run", "q/other", "p/deep/run")]
    assert labels(paths) == ["p/run", "q/run", "other", "deep/run"]


def test_a_folder_given_twice_is_refused(tmp_path):
    folder = scored(tmp_path / "run", 0)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match=r"link is given twice: a comparison is of different runs"):
        write_comparison([folder, tmp_path / "link"], tmp_path / "c.html")


def test_records_of_equal_settings_are_compared_before_newer_ones(tmp_path):
    a, b = scored(tmp_path / "a", 1), scored(tmp_path / "b", 2)
    scored(b, 3, steps=50, nfe=50.0)
    page, words = write_comparison([a, b], tmp_path / "c.html")
    setting = "FewStep, steps=4, guidance=1, nfe=4, ema=ema, checkpoint=step_9.ckpt, right_by=x@1, seeds=0"
    for name in ("a", "b"):
        assert f"  {name}: sampler={setting}" in words
        assert f"{name}: sampler={setting}" in page.read_text()
    assert "settings differ" not in words


def test_the_newest_of_equal_settings_are_compared(tmp_path):
    a, b = scored(tmp_path / "a", 1), scored(tmp_path / "b", 2)
    scored(b, 2, shift=3.0)
    newest = json.loads((b / "eval/test/metrics.json").read_text())["scores"]["fd[x@1]"]["value"]
    assert f"{newest:.3g}" in write_comparison([a, b], tmp_path / "c.html")[1]


def test_settings_that_differ_are_said(tmp_path):
    a = scored(tmp_path / "a", 1)
    b = scored(tmp_path / "b", 2, steps=50, nfe=50.0, guidance=3.0, ema="raw", checkpoint="step_1.ckpt")
    said = "the settings differ, and scores with them: steps 4 and 50; guidance 1 and 3; nfe 4 and 50; "
    said += "ema ema and raw; checkpoint step_9.ckpt and step_1.ckpt"
    page, words = write_comparison([a, b], tmp_path / "c.html")
    assert f"  note: {said}\n" in words
    assert f"{said})." in page.read_text(), "in the verdict"
    assert f"{said}.</p>" in page.read_text(), "and above the table"
    assert re.search(r"  right +\d", words), "one instrument read both"


def test_right_is_compared_where_one_instrument_read_it(tmp_path):
    a, b = scored(tmp_path / "a", 1), scored(tmp_path / "b", 2, right_by="checker", right=0.2)
    _, words = write_comparison([a, b], tmp_path / "c.html")
    assert "right_by x@1 and checker" in words
    assert "right is not compared: it was read by different instruments" in words
    assert not re.search(r"  right +\d", words)


def test_holms_test_by_hand():
    """m = 4 at 5 %: 0.0125, 0.0167, 0.025, 0.05 in turn, and nothing after the first that fails."""
    assert holm({"a": 0.012, "b": 0.03, "c": 0.016, "d": 0.04}) == {"a", "c"}
    assert holm({"a": 0.02, "b": 0.02, "c": 0.02, "d": 0.02}) == set()
    assert holm({"a": 0.04}) == {"a"}


def test_holms_test_errs_once_in_twenty_comparisons():
    """Of 4,000 comparisons of ten scores without a difference, 5 % are called different; p alone: 40 %."""
    drawn = torch.rand(4000, 10, generator=torch.Generator().manual_seed(0)).tolist()
    found = [bool(holm({str(place): p for place, p in enumerate(row)})) for row in drawn]
    assert 0.04 < sum(found) / 4000 < 0.06


def test_a_p_below_five_percent_in_one_of_many_rows_is_not_called_a_difference(tmp_path):
    """The row keeps its own p."""
    a, b = scored(tmp_path / "a", 1), scored(tmp_path / "b", 1)
    record = json.loads((b / "eval/test/metrics.json").read_text())
    score = record["scores"]["fd[x@1]"]
    score["parts"] = [part + 0.1 * (-1) ** place for place, part in enumerate(score["parts"])]
    low, high = 0.0, 10.0
    for _ in range(40):  # the gap whose p is 0.03
        score["value"], middle = (low + high) / 2, (low + high) / 2
        (b / "eval/test/metrics.json").write_text(json.dumps(record))
        p = float(re.search(r"fd\[x@1\] .*p = (\S+)\)", write_comparison([a, b], tmp_path / "c.html")[1])[1])
        low, high = (middle, high) if p > 0.03 else (low, middle)
        if p == 0.03:
            break
    page, words = write_comparison([a, b], tmp_path / "c.html")
    assert re.search(r"fd\[x@1\] .*not told apart \(p = 0.03\)", words)
    assert "a and b are not told apart by any score" in page.read_text()
    assert "Holm's test over the 3 of" in page.read_text()


def test_records_are_ordered_by_age_and_number(tmp_path):
    """By name alone, NAME-2 stands before NAME."""
    folder = tmp_path / "a"
    for seed in range(11):
        scored(folder, seed, shift=float(seed))
    ordered = list(records_by_age(folder, "test"))
    for path in ordered:
        os.utime(path, (1, 1))
    assert list(records_by_age(folder, "test")) == ordered
    assert ordered[1].stem == f"{ordered[0].stem}-2"
    assert ordered[-1].stem == f"{ordered[0].stem}-11"


def test_the_paired_kernel_distance_of_earlier_records_goes_by_its_name(tmp_path):
    """What was called kid once leaves the pairs out; it is compared with no usual estimate."""
    score = {"value": 1.0, "low": 0.0, "high": 2.0, "level": 0.95}
    content = {"scores": {"kid[x@1]": score, "kid_floor[x@1]": score, "fd[x@1]": score}, "setup": {}}
    content |= {"seeds": [0], "n": 2, "slices": {"a": {"n": 1, "cmmd[x@1]": score}}}
    path = tmp_path / "eval" / "test" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    found = read_record(path)
    assert set(found["scores"]) == {"kid_paired[x@1]", "kid_paired_floor[x@1]", "fd[x@1]"}
    assert set(found["slices"]["a"]) == {"n", "cmmd_paired[x@1]"}
    content["scores"]["kid_paired[x@1]"] = score
    path.write_text(json.dumps(content))
    assert set(read_record(path)["scores"]) == set(content["scores"])
    lines = [{"images": 1, "val/kid[x@1]": 0.1, "val/kid[x@1]/low": 0.0}, {"images": 2, "loss": 1.0}]
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(read_records(log)[0]) == {"images", "val/kid_paired[x@1]", "val/kid_paired[x@1]/low"}
