"""report.html: the right numbers, whole without its parts, no request to anywhere, readable in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lmsd.errors import UserError
from lmsd.evaluation import Scores
from lmsd.evaluation.distances import Distances
from lmsd.evaluation.grid import save_grid
from lmsd.evaluation.report import curves_of, duration, read_records, write_report
from lmsd.evaluation.verdict import sentences
from lmsd.metrics import Interval, NeighborRatio

NAME = "lmsd-cnn@ab12"
FD = f"val/fd[{NAME}]"
ACCURACY = "Discriminator's sign accuracy, train and held-out"


def scores(ratio: Interval, low: float = 0.91) -> Scores:
    far = Distances(
        Interval(3.21, 2.9, 3.5), Interval(5.1, 4.8, 5.4), Interval(4.2, 4.0, 4.4), ratio, (3.2, 3.22)
    )
    near, setup = NeighborRatio(0.97, low, 0.012), {"split": "test", "ema": "0.05", "sampler": "FewStep"}
    return Scores(
        extractor=NAME,
        n=500,
        seeds=(7, 8),
        distances=far,
        right=Interval(0.978, 0.961, 0.988),
        right_real=Interval(0.991, 0.98, 0.996),
        neighbors=near,
        notes=(),
        setup=setup | {"steps": 4, "guidance": 1.5, "nfe": 8.0},
    )


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "2026-11-23_120000-digits-7f3a"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: digits\nnote: <b>&amp; not markup</b>\n")
    (folder / "overrides.txt").write_text("experiment=digits\nprompts=[a red one]\n")
    (folder / "status.json").write_text('{"state": "done"}')
    (folder / "env.json").write_text('{"lmsd": "0.1.0", "commit": "abc1234"}')
    lines = []
    for step in range(0, 401):
        both = {"generator/loss": 0.7, "discriminator/loss": 1.3 - step / 1000, "generator/skipped": 0.0}
        both |= {"discriminator/updates": step // 2, "discriminator/accuracy_val": 0.6}
        lines.append({"images": step * 100, "time": 1000 + step / 2, "updates": step, **both})
        if step % 100 == 0:
            fd = 30.0 - step / 20
            lines.append(
                {"images": step * 100, FD: fd, f"{FD}/low": fd - 1, f"{FD}/high": fd + 1, "val/right": 0.5}
            )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"images": 41')
    for place, images in enumerate(range(0, 50_000, 5_000)):
        grid = [torch.full((1, 8, 8), place / 5 - 1)] * 6
        save_grid(grid, ["a handwritten seven"] * 6, folder / "samples" / f"step_{images:09d}.png")
    scores(Interval(1.21, 1.09, 1.33)).write(folder)
    return folder


class Links(HTMLParser):
    """Everything on a page that a browser would go and get, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "action", "data", "srcset", "poster")
        self.links += [value for name, value in attrs if name in names]

    def handle_data(self, data) -> None:
        self.words.append(data)


