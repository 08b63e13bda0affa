"""Ten planted secrets, and none of them in anything that a run writes or says."""

import os
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_home import TINY, Home

from lmsd import cli
from lmsd.cli.config.compose import load
from lmsd.cli.runs import store
from lmsd.cli.runs.resuming import accept
from lmsd.cli.runs.secrets import require_secrets, stored
from lmsd.errors import UserError

CANARIES = {name: f"canary-{name}-5f3a" for name in ("env", "hf", "aws", "option", "list", "user", "query")}
CANARIES |= {name: f"canary-{name}-5f3a" for name in ("error", "git", "line")}
LOGGER = """
own:
  _target_: lightning.pytorch.loggers.CSVLogger
  name: ${oc.env:CANARY_NAME}
  prefix: ""
"""


@pytest.fixture
def planted(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("CANARY_NAME", CANARIES["env"])
    monkeypatch.setenv("HF_TOKEN", CANARIES["hf"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARIES["aws"])
    monkeypatch.setenv("ERROR_PASSWORD", CANARIES["error"])
    subprocess.run(["git", "init", "-q", tmp_path / "repo"], check=True)
    remote = f"https://me:{CANARIES['git']}@example.invalid/x.git"
    subprocess.run(["git", "-C", tmp_path / "repo", "remote", "add", "origin", remote], check=True)
    configs = tmp_path / "configs" / "logger"
    configs.mkdir(parents=True)
    (configs / "own.yaml").write_text(LOGGER)
    monkeypatch.setenv("LMSD_CONFIG_DIR", str(tmp_path / "configs"))
    return [
        "logger=own",
        f"++logger.own.token={CANARIES['option']}",
        f"data.test=[data/shapes,'https://u:{CANARIES['list']}@example.invalid/test-0.tar']",
        f"source='https://u:{CANARIES['user']}@h/x?Signature={CANARIES['query']}'",
        f"init_from='https://u:{CANARIES['line']}@h/weights'",
    ]


def found(folder: Path) -> list[str]:
    """Canaries in names and bytes of all files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    text = b"\n".join([str(path.relative_to(folder)).encode() + path.read_bytes() for path in files])
    return [name for name, canary in CANARIES.items() if canary.encode() in text]


def test_no_secret_reaches_a_file_or_a_message(
    planted: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path("outputs/secretive")

    def broken(*_: object) -> None:
        raise OSError(f"cannot log in with {os.environ['ERROR_PASSWORD']}")

    words = [word for word in planted if not word.startswith(("++", "init_from", "logger", "data.test"))]
    run = [*TINY, "data.shards=data/shapes", "images=64", "evaluate.n=0", f"run_dir={folder}"]
    assert cli.run(["train", *run, *words]) == 0
    said = [capfd.readouterr()]
    for path in (folder / "checkpoints").iterdir():  # so that there is something to train again
        path.unlink()
    store.set_status(folder, state="interrupted")
    with monkeypatch.context() as patch:
        patch.setattr("lmsd.engine.module.Engine._advance", broken)
        assert cli.run(["train", *run, *words, "resume=auto", "keep=2"]) == 1
    said.append(capfd.readouterr())
    assert "cannot log in with ***" in said[1].err
    assert (folder / "error.txt").exists()
    assert cli.run(["train", *TINY, "data.shards=data/shapes", planted[4]]) == 2
    said.append(capfd.readouterr())
    assert not [name for name, canary in CANARIES.items() if canary in str(said)]
    assert found(folder) == []


def test_what_is_stored_hides_secrets_and_asks_for_them_again(planted: list[str]) -> None:
    config = load([planted[0], *planted[2:]])
    OmegaConf.update(config, "logger.own.token", CANARIES["option"], force_add=True)
    assert config.logger.own.name == CANARIES["env"]  # looked up where it is used
    text = OmegaConf.to_yaml(stored(config))
    assert not [name for name, canary in CANARIES.items() if canary in text]
    assert "name: ${oc.env:CANARY_NAME}" in text
    assert "https://***@example.invalid/test-0.tar" in text
    with pytest.raises(UserError, match=r"holds a secret, which no run stores: give \S+=... again"):
        require_secrets(stored(config))
    assert store.shown(f"logger.own.token={CANARIES['option']}") == "logger.own.token=***"
    assert CANARIES["line"] not in store.shown(planted[4])


def test_secrets_inside_lists_and_beside_references_are_hidden() -> None:
    tree = {
        "sources": [{"token": "canary-1", "url": "https://u:canary-2@h/x"}],
        "url": "https://u:canary-3@${oc.env:HOST}/t.tar",
        "login": "https://u:${oc.env:PASSWORD}@h/t.tar",
        "api_key": "${oc.env:KEY}",
        "wandb_key": "canary-4",
        "auth": "canary-5",
        "z_tokens": 2,
        "caption_key": "text",
    }
    text = OmegaConf.to_yaml(stored(OmegaConf.create(tree)))
    assert "canary" not in text
    assert "url: https://***@${oc.env:HOST}/t.tar" in text
    assert "login: https://u:${oc.env:PASSWORD}@h/t.tar" in text
    assert "api_key: ${oc.env:KEY}" in text
    assert "z_tokens: 2" in text
    assert "caption_key: text" in text
    with pytest.raises(UserError, match="holds a secret"):
        require_secrets(stored(OmegaConf.create(tree)))


def test_messages_about_options_hide_secrets(tmp_path: Path) -> None:
    config = OmegaConf.create({"name": "x", "logger": {"token": "canary-1"}, "objective": {"gamma": 1}})
    with pytest.raises(UserError, match=r"objective\.token: as it was -> \*\*\*"):
        accept(config, {"objective.token": "canary-2"}, tmp_path)
