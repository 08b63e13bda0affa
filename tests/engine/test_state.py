"""What a run notes of itself outlives the process; what is asked of it does not."""

import torch

from lmsd.engine.state import RunState


def noted() -> RunState:
    """A run of 640 images that has seen trouble."""
    state = RunState(
        rollbacks=2,
        damaged={3, 65},
        unscored=True,
        read_at=576,
        line={"generator/loss": 0.5},
        scores={"val/fd": 7.0},
        scored_at=640,
    )
    for norm in (float("nan"), 1.0, float("inf"), float("nan")):
        state.count("generator", torch.tensor(norm))
    state.count("discriminator", torch.tensor(1.0))
    state.asked.stop = True
    return state


def test_a_resumed_run_knows_what_the_unbroken_one_knows() -> None:
    one, other = noted(), RunState()
    other.load_state_dict(one.state_dict(640), 640, torch.device("cpu"))
    assert other.state_dict(640) == one.state_dict(640)
    assert other.skipped() == {"generator": 2, "discriminator": 0}
    other.count("generator", torch.tensor(float("nan")))  # a streak goes on where it was
    assert other.skipped()["generator"] == 3
    assert not other.asked.stop


def test_scores_of_another_moment_are_in_no_checkpoint() -> None:
    assert noted().state_dict(640)["metrics"] == {"val/fd": 7.0}
    assert noted().state_dict(704)["metrics"] == {}
