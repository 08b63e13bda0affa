"""Building: what the shards do not hold is asked for before anything trains."""

from types import SimpleNamespace
from typing import Any

import pytest

from lmsd.cli.build.experiment import check_condition
from lmsd.errors import UserError
from lmsd.models.conditioner import Conditioner, LabelConditioner, NullConditioner


def holding(*, labels: bool, captions: bool) -> Any:
    index = SimpleNamespace(labels=labels, captions=frozenset({"txt"} if captions else ()))
    return SimpleNamespace(index=lambda split: index)


class Reader(Conditioner):
    reads = "text"


@pytest.mark.parametrize(
    ("conditioner", "labels", "captions", "said"),
    [
        (
            LabelConditioner(3, 4),
            False,
            True,
            r"no class labels \(KEY\.cls\); take conditioner=text for their",
        ),
        (LabelConditioner(3, 4), False, False, "take conditioner=none"),
        (Reader(), True, False, "no captions .* take conditioner=label for their classes"),
        (Reader(), False, False, "take conditioner=none"),
    ],
)
def test_a_conditioner_needs_what_it_reads(
    conditioner: Conditioner, labels: bool, captions: bool, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check_condition(conditioner, holding(labels=labels, captions=captions))
    check_condition(conditioner, holding(labels=True, captions=True))
    check_condition(NullConditioner(), holding(labels=False, captions=False))
