"""report.html: the right numbers, whole without its parts, no request to anywhere, readable in a browser."""

import html
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lmsd.errors import UserError
from lmsd.evaluation import Scores
from lmsd.evaluation.compare import changed, write_comparison
from lmsd.evaluation.grid import save_grid
from lmsd.evaluation.records import read_records, records_by_age, without_pauses
from lmsd.evaluation.report import (
    _columns,
    _reward_curves,
    _speeds,
    _steps_curves,
    curves_of,
    duration,
    over_steps,
    write_report,
)
from lmsd.evaluation.slices import Slice
from lmsd.evaluation.verdict import sentences
from lmsd.metrics import Interval, Memorization, NeighborRatio, Score

NAME = "lmsd-cnn@ab12"
FD = f"val/fd[{NAME}]"
SPEED = "Throughput, images/s, evaluations included"
ACCURACY = "Discriminator's sign accuracy, train and held-out"


def scores(ratio: Interval, *, flagged: bool = False) -> Scores:
    near = NeighborRatio(Interval(0.97, 0.93, 1.02), Interval(0.91, 0.8, 1.05), Interval(0.012, 0.0, 0.03))
    copies = Interval(0.08, 0.05, 0.11) if flagged else Interval(0.0, 0.0, 0.01)
    setup = {"split": "test", "ema": "0.05", "sampler": "FewStep", "checkpoint": "step_4.ckpt"}
    setup |= {"options": "sampler=few_step extractor=clip weights=nets/clip \"shards='held/{0..1}.tar'\""}
    named = {
        f"fd[{NAME}]": Interval(3.21, 2.9, 3.5),
        f"fd_matched[{NAME}]": Interval(5.1, 4.8, 5.4),
        f"fd_floor[{NAME}]": Interval(4.2, 4.0, 4.4),
        f"fd_ratio[{NAME}]": ratio,
        "right": Interval(0.978, 0.961, 0.988),
        "right_real": Interval(0.991, 0.98, 0.996),
    }
    return Scores(
        extractor=NAME,
        n=500,
        seeds=(7, 8),
        scores={name: Score(interval) for name, interval in named.items()},
        memorization=Memorization(near, 1e-9 if flagged else 0.4, copies, Interval(-0.3, -1.2, 0.6), ()),
        notes=(),
        setup=setup | {"steps": 4, "guidance": 1.5, "nfe": 8.0},
    )


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "2026-11-23_120000-digits-7f3a"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: digits\nnote: <b>&amp; not markup</b>\n")
    (folder / "overrides.txt").write_text("experiment=digits\nprompts=[a red one]\n")
    (folder / "status.json").write_text('{"state": "done", "peak_memory_mb": 1536}')
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


@pytest.fixture
def other(run) -> Path:
    """Another run beside it: worse in one score, by more than the groups' spread."""
    folder = run.with_name("2026-11-23_130000-digits-0b1c")
    shutil.copytree(run, folder)
    record = json.loads((run / "eval/test/metrics.json").read_text())
    parts = [3.21 + 0.002 * place for place in range(-10, 10)]
    for path, shift in ((run, 0.0), (folder, 0.4)):
        record["scores"][FD.removeprefix("val/")] |= {
            "value": 3.21 + shift,
            "parts": [part + shift + 0.001 * (place % 3) * (shift > 0) for place, part in enumerate(parts)],
        }
        record["scores"]["right"] |= {
            "parts": [0.978 + 0.001 * (place % 2) for place in range(20)],
            "method": "batches",
        }
        (path / "eval/test/metrics.json").write_text(json.dumps(record))
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
        "peak memory 1.50 GiB",
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
        f"fd[{NAME}] on val went from 30 to 10: smaller by {NAME} alone, which is no claim",
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


