"""What Tab offers, and that bash's own machinery takes it up."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmsd import cli
from lmsd.cli.config.completion import SHELLS, candidates
from lmsd.cli.config.compose import groups
from lmsd.cli.verbs import WORDS


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("lmsd tr", ["train"]),
        (
            "lmsd data ",
            ["build", "encode", "features", "index", "merge", "show", "statistics", "synthesize", "votes"],
        ),
        ("lmsd data build d", ["digits"]),
        ("lmsd launch s", ["sky", "slurm"]),
        ("lmsd launch slurm trainer=c", ["trainer=cpu"]),
        ("lmsd data build digits image_f", ["image_format="]),
        ("lmsd train trainer=", [f"trainer={choice}" for choice in groups()["trainer"]]),
        ("lmsd train optimizer@optim.generator=sg", ["optimizer@optim.generator=sgd"]),
        ("lmsd train optim.generator.l", ["optim.generator.lr="]),
        ("lmsd train net.wi", ["net.width="]),
        ("lmsd train net=unet_text net.wi", ["net.widths="]),
        ("lmsd train net=nonsense net.wi", ["net.width="]),
        ("lmsd train generator.prediction=v", ["generator.prediction=v", "generator.prediction=velocity"]),
        ("lmsd train compile=", ["compile=false", "compile=true"]),
        ("lmsd sweep sweep.met", ["sweep.method="]),
        ("lmsd train sampler=d", ["sampler=ddim", "sampler=direct", "sampler=dpmpp"]),
        ("lmsd verify-resume ki", ["kill_seed=", "kills="]),
        ("lmsd serve serve.e", ["serve.exact="]),
        ("lmsd serve serve.exact=", ["serve.exact=false", "serve.exact=true"]),
        ("lmsd serve limit.head", ["limit.header_seconds="]),
        ("lmsd serve che", ["checkpoint="]),
        ("lmsd data votes v sh", ["shard_size="]),
        ("lmsd export format=onnx quanti", ["quantize="]),
        ("lmsd sample prom", ["prompts="]),
        ("lmsd sample sampler=d", ["sampler=ddim", "sampler=direct", "sampler=dpmpp"]),
        ("lmsd evaluate sampler=h", ["sampler=heun"]),
        ("lmsd evaluate split=", ["split=test", "split=train", "split=val"]),
        ("lmsd evaluate keep=", ["keep=features", "keep=images"]),
        ("lmsd nonsense x", []),
    ],
)
def test_candidates(line: str, found: list[str]) -> None:
    assert candidates(line) == found


def test_runs_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs" / "2026-run-7f3a").mkdir(parents=True)
    (tmp_path / "outputs" / "2026-run-7f3a" / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert candidates("lmsd sample run=") == ["run=2026-run-7f3a", "run=last"]
    assert candidates("lmsd report 2") == ["2026-run-7f3a"]


def test_the_words_are_those_of_the_verbs() -> None:
    from lmsd.data.builders import SOURCES

    assert WORDS["data build"] == SOURCES
    assert set(WORDS) - {"data build"} <= set(cli.VERBS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_after_an_equals_sign_and_without_torch() -> None:
    """The reply leaves out what stands before "=", where bash breaks words itself."""
    program = (
        "import sys; from lmsd import cli; code = cli.run(sys.argv[1:]);"
        "sys.exit(code or 3 * bool({'torch', 'lightning'} & set(sys.modules)))"
    )
    script = (
        f'lmsd() {{ {sys.executable} -c "{program}" "$@" || echo failed; }}\n'
        'eval "$(lmsd --completion bash)"\n'
        "complete -p lmsd\n"
        'for COMP_LINE in "lmsd ev" "lmsd train net=unet_" "lmsd train net=mlp optim.generator.l"; do\n'
        '  COMP_POINT=${#COMP_LINE} COMPREPLY=(); _lmsd; echo "${COMPREPLY[*]}"\n'
        "done\n"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "complete -o default -F _lmsd lmsd",
        "evaluate",
        "unet_conv unet_pooled unet_text",
        "optim.generator.lr=",
    ], done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert "lmsd --complete" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", "-c", script], check=False).returncode == 0


def test_an_unknown_shell_is_refused(refused) -> None:
    assert "bash, zsh, fish" in refused("--completion", "tcsh")
