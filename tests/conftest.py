"""What every test relies on: one thread, no network services, the shared data where it is."""

import os
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "offline",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
sys.path.insert(
    0, str(Path(__file__).parents[1] / "benchmarks" / "reliability")
)  # their short forms run here
for name, value in ENVIRONMENT.items():  # before torch is imported
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder that LMSD_TEST_DATA names: data/cifar10, data/emoji, weights."""
    root = os.environ.get("LMSD_TEST_DATA")
    if not root or not (Path(root) / "data").is_dir():
        pytest.skip("LMSD_TEST_DATA does not name a folder with real data")
    return Path(root)