def test_a_run_of_rewards_shows_reward_kl_diversity_and_held_out_fd_in_one_plot(run):
    """Above one another over the same images; a run without a reward has no such plot."""
    title = "Is the reward hacked?"
    assert title not in [chart.title for chart in curves_of(read_records(run / "metrics.jsonl"))]
    records = read_records(run / "metrics.jsonl")
    for line in records:
        if "updates" in line:
            place = line["images"] / 40_000
            line |= {
                "generator/reward": place,
                "generator/kl": 3 * place,
                "generator/diversity": 1 - place / 2,
            }
    first, *others = curves_of(records)
    words = (
        "reward",
        "KL from the reference, nats",
        "diversity",
        "held-out FD (val), 95 % interval",
    )
    places = [first.svg.index(f">{word}<") for word in words]
    assert (first.title, places) == (title, sorted(places))
    assert first.svg.count("images seen") == 1
    assert not {"reward", "kl", "Diversity over z"} & {chart.title for chart in others}
    curves = {curve.name: curve for curve in _reward_curves(_columns(records))}
    assert curves["reward"].y[-1] == 1.0
    assert (curves[words[3]].x[-1], curves[words[3]].y[-1], curves[words[3]].high[-1]) == (40_000, 10.0, 11.0)


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


def test_the_closest_pairs_and_the_command_stand_beside_the_scores(run):
    """The picture is that of the newest record's own name."""
    (path,) = [each for each in (run / "eval/test").glob("*.json") if each.stem != "metrics"]
    save_grid([torch.zeros(1, 8, 8)] * 2, ["seed 0, row 3", "training 9"], path.with_suffix(".png"))
    text = write_report(run).read_text()
    assert 'alt="closest pairs" src="data:image/png;base64,' in text
    command = f"lmsd evaluate run={run.name} split=test n=500 'seeds=[7,8]' steps=4 guidance=1.5 ema=0.05 "
    command += "checkpoint=step_4.ckpt sampler=few_step extractor=clip weights=nets/clip"
    shards = shlex.quote("shards='held/{0..1}.tar'")
    assert f"<pre>{command} {shards}</pre>" in html.unescape(text)


def test_the_command_of_a_score_made_in_training_names_its_checkpoint(run):
    base = scores(Interval(1.21, 1.09, 1.33))
    setup = {"split": "val", "ema": "4000", "steps": 4, "guidance": 1.0, "images": 128, "in_training_set": 51}
    replace(base, setup=setup).write(run)
    wanted = "steps=4 guidance=1.0 ema=4000 checkpoint=step_000000128.ckpt overlap=label</pre>"
    assert wanted in write_report(run).read_text()


def test_pauses_between_sessions_are_no_time_of_training(run):
    """A day between images 20,000 and 20,100, 0.2 s of it after the second session began."""
    lines = [line for line in read_records(run / "metrics.jsonl") if "time" in line]
    day = 86_400.0
    for line in lines:
        line["time"] += day if line["images"] > 20_000 else 0.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    resumed = 1000 + 201 / 2 + day - 0.2
    (run / "status.json").write_text(json.dumps({"state": "done", "sessions": [990.0, resumed]}))
    page = " ".join(" ".join(Links(write_report(run).read_text()).words).split())
    assert "time 3 min 20 s" in page
    assert "speed with evaluations 200 images/s" in page
    speeds = _speeds(without_pauses(lines, [990.0, resumed]))[1]
    assert min(speeds) > 199
    assert without_pauses(lines, []) == lines


@pytest.mark.parametrize("name", ["status.json", "env.json", "eval/test/metrics.json", "NAME"])
@pytest.mark.parametrize("text", ["[]", '{"n": 5', ""])
def test_a_damaged_file_is_named_with_the_way_out(run, name, text):
    (own,) = [each for each in (run / "eval/test").glob("*.json") if each.stem != "metrics"]
    path = own if name == "NAME" else run / name
    path.write_text(text)
    way = "record of scores; lmsd evaluate makes it again" if path.parent.name == "test" else "file"
    with pytest.raises(UserError) as error:
        write_report(run)
    assert str(error.value) == f"{path} is damaged and cannot be read: delete this {way}"


def test_a_record_without_scores_is_damaged(run):
    (run / "eval/test/metrics.json").write_text('{"n": 500, "seeds": [0], "setup": {}, "scores": null}')
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        write_report(run)


