"""What a run says of itself."""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = "from lmsd.engine.callbacks import peak_memory; print(peak_memory())"
PARENT = f"""
import subprocess, sys
held = bytearray(b"1") * (1200 << 20)
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="only Linux inherits a peak, and tells better"
)
def test_the_peak_of_memory_is_of_this_process_and_not_of_who_started_it():
    """The child holds torch and lightning, a third of what its parent does."""
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    assert 100 < int(done.stdout) < 1000