def test_the_numbers_stand_on_the_page(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Links(path.read_text())
    text = " ".join(" ".join(page.words).split()).replace("\u00a0", " ")
    for wanted in (
        "2026-11-23_120000-digits-7f3a",
        "images seen 40,000",
        "generator updates 400",
        "discriminator updates 200",
        "3 min 20 s",
        "200 images/s",
        f"fd[{NAME}]",
        "3.21 2.9 to 3.5",
        "1.21 1.09 to 1.33",
        "97.8 % 96.1 % to 98.8 %",
        "99.1 %",
        "images per seed (n): 500",
        "seeds: 7, 8",
        "nfe: 8",
        "guidance: 1.5",
        "ema: 0.05",
        "lmsd train experiment=digits 'prompts=[a red one]'",
        "FD is 1.21 × the real-vs-real floor on test (95 % interval 1.09 to 1.33): told apart",
        f"fd[{NAME}] on val went from 30 to 10: better, beyond the intervals.",
        "no sign of copying",
        "<b>&amp; not markup</b>",
        "after 45,000 images",
    ):
        assert wanted in text, wanted
    assert " fid" not in text.lower()
    verdict, table = path.read_text().index("told apart"), path.read_text().index("<table>")
    assert verdict < table, "the verdict comes first"


def test_no_request_goes_anywhere(run):
    text = write_report(run).read_text()
    page = Links(text)
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_ids_of_charts_do_not_collide(run):
    """Two charts with one clip path's id would be clipped by the first one's."""
    found = re.findall(r'<clipPath id="([^"]+)"', write_report(run).read_text())
    assert len(found) >= 3
    assert len(found) == len(set(found))


def test_seven_grids_from_the_first_to_the_last(run):
    text = write_report(run).read_text()
    titles = re.findall(r"<figcaption>after ([\d,]+) images", text)
    assert len(titles) == 7
    assert (titles[0], titles[-1]) == ("45,000", "0")


def test_a_folder_with_nothing_in_it_has_a_report(tmp_path):
    text = write_report(tmp_path).read_text()
    assert "Not evaluated yet" in text
    assert "<svg" not in text


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_records_survive_a_line_cut_short(run):
    records = read_records(run / "metrics.jsonl")
    assert len(records) == 406
    assert records[-1]["images"] == 40_000


def test_charts_hold_both_players_and_only_what_was_logged(run):
    charts = {chart.title: chart.svg for chart in curves_of(read_records(run / "metrics.jsonl"))}
    assert list(charts) == [f"fd[{NAME}] on val", "Share of prompts right", "Loss", ACCURACY]
    assert ">generator<" in charts["Loss"]
    assert ">discriminator<" in charts["Loss"]
    assert "images seen" in charts["Loss"]


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Interval(0.98, 0.8, 1.2), "not told apart from held-out data"),
        (Interval(1.5, 1.2, 1.8), ": told apart from held-out data"),
    ],
)
def test_the_verdict_follows_the_interval(ratio, said):
    assert said in sentences({"test": scores(ratio).as_json()}, [])[0]


def test_copies_are_called_by_name():
    found = sentences({"val": scores(Interval(1, 0.9, 1.1), low=0.2).as_json()}, [])
    assert any(sentence.startswith("Look for copies") for sentence in found)


@pytest.mark.parametrize(
    ("last", "said"), [(31.0, "worse"), (20.0, "better"), (29.0, "the intervals overlap")]
)
def test_the_course_follows_the_intervals(last, said):
    records = [
        {"images": images, FD: fd, f"{FD}/low": fd - 0.6, f"{FD}/high": fd + 0.6}
        for images, fd in ((0, 29.5), (10, last))
    ]
    assert said in sentences({}, records)[-1]


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (200, "3 min 20 s"), (3725, "1 h 2 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_in_a_browser(run, tmp_path, width):
    """Verdict, table and charts are painted, and nothing sticks out to the right."""
    page = tmp_path / "page.html"
    tail = "<script>document.title = document.documentElement.scrollWidth + '/' + innerWidth</script></body>"
    text = re.sub(r"<meta http-equiv[^>]*>", "", write_report(run).read_text())
    page.write_text(text.replace("</body>", tail))
    shot = tmp_path / "shot.png"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400"]
    dump = [f"--screenshot={shot}", "--dump-dom", f"file://{page}"]
    done = subprocess.run([*command, *dump], capture_output=True, text=True, timeout=300, check=True)
    needed, given = map(int, re.search(r"<title>(\d+)/(\d+)</title>", done.stdout).groups())
    assert needed <= given, "the page is wider than the window"
    if not shot.exists():
        subprocess.run([*command, f"--screenshot={shot}", f"file://{page}"], timeout=300, check=True)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    accent = np.abs(pixels - [0x1F, 0x6F, 0xD0]).sum(axis=2) < 12
    assert accent.sum() > 300, "the bar beside the verdict and the generator's curves"
    discriminator = np.abs(pixels - [0xD9, 0x63, 0x0D]).sum(axis=2) < 30
    assert discriminator.sum() > 30, "the discriminator's curve"
