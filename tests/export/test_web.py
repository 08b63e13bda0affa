"""The page of `format=web` draws what `lmsd sample` draws, from the disk, in headless Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from browser import CHROMIUM, Page, browser
from PIL import Image
from tiny_models import ANCESTRAL

from lmsd.errors import UserError
from lmsd.export import web
from lmsd.export.card import Told
from lmsd.export.folder import export
from lmsd.models.tokenizer import encode_caption
from lmsd.rng import Rng
from lmsd.sampling.model import Model

PROMPTS = ["a red circle", "", "a large blue star on the left"]
ODD = ["it's  Übergröße 42 !?'s", "a 'large'\t(blue)\nring…", "日本 x", "½ Ⅷ ²", "é e\u0301"]


@pytest.fixture(scope="module")
def runtime() -> Path:
    """The npm package's folder, fetched where it is not kept yet."""
    try:
        return web.runtime_in(None)["wasm"].parents[1]
    except UserError as error:
        pytest.skip(f"no onnxruntime-web: {error}")


@pytest.fixture(scope="module")
def made(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    pytest.importorskip("onnxruntime", reason="pip install 'lmsd[export]'")
    model = tiny_models.model("cifar10", guidance=2.0, sampler=ANCESTRAL)
    folder = tmp_path_factory.mktemp("web") / "out"
    assert export(model, "web", folder, web.Options(runtime=runtime), Told()).held
    return model, folder


@pytest.fixture(scope="module")
def page(made: tuple[Model, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here to open the page with")
    with browser(tmp_path_factory.mktemp("profile")) as found:
        found.open(made[1] / "index.html")
        found.ask("lmsd.ready")
        yield found


@pytest.mark.slow
def test_it_draws_the_same_picture(made: tuple[Model, Path], page: Page) -> None:
    drawn = page.ask(f"lmsd.draw({PROMPTS!r}, 9).then(({{shape, levels}}) => [[...shape], [...levels]])")
    pictures = np.array(drawn[1]).reshape(drawn[0]).transpose(0, 2, 3, 1)
    there = made[0].sample(PROMPTS, seed=9).astype(int)
    assert np.abs(pictures - there).max() <= 1
    assert (pictures != there).mean() < 2e-3


@pytest.mark.slow
def test_a_million_words_and_odd_captions(made: tuple[Model, Path], page: Page) -> None:
    places = [0, 1, 255, 2**40, 2**53 - 1]
    for seed, turn, tag in [(0, 0, "x_T"), (2**63 - 1, 49, "z")]:
        count = 100_000
        ours = Rng(seed, torch.tensor(places), turn=turn).bits(count, tag).numpy().view(np.uint64)
        for row, place in zip(ours, places, strict=True):
            # 64 bits in two halves: numbers of the protocol are doubles
            script = (
                f"(() => {{ const words = lmsd.bits('{seed}', {place}, {turn}, '{tag}', {count});"
                "return Array.from(new Uint32Array(words.buffer), half => half.toString(36)).join(' '); })()"
            )
            halves = np.array([int(word, 36) for word in page.ask(script).split()], np.uint32)
            assert np.array_equal(halves.view(np.uint64), row)
    theirs = np.array(page.ask("[...lmsd.normal(7, 3, 2, 'step', [3, 5])]"), np.float32).reshape(3, 3, 5)
    assert np.abs(theirs - Rng(7, torch.arange(3), turn=2).normal((3, 5), "step").numpy()).max() < 1e-6
    conditioner = made[0].generator.conditioner
    for caption in [*PROMPTS, *ODD]:
        own = list(encode_caption(conditioner.tokenizer, caption, conditioner.length))  # type: ignore[arg-type]
        assert page.ask(f"lmsd.ids({caption!r})") == own


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_a_page_that_one_can_use(
    made: tuple[Model, Path], page: Page, width: int, tmp_path: Path
) -> None:
    page.open(made[1] / "index.html", width=width)
    page.ask("lmsd.ready")
    look = "const look = () => document.querySelector('canvas') ? done() : setTimeout(look, 50); look();"
    page.ask(f"new Promise(done => {{ {look} }})")
    assert page.ask("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    assert page.ask("document.querySelectorAll('canvas').length") == 4
    assert page.ask("document.getElementById('state').textContent").startswith("4 images in ")
    first = np.asarray(Image.open(page.picture(tmp_path / "first.png")).convert("RGB")).astype(int)
    assert first.shape[1] == width
    page.ask("document.getElementById('seed').value = 'x7'")
    page.ask("document.querySelector('form').requestSubmit()")
    assert "the seed is a whole number" in page.ask("document.getElementById('state').textContent")
    requests = page.ask(
        "performance.getEntriesByType('resource').filter(e => !/^(data|blob):/.test(e.name)).length"
    )
    assert requests == 0, "it loads nothing from elsewhere"


def test_without_npm_and_with_a_wrong_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSD_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"runtime=.*ort\.wasm\.bundle\.min\.mjs is not there; give the folder"
    ):
        web.runtime_in(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="from the npm registry, and npm is not there: install npm"):
        web.runtime_in(None)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    with pytest.raises(UserError, match="cannot be had from the npm registry"):
        web.runtime_in(None)
