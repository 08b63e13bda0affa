"""`lmsd export`: a folder whole or not at all, with a manifest that notices damage, and a card."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import yaml
from huggingface_hub import ModelCard

import lmsd
from lmsd.errors import UserError
from lmsd.export import FORMATS, FormatName
from lmsd.export import safetensors as plain
from lmsd.export.base import Parity, Row
from lmsd.export.card import Told
from lmsd.export.folder import export, format_of, kept
from lmsd.models.exported import placed

PROMPTS = ["a red circle", "", "a large blue star on the left of a green ring"]
RECORD: dict[str, Any] = {
    "n": 200,
    "seeds": [0, 1],
    "setup": {"data": "c0ffee" * 8, "steps": 4, "guidance": 1.0, "ema": "4000", "images": 64},
    "scores": {
        "fd[lmsd-cnn@12]": {"value": 2.5, "low": 2.25, "high": 2.75},
        "fd_floor[lmsd-cnn@12]": {"value": 0.5, "low": 0.4, "high": 0.6},
        "right": {"value": 0.75, "low": 0.7, "high": 0.8},
        "right_real": {"value": 0.96, "low": 0.9, "high": 0.99},
    },
}


def test_a_folder_names_no_place_of_this_machine_and_no_texts_of_the_data() -> None:
    """As of a run of lmsd compress, whose teacher is a checkpoint, and of objective=continual."""
    warm = {
        "caption_dropout": 0.1,
        "teacher": {"_target_": "x", "path": "/home/me/outputs/run/step.ckpt@ema"},
    }
    config = {"name": "n", "evaluate": {}, "objective": {"warm": warm, "prompts": ["my diary"], "own": 8}}
    found = yaml.safe_load(kept(config))["objective"]
    assert found == {"warm": {"caption_dropout": 0.1, "teacher": {"_target_": "x"}}, "own": 8}


def test_the_table_names_what_the_option_takes() -> None:
    assert set(FORMATS) == set(FormatName.__args__)  # type: ignore[attr-defined]
    for name in FORMATS:
        found = format_of(name)
        assert {"Options", "write", "check"} <= set(vars(found))


@pytest.mark.parametrize("name", tiny_models.EXPERIMENTS)
def test_safetensors_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = tiny_models.model(name, guidance=2.0)
    parity = export(model, "safetensors", tmp_path / "out", plain.Options(), Told())
    assert [row.value for row in parity.rows] == [0.0, 100.0]
    again = lmsd.load(tmp_path / "out")
    assert (again.name, again.images, again.ema) == (name, 64, "ema")
    for (key, one), (other_key, other) in zip(
        model.generator.named_parameters(), again.generator.named_parameters(), strict=True
    ):
        assert key == other_key
        assert torch.equal(one, other)
    with pytest.warns(UserWarning, match="1 of 3 prompts are longer"):
        one, two = (each.sample(PROMPTS, seed=5) for each in (model, again))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, model.sample(PROMPTS[:2] * 2, seed=5)[:3]), "prompts matter"
    assert again.generation().settings.guidance == 2.0


def test_the_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.model("digits")
    to = tmp_path / "deep" / "out"

    def broken(folder: Path, model: Any) -> Parity:
        assert (folder / "lmsd.json").is_file()
        return Parity((Row("largest difference of x0", 0.5, 1e-5),), {})

    with monkeypatch.context() as patch:
        patch.setattr(plain, "check", broken)
        with pytest.raises(
            UserError, match=r"nothing was written: largest difference of x0 0\.5 \(at most 1e-05"
        ):
            export(model, "safetensors", to, plain.Options(), Told())
    assert not list(to.parent.iterdir())
    export(model, "safetensors", to, plain.Options(), Told())
    assert [path.name for path in to.parent.iterdir()] == ["out"]
    with pytest.raises(UserError, match=r"to=.*out exists: name a new folder"):
        export(model, "safetensors", to, plain.Options(), Told())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no folder that may be written"):
        export(model, "safetensors", tmp_path / "file" / "out", plain.Options(), Told())


def test_rows_that_are_not_numbers_are_beyond_every_limit() -> None:
    assert Row("x", 1.0, 1.0).held
    assert not Row("x", 1.1, 1.0).held
    assert not Row("x", float("nan"), 1.0).held
    assert not Row("x", float("nan"), 1.0, at_least=True).held
    assert not Row("x", 39.0, 40.0, at_least=True).held


def test_damage_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(tiny_models.model("digits"), "safetensors", folder, plain.Options(), Told())
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or was changed"):
        lmsd.load(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        lmsd.load(folder)
    weights.write_bytes(content)
    with pytest.raises(UserError, match="exported with ema=ema, and holds no other weights"):
        lmsd.load(folder, ema=300)
    manifest = json.loads((folder / "lmsd.json").read_text())
    for changed, said in (
        ({"version": 9}, "is of version 9, and 1 is read here: update lmsd"),
        ({"opens": {"_target_": "os.mkdir", "path": "x"}}, r"'os\.mkdir' may not be built"),
        ({"opens": {"_target_": "pathlib.Path"}}, r"'pathlib\.Path' may not be built"),
    ):
        (folder / "lmsd.json").write_text(json.dumps({**manifest, **changed}))
        with pytest.raises(UserError, match=said):
            lmsd.load(folder)
    (folder / "lmsd.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read: export the run again"):
        lmsd.load(folder)


def test_the_card_is_the_hubs(tmp_path: Path) -> None:
    told = Told(["export", "run=last"], "apache-2.0", {"test": RECORD}, base="sd-tiny")
    export(tiny_models.model("digits"), "safetensors", tmp_path / "out", plain.Options(), told)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.base_model, card.data.library_name) == (
        "apache-2.0",
        "sd-tiny",
        "lmsd",
    )
    assert card.data.pipeline_tag == "text-to-image"
    scores = {found.metric_type: found for found in card.data.eval_results}
    assert {name: found.metric_value for name, found in scores.items()} == {
        "fd[lmsd-cnn@12]": 2.5,
        "right": 0.75,
    }
    assert scores["right"].dataset_split == "test"
    assert scores["right"].metric_config == "n=200, seeds [0, 1], 95 % interval [0.7, 0.8]"
    text = card.text
    for said in (
        "| fd[lmsd-cnn@12] | 2.5 | [2.25, 2.75] | 0.5 |",
        "| right | 0.75 | [0.7, 0.8] | 0.96 |",
        "`lmsd export run=last`",
        "c0ffee" * 8,
        "license: apache-2.0",
        "| largest difference of x0 | 0 | at most 0 |",
    ):
        assert said in text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_files_that_a_spec_names_travel_along(tmp_path: Path) -> None:
    from lmsd.export.parts import copied

    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}")
    (tmp_path / "weights.pth").write_bytes(b"weights")
    spec = {
        "conditioner": {"path": str(tmp_path / "encoder")},
        "codec": [{"path": str(tmp_path / "weights.pth")}],
    }
    out = tmp_path / "out"
    out.mkdir()
    kept = copied({**spec, "net": {"path": "no file", "width": 3}}, out)
    found = placed(kept, out)
    assert Path(found["conditioner"]["path"], "config.json").read_text() == "{}"
    assert Path(found["codec"][0]["path"]).read_bytes() == b"weights"
    assert Path(found["codec"][0]["path"]).is_relative_to(out)
    assert found["net"] == {"path": "no file", "width": 3}
    assert str(tmp_path) not in json.dumps(kept)


def test_paths_of_data_stay_at_home(tmp_path: Path) -> None:
    model = tiny_models.model("digits", data={"shards": "/home/somebody/shards"})
    export(model, "safetensors", tmp_path / "out", plain.Options(), Told())
    for path in (tmp_path / "out").rglob("*.json"):
        assert "somebody" not in path.read_text()
