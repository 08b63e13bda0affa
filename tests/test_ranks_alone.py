"""Who a process is before there is a process group, and its share of a batch."""

import pytest

from lmsd.errors import UserError, one_of
from lmsd.ranks import launched_rank, rank_and_world, shares, world_size
from lmsd.types import Prediction


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1", "SLURM_PROCID": "7"}, 3),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "7"}, 1),
        ({"SLURM_PROCID": "7"}, 7),
    ],
)
def test_a_process_knows_its_rank_by_who_started_it(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank
    assert (rank_and_world(), world_size()) == ((0, 1), 1)  # there is no process group


def test_a_global_batch_is_shared_out_whole_or_refused() -> None:
    assert [shares(48, 1, 1), shares(48, 2, 1), shares(48, 2, 4)] == [48, 24, 6]
    for size, ranks, micro in ((48, 5, 1), (48, 3, 32), (0, 1, 1), (-4, 2, 1)):
        with pytest.raises(UserError, match=f"batch_size={size} .* take a multiple of {ranks * micro}$"):
            shares(size, ranks, micro)


def test_a_value_is_one_of_a_literals_or_the_message_names_all() -> None:
    one_of("generator", "prediction", "v", Prediction)
    with pytest.raises(UserError, match=r"^generator: prediction='vv' is none of eps, x0, v, velocity$"):
        one_of("generator", "prediction", "vv", Prediction)
