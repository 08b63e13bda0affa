"""Models with random weights come from the tests of exports."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
pytest.importorskip("fastapi", reason="pip install 'lmsd[serve]'")