def test_quality_is_drawn_against_the_number_of_steps(run):
    """Records of other settings alone are on the chart: one line a guidance, from two numbers of steps on."""
    assert "Quality against the number of steps" not in write_report(run).read_text()
    base = scores(Interval(1.21, 1.09, 1.33))
    for steps, guidance, n in ((1, 1.5, 500), (16, 1.5, 500), (1, 3.0, 500), (64, 1.5, 100), (4, 1.5, 500)):
        setup = dict(base.setup) | {"steps": steps, "guidance": guidance, "nfe": float(steps)}
        replace(base, setup=setup, n=n).write(run)
    records = [json.loads(path.read_text()) for path in sorted((run / "eval/test").glob("*guidance*.json"))]
    newest = json.loads((run / "eval/test/metrics.json").read_text())
    (line,) = _steps_curves([each for each in records if each["n"] == 500], FD.removeprefix("val/"))
    assert (line.name, list(line.x)) == ("guidance 1.5, 95 % interval", [1, 4, 16])
    assert line.low == [2.9] * 3
    charts = over_steps(records, newest)
    assert [chart.title for chart in charts] == [
        f"{FD.removeprefix('val/')} over sampling steps",
        "Share of prompts right over sampling steps",
    ]
    assert "Quality against the number of steps" in write_report(run).read_text()


def test_the_newest_of_equal_settings_is_drawn(run):
    """The record that is called NAME-2 is younger than NAME."""
    base = scores(Interval(1.21, 1.09, 1.33))
    name = f"fd[{NAME}]"
    for steps, value in ((1, 5.0), (4, 3.0), (1, 7.0)):
        found = dict(base.scores) | {name: Score(Interval(value, value - 1, value + 1))}
        replace(base, scores=found, setup=dict(base.setup) | {"steps": steps}).write(run)
    (line,) = _steps_curves(list(records_by_age(run, "test").values()), name)
    assert (list(line.x), list(line.y)) == ([1, 4], [7.0, 3.0])


def test_slices_stand_folded_below_the_scores(run):
    assert "By label, or by word of the captions" not in write_report(run).read_text()
    parts = {"cat": Slice(70, {"right": Score(Interval(0.9, 0.81, 0.95))}), "dog": Slice(60, {})}
    replace(scores(Interval(1.21, 1.09, 1.33)), slices=parts).write(run)
    text = " ".join(" ".join(Links(write_report(run).read_text()).words).split()).replace("\u00a0", " ")
    assert (
        "By label, or by word of the captions slice n right cat 70 90.0 % (81.0 % to 95.0 %) dog 60 –" in text
    )


def test_differences_from_the_experiment_are_listed(run):
    differences = {"optim.clip": [None, 1.0], "name": ["digits", "mine"]}
    page = Links(write_report(run, experiment="digits", differences=differences).read_text())
    text = " ".join(" ".join(page.words).split())
    assert "What differs from digits option digits this run optim.clip null 1.0 name digits mine" in text
    same = " ".join(Links(write_report(run, experiment="digits", differences={}).read_text()).words)
    assert "Nothing: every option is the experiment's own." in same


def test_a_comparison_says_what_differs_and_with_what_p(run, other, tmp_path):
    differences = changed({"a": {"seed": 0, "images": 5}, "b": {"seed": 1, "images": 5}})
    path, words = write_comparison([run, other], tmp_path / "c.html", differences=differences)
    text = " ".join(Links(path.read_text()).words)
    assert f"{run.name} and {other.name} differ: {FD.removeprefix('val/')} 3.21 against 3.61" in text
    assert "test, n=500, paired over the same prompts, images and noise" in text
    assert re.search(r"3\.21 +3\.61 +different \(p = [\d.e-]+\)", words)
    assert "not told apart (p = 1)" in words
    assert differences == {"seed": [0, 1]}
    assert f"{FD.removeprefix('val/')} on val" in text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("n", 400, "n=500 and n=400"), ("setup", {"split": "val"}, "different splits")],
)
def test_what_does_not_compare_is_not_compared(run, other, key, value, said, tmp_path):
    record = json.loads((other / "eval/test/metrics.json").read_text())
    record[key] = record[key] | value if isinstance(value, dict) else value
    for path in (other / "eval/test").glob("*.json"):
        path.write_text(json.dumps(record))
    _, words = write_comparison([run, other], tmp_path / "c.html")
    assert f"not comparable: {said}" + ("; evaluate both at one n\n" if key == "n" else "\n") in words


