"""The page of a data set: what it says is so."""

import re

import numpy as np
import pytest
from PIL import Image

from lmsd.cli.verbs.data import build, show
from lmsd.errors import UserError


@pytest.fixture
def pages(tmp_path, capsys):
    """A data set of 30 pictures, two of which are alike but for brightness, and its page."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(30):
        low = rng.integers(0, 200, (6, 9, 3)).astype(np.uint8)
        picture = Image.fromarray(low).resize((90, 60), Image.Resampling.BICUBIC)
        if number == 1:
            picture = Image.open(tmp_path / "in" / "00.png").point(lambda value: value * 0.8 + 10)
        picture.save(tmp_path / "in" / f"{number:02d}.png")
        (tmp_path / "in" / f"{number:02d}.txt").write_text(f"<b>picture</b> number {number} & more")
    (tmp_path / "in" / "x.pdf").write_bytes(b"%PDF")
    words = [f"out={tmp_path / 'shards'}", "image_size=48", "near_duplicates=group", "test=0", "val=.3"]
    assert build([str(tmp_path / "in"), *words]) == 0
    assert show([str(tmp_path / "shards"), f"out={tmp_path / 'page.html'}", "n=5", "image_size=48"]) == 0
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    return (tmp_path / "page.html").read_text()


def test_samples_sizes_and_captions_are_there(pages):
    splits = dict(re.findall(r"<h2>(train|val): (\d+) samples?</h2>", pages))
    assert sum(map(int, splits.values())) == 30
    assert set(splits) == {"train", "val"}
    assert "&lt;b&gt;picture&lt;/b&gt; number" in pages
    assert "<b>picture" not in pages
    assert "48 x 48" in pages
    assert "train-000000.tar: " in pages
    assert "/train-000000.tar" not in pages, "where a folder lies is nobody's business"
    assert f"{splits['train']} of {splits['train']}" in pages  # captions that differ
    assert pages.count('<img src="data:image/png;base64,') == 10 + 2


def test_the_nearest_pair_stands_side_by_side(pages):
    pair = pages[pages.index("Nearest pairs") :]
    assert {"number 0 ", "number 1 "} <= set(re.findall(r"number \d+ ", pair))
    assert len(re.findall(r"correlation (?:0.99|1.00)", pair)) == 1


def test_what_was_left_out_is_said(pages):
    left = pages[pages.index("What the build left out") :]
    assert "not an image by its name" in left
    assert "x.pdf" in left


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="is no place for a file"):
        show([str(tmp_path), f"out={tmp_path}"])
