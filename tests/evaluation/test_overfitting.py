"""The plot of what a run knows by heart."""

from lmsd.evaluation.overfitting import overfitting
from lmsd.evaluation.report import curves_of


def lines():
    return [
        {"images": 10, "discriminator/augment": 0.0, "updates": 1},
        {
            "images": 20, "discriminator/accuracy_train": 0.8, "discriminator/accuracy_val": 0.7,
            "val/copies": 0.1, "val/copies/low": 0.0, "val/copies/high": 0.2,
        },
        {"images": 30, "discriminator/augment": 0.2, "updates": 3},
        {
            "images": 40, "discriminator/accuracy_train": 0.9, "discriminator/accuracy_val": 0.6,
            "val/copies": 0.3, "val/copies/low": 0.2, "val/copies/high": 0.4,
        },
    ]  # fmt: skip


def columns(records):
    found = {}
    for record in records:
        for name, value in record.items():
            if name != "images":
                found.setdefault(name, ([], []))
                found[name][0].append(record["images"])
                found[name][1].append(value)
    return found


def test_panels_are_gap_strength_and_copies():
    gap, strength, copies = overfitting(columns(lines()))
    assert gap.x == [20, 40]
    assert [round(value, 9) for value in gap.y] == [0.1, 0.3]
    assert list(strength.y) == [0.0, 0.2]
    assert (list(copies.low), list(copies.high)) == ([0.0, 0.2], [0.2, 0.4])


def test_a_run_without_a_judge_has_no_such_plot():
    assert overfitting(columns([{"images": 1, "val/copies": 0.1}, {"images": 2, "val/copies": 0.2}])) == []


def test_the_report_draws_one_plot():
    titles = [chart.title for chart in curves_of(lines())]
    assert titles.count("Are images learned by heart?") == 1
    (chart,) = (chart for chart in curves_of(lines()) if chart.title == "Are images learned by heart?")
    for words in ("accuracy of D on training images", "strength of the augmentation", "copies of training"):
        assert words in chart.svg