def test_a_comparison_needs_scores_and_two_runs(run, tmp_path):
    with pytest.raises(UserError, match="two runs or more"):
        write_comparison([run], tmp_path / "c.html")
    with pytest.raises(UserError, match="has no scores to compare"):
        write_comparison([run, tmp_path], tmp_path / "c.html")


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
    assert list(charts) == [f"fd[{NAME}] on val", "Share of prompts right", "Loss", ACCURACY, SPEED]
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
    found = sentences({"val": scores(Interval(1, 0.9, 1.1), flagged=True).as_json()}, [])
    assert any(sentence.startswith("Copies of the training set: about 8.0\u00a0%") for sentence in found)


def test_samples_that_are_near_all_over_are_said_to_be():
    record = scores(Interval(1, 0.9, 1.1)).as_json()
    record["scores"]["neighbors"]["c_t"] = -5.2
    (said,) = [sentence for sentence in sentences({"val": record}, []) if "C_T" in sentence]
    assert "nearer to it all over (C_T = -5.2)" in said
    assert "no sign of copying" not in said


ENDS = (("", 0.0), ("/low", -0.6), ("/high", 0.6))


@pytest.mark.parametrize(
    ("last", "alone", "agreed"),
    [(31.0, "larger", "worse"), (20.0, "smaller", "better"), (29.0, "not told apart", "not told apart")],
)
def test_the_course_follows_the_intervals_and_takes_two_families_for_better(last, alone, agreed):
    def course(*names):
        return [
            {"images": images}
            | {
                f"{name}{end}": fd + gap
                for name in names
                for end, gap in (("", 0), ("/low", -0.6), ("/high", 0.6))
            }
            for images, fd in ((0, 29.5), (10, last))
        ]

    other = "val/fd[random-conv@ab12]"
    assert f"to {last:.3g}: {alone} by {NAME} alone, which is no claim" in sentences({}, course(FD))[-1]
    assert f": {agreed}, and all 2 families agree" in sentences({}, course(FD, other))[-1]
    apart = [record | {f"{other}{end}": 5.0 for end in ("", "/low", "/high")} for record in course(FD)]
    if alone != agreed:
        assert "the families do not agree: " in sentences({}, apart)[-1]


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


def printed(page: Path, folder: Path) -> int:
    """Pages of paper that a page takes."""
    pdf = folder / "page.pdf"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--print-to-pdf={pdf}"]
    subprocess.run([*command, f"file://{page}"], capture_output=True, timeout=300, check=True)
    return len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
def test_it_prints_with_what_is_folded(run, tmp_path):
    """On several pages; a configuration that is folded on the screen takes its pages on paper."""
    short = printed(write_report(run), tmp_path)
    (run / "config.yaml").write_text("option: 1\n" * 400)
    assert printed(write_report(run), tmp_path) >= short + 4 >= 6


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_it_renders_in_a_browser(run, other, tmp_path, kind, width):
    """Verdict, table and charts are painted, and nothing sticks out to the right."""
    page = tmp_path / "page.html"
    tail = "<script>document.title = document.documentElement.scrollWidth + '/' + innerWidth</script></body>"
    made = write_report(run) if kind == "report" else write_comparison([run, other], tmp_path / "c.html")[0]
    text = re.sub(r"<meta http-equiv[^>]*>", "", made.read_text())
    page.write_text(text.replace("</body>", tail))
    shot = tmp_path / "shot.png"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},4200"]
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
