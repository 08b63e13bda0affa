"""The table that `lmsd demo` ends with, from a record as an evaluation writes it."""

import math

from lmsd.cli.verbs.demo import scores
from lmsd.evaluation import Scores
from lmsd.metrics import Interval, Memorization, NeighborRatio, Score

X = "lmsd-cnn@ab12"


def found(ratio: Interval) -> dict[str, object]:
    named = {
        f"fd[{X}]": 3.0,
        f"fd_matched[{X}]": 5.0,
        f"fd_floor[{X}]": 4.0,
        f"fd_ratio[{X}]": 1.25,
        "right": 0.5,
    }
    near = Memorization(NeighborRatio(ratio, ratio, ratio), 0.4, Interval(0, 0, 0.01), ratio, ())
    made = {name: Score(Interval(value, 0.9 * value, 1.1 * value)) for name, value in named.items()}
    record = Scores(X, 500, (0, 1, 2), made, near, (), {}).as_json()
    return {"record": record, "played": 0.4, "status": {"images": 400_000, "seconds": 222.4}}


def test_every_score_of_the_table_has_its_interval():
    table = scores(found(Interval(0.97, 0.925, 1.02)))
    assert table["digit right, % of 1500 prompts"] == "50 [45, 55]"
    assert table["nearest training neighbor ratio"] == "0.97 [0.93, 1.02]"
    assert table["  ratio to the floor"] == "1.25 [1.12, 1.38]"
    nothing = scores(found(Interval(math.nan, math.nan, math.nan)))
    assert nothing["nearest training neighbor ratio"] == "–"
