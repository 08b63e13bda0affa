"""MFU: its arithmetic, what is counted against counting by hand, and that counting changes no weight."""

from pathlib import Path

import pytest
import torch
from tiny_run import engine, run
from torch import nn

from lmsd.engine.callbacks import Progress
from lmsd.engine.flops import Flops, peak, peak_of, utilization


def test_peaks_are_found_by_the_names_that_drivers_give() -> None:
    assert peak("NVIDIA H100 80GB HBM3") == peak("NVIDIA H200") == 989e12
    assert peak("NVIDIA H100 PCIe") == 756e12
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("NVIDIA L40S") == 362e12
    assert peak("NVIDIA L4") == 121e12
    assert peak("NVIDIA GeForce GTX 1080") is None
    assert peak_of(torch.device("cpu")) is None


def test_the_arithmetic() -> None:
    flops, updates = {"generator": 3e12, "discriminator": 1e12}, {"generator": 10, "discriminator": 20}
    assert utilization(flops, updates, 2.0, 100e12) == pytest.approx(50e12 / 200e12)


def test_a_linear_map_is_counted_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """y = W x, [5,3] → [5,4]: 2·5·3·4 forward, as much for the gradient of W, none for that of x."""
    now = iter((10.0, 14.0))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    net, flops = nn.Linear(3, 4, bias=False), Flops(peak=1000.0)
    for batch in range(3):
        flops.begin(measure=batch == 0)
        with flops.update("generator"):
            net(torch.ones(5, 3)).sum().backward()
    assert flops.latest is None
    flops.end()
    assert flops.latest == pytest.approx(3 * 240 / (4.0 * 1000.0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).relu()


def test_a_net_that_is_measured_first_is_compiled_after() -> None:
    net, flops, compiled = Net(), Flops(peak=1.0), []
    net.compile(backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    for batch in range(2):
        flops.begin(measure=batch == 0)
        with flops.update("generator"):
            net(torch.ones(5, 3))
        assert len(compiled) == batch


def test_a_run_shows_it_and_keeps_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = engine(batches=4, log_every=16)
    run(plain, tmp_path / "plain", callbacks=[Progress(seconds=0.0)])
    assert plain.flops.latest is None
    assert "MFU" not in capfd.readouterr().err  # a CPU has no peak here
    monkeypatch.setattr("lmsd.engine.module.peak_of", lambda device: 1e9)
    counted = engine(batches=4, log_every=16)
    run(counted, tmp_path / "counted", callbacks=[Progress(seconds=0.0)])
    lines = [line for line in capfd.readouterr().err.splitlines() if "images/s" in line]
    assert ["MFU" in line for line in lines] == [False, True, True, True]  # from the first line of metrics on
    assert counted.flops.latest is not None
    assert counted.flops.latest > 0
    for name, value in plain.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, counted.state_dict()[name]), name
