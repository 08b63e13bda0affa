"""precision=auto: what it takes, and that a trial leaves no trace."""

from pathlib import Path

import pytest
import tiny_run
import torch

from lmsd.engine.precision import choice, timed


@pytest.mark.parametrize(
    ("full", "half", "chosen"), [(1.0, 0.5, "bf16-mixed"), (1.0, 0.95, "32-true"), (1.0, 14.0, "32-true")]
)
def test_half_precision_must_be_worth_its_rounding(full: float, half: float, chosen: str) -> None:
    assert choice({"32-true": full, "bf16-mixed": half}) == chosen


@pytest.mark.parametrize("name", ["recipe", "grpo", "nft"])
def test_a_trial_leaves_no_trace(tmp_path: Path, name: str) -> None:
    """Phases, a calibrated judge, an old policy that is moved between turns: all as without a trial."""
    tried, plain = (tiny_run.engine(name, batches=3, ema=(16,)) for _ in range(2))
    noise = torch.get_rng_state()
    seconds = timed(tried, tiny_run.samples(torch.arange(8)), torch.device("cpu"))
    assert all(spent > 0 for spent in seconds.values())
    assert torch.equal(noise, torch.get_rng_state())
    assert tried.clock == plain.clock
    assert [p.requires_grad for p in tried.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert all(p.grad is None for p in tried.parameters())
    for subject in (tried, plain):
        tiny_run.run(subject, tmp_path / str(id(subject)))
    for (key, ours), theirs in zip(plain.named_parameters(), tried.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


def test_a_trial_computes_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, seen = tiny_run.engine("denoising"), []
    net = subject.players["generator"].net
    net.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    timed(subject, tiny_run.samples(torch.arange(8)), torch.device("cpu"))
    assert seen[:4] == [False, True, False, True]
