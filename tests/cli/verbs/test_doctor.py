"""Doctor: each finding is one line with its fix; what is looked at is not imported."""

from pathlib import Path

import pytest

from lmsd.cli import run
from lmsd.cli.verbs import doctor


def test_a_healthy_machine_gets_marks_and_no_fix(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    assert "torch 2" in lines[1]


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        (
            doctor.torchvision("2.13.0+cpu", "0.28.0"),
            "fix  torchvision 0.28.0 is installed but was built for CUDA; your torch is CPU-only:  "
            "nothing here needs it: pip uninstall torchvision",
        ),
        (doctor.torchvision("2.13.0", "0.28.0"), "note torchvision 0.28.0 is installed:  nothing here"),
        (doctor.devices("2.13.0+cpu", ["GPU 0: X"]), "fix  1 GPUs and a torch for CPUs only:"),
        (doctor.devices("2.13.0", ["GPU 0: X", "GPU 1: X"]), "ok   GPU 0: X; GPU 1: X"),
        (doctor.threads(2, "8"), "fix  OMP_NUM_THREADS=8 on 2 cores:  OMP_NUM_THREADS=2, or threads=2"),
        (doctor.threads(2, None), "ok   2 cores, OMP_NUM_THREADS=unset"),
        (doctor.disk(Path("."), 1.25), "fix  1.2 GB free here:  make room (5 GB), or keep=1"),
        (doctor.wandb(False), "ok   W&B: no key; logger=wandb writes offline"),
        (doctor.wandb(True), "ok   W&B: a key is there"),
    ],
)
def test_a_finding_is_one_line(finding: doctor.Finding, said: str) -> None:
    assert str(finding).startswith(said)


def test_a_data_set_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is missing" in capsys.readouterr().out.splitlines()[-1]


def test_a_missing_folder_of_configs_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LMSD_CONFIG_DIR", "/nowhere/configs")
    assert run(["doctor"]) == 2
    assert "which is no folder:  create it, or unset LMSD_CONFIG_DIR" in capsys.readouterr().out
