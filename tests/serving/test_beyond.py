"""Beyond one process: the file for Ray Serve in docs/serving.md runs, and the commands of others fit."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from lmsd.export import safetensors
from lmsd.export.card import Told
from lmsd.export.folder import export

DOCS = Path(__file__).parents[2] / "docs"

DRIVER = """
import json, urllib.request
import ray
from ray import serve
ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
from deploy import app
serve.run(app)
found = []
for seed in (1, 2, 1):
    body = json.dumps({"prompt": "a red circle", "seed": seed}).encode()
    with urllib.request.urlopen("http://127.0.0.1:PORT/", body, timeout=60) as answer:
        found.append(json.load(answer))
print("FOUND", json.dumps(found))
serve.shutdown()
ray.shutdown()
"""


def block(language: str) -> str:
    """The first block of a language in the page."""
    found = re.search(f"^```{language}\n(.*?)^```", (DOCS / "serving.md").read_text(), re.M | re.S)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_the_file_for_ray_serve_runs_on_one_node(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray here: pip install 'lmsd[ray]'")
    model = tiny_models.model("digits")
    folder = tmp_path / "exported"
    export(model, "safetensors", folder, safetensors.Options(), Told())
    text = block("python").replace("outputs/RUN", str(folder))
    assert str(folder) in text
    (tmp_path / "deploy.py").write_text(text)
    (tmp_path / "driver.py").write_text(DRIVER.replace('"port": 0', '"port": 8771').replace("PORT", "8771"))
    done = subprocess.run(
        [sys.executable, "driver.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    assert line is not None, done.stderr[-2000:]
    found = np.array(json.loads(line.removeprefix("FOUND ")))
    wanted = [model.sample(["a red circle"], seed=seed)[0].astype(int) for seed in (1, 2, 1)]
    assert np.abs(found - np.stack(wanted)).max() <= 1


def test_other_servers_are_given_the_folder_that_the_export_writes() -> None:
    commands = [shlex.split(line) for line in block("shell").splitlines()]
    assert [words[0] for words in commands] == ["vllm", "sglang"]
    exported = re.findall(r"format=diffusers to=(\S+)", (DOCS / "export.md").read_text())
    for words in commands:
        assert set(exported) & set(words)
        assert words[1] == "serve"
        assert words[words.index("--port") + 1].isdecimal()
