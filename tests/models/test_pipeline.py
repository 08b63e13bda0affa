"""Folders of every layout, read as generators: latents and images equal diffusers' own pipelines.

Weights are random, so the states are large: where latents reach 60, float32 leaves 1e-4 of them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from tiny_pipelines import MAKERS, make
from torch import Tensor

from lmsd.models.layouts import LAYOUTS
from lmsd.models.layouts.base import Encoder, States
from lmsd.models.pipeline import PipelineGenerator, from_pipeline
from lmsd.process import Process
from lmsd.rng import Rng
from lmsd.sampling import Settings, sample
from lmsd.spec import build
from lmsd.types import Batch

TOLERANCE = 2e-4
TEETH = 100
PROMPTS = ["a red Circle", "two blue stars over a very long green line"]
SIDE = 32
RNG = Rng(0, torch.arange(2))
transformers.logging.set_verbosity_error()


@dataclass(frozen=True)
class Pair:
    """A folder, read by both."""

    name: str
    folder: Path
    ours: PipelineGenerator
    theirs: Any


@pytest.fixture(scope="module", params=MAKERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = make(request.param, tmp_path_factory.mktemp("pipelines") / request.param)
    theirs = DiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    return Pair(request.param, folder, from_pipeline(folder, image_size=SIDE), theirs)


def batch() -> Batch:
    return Batch(x=torch.zeros(2, 3, SIDE, SIDE), position=torch.arange(2), text=PROMPTS)


def latents(generator: PipelineGenerator, steps: int, guidance: float) -> Tensor:
    told(generator, guidance)
    cond = generator.condition(batch())
    null = generator.condition(batch(), torch.ones(2, dtype=torch.bool))
    return sample(
        generator,
        cond,
        null,
        sampler=build(generator.read.sampler),
        settings=Settings(steps, guidance=guidance),
        rng=RNG,
        shape=generator.shape,
    )


def told(generator: PipelineGenerator, guidance: float) -> None:
    """Nets with a guidance input are told the same."""
    layout = generator.net.layout  # type: ignore[union-attr]
    generator.net.layout = replace(layout, facts=replace(layout.facts, guidance=guidance))  # type: ignore[union-attr]


def called(pair: Pair, steps: int, guidance: float, output: str = "latent") -> Tensor:
    """What their pipeline makes of the same start."""
    start, more = RNG.normal(pair.ours.shape, "x_T"), dict[str, Any]()
    if pair.name in ("flux", "schnell"):
        start = pair.theirs._pack_latents(start, *start.shape)
        more = {"true_cfg_scale": guidance, "negative_prompt": ""}
    if pair.name in ("pixart", "alpha", "sana"):
        more = {"use_resolution_binning": False, "clean_caption": False}
    made: Tensor = pair.theirs(
        PROMPTS,
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        latents=start,
        output_type=output,
        guidance_scale=guidance,
        **more,
    ).images
    return (
        made if made.ndim == 4 else pair.theirs._unpack_latents(made, SIDE, SIDE, SIDE // pair.ours.shape[1])
    )


@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_latents_are_theirs(pair, steps, guidance):
    own, other = latents(pair.ours, steps, guidance), called(pair, steps, guidance)
    assert pair.ours.read.notes == ()
    torch.testing.assert_close(own, other, rtol=0, atol=TOLERANCE)


def test_images_are_theirs(pair):
    found = pair.ours.decode(latents(pair.ours, 2, 5.0))
    torch.testing.assert_close(found / 2 + 0.5, called(pair, 2, 5.0, "pt"), rtol=0, atol=TOLERANCE)


def test_what_is_encoded_comes_back_as_theirs(pair):
    x = RNG.uniform((3, SIDE, SIDE), "image") * 2 - 1
    z, own = pair.ours.encode(replace(batch(), x=x)).x, pair.theirs.vae
    assert z.shape[1:] == pair.ours.shape
    mean = own.encode(x).latent_dist.mode() if hasattr(own.encode(x), "latent_dist") else own.encode(x).latent
    shift = own.config.get("shift_factor") or 0.0
    torch.testing.assert_close(z, (mean - shift) * own.config.scaling_factor, rtol=0, atol=1e-5)


def wrong_state(states: States) -> States:
    """One hidden state further: the last where the one before is asked for, and the other way round."""
    return replace(
        states, hidden=[*states.hidden[:-2], states.hidden[-1], states.hidden[-1]], last=states.hidden[-2]
    )


def planted(generator: PipelineGenerator, **methods: Any) -> Callable[[], None]:
    """Gives the layout other methods; returns what takes them away again."""
    kept = generator.net.layout  # type: ignore[union-attr]
    other = type("Wrong", (type(kept),), methods)(kept.facts)
    generator.net.layout = generator.conditioner.layout = other  # type: ignore[union-attr]

    def undo() -> None:
        generator.net.layout = generator.conditioner.layout = kept  # type: ignore[union-attr]

    return undo


def other_states(self, encoders, captions, *, null=False):
    def shifted(self, *given, **options):
        return wrong_state(forward(self, *given, **options))

    forward, Encoder.forward = Encoder.forward, shifted
    try:
        return super(type(self), self).codes(encoders, captions, null=null)
    finally:
        Encoder.forward = forward


def no_sizes(self, x, time, cond):
    found = super(type(self), self).inputs(x, time, cond)
    found["added_cond_kwargs"]["time_ids"] = torch.zeros(len(x), 6)
    return found


def first_pooled(self, encoders, captions, *, null=False):
    found = super(type(self), self).codes(encoders, captions, null=null)
    return found if null else replace(found, pooled=encoders[0](captions).pooled)


def no_zeros(self, encoders, captions, *, null=False):
    return super(type(self), self).codes(encoders, captions)


def other_pooled(self, encoders, captions, *, null=False):
    """Of the other encoder, or in the other order."""
    found = super(type(self), self).codes(encoders, captions, null=null)
    return replace(
        found, pooled=found.pooled.roll(32, -1) if found.pooled.shape[-1] == 64 else found.tokens[:, 0]
    )


def no_mask(self, encoders, captions, *, null=False):
    found = super(type(self), self).codes(encoders, captions, null=null)
    return replace(found, mask=torch.ones_like(found.mask))


def last_alone(self, encoders, captions, *, null=False):
    """The last states of all, without the first."""
    found = super(type(self), self).codes(encoders, captions, null=null)
    return replace(found, tokens=found.tokens.roll(-1, 1))


def other_half(self, raw):
    return raw[:, self.channels :]


def no_places(self, x, time, cond):
    found = super(type(self), self).inputs(x, time, cond)
    return found | {"img_ids": torch.zeros_like(found["img_ids"])}


def other_guidance(self, x, time, cond):
    found = super(type(self), self).inputs(x, time, cond)
    return found | {"guidance": torch.zeros_like(found["guidance"])}


def other_time(self, x, time, cond):
    return super(type(self), self).inputs(x, 2 * time, cond)


def other_size(self, x, time, cond):
    found = super(type(self), self).inputs(x, time, cond)
    found["added_cond_kwargs"]["resolution"] = found["added_cond_kwargs"]["resolution"] * 32
    return found


def of(**methods: Any) -> dict[str, Any]:
    return methods


SDXL = {
    "states": of(codes=other_states),
    "sizes": of(inputs=no_sizes),
    "pooled": of(codes=first_pooled),
    "zeros": of(codes=no_zeros),
}
FLUX = {
    "pooled": of(codes=other_pooled),
    "places": of(inputs=no_places),
    "time": of(inputs=other_time),
    "states": of(codes=other_states),
}
MISREAD: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {"states": of(codes=other_states)},
    "sd2": {"states": of(codes=other_states)},
    "sdxl": SDXL,
    "turbo": SDXL,
    "sd3": {"states": of(codes=other_states), "pooled": of(codes=other_pooled)},
    "sd35": {"states": of(codes=other_states), "pooled": of(codes=other_pooled)},
    "flux": FLUX | {"guidance": of(inputs=other_guidance)},
    "schnell": FLUX,
    "pixart": {"mask": of(codes=no_mask), "half": of(output=other_half), "states": of(codes=other_states)},
    "alpha": {"mask": of(codes=no_mask), "half": of(output=other_half), "sizes": of(inputs=other_size)},
    "sana": {
        "mask": of(codes=no_mask),
        "states": of(codes=last_alone),
        "time": of(inputs=other_time),
    },
}
KNOTS: dict[str, dict[str, Any]] = {
    "sd15": {"end": "clean"},
    "sd2": {"end": "clean"},
    "sdxl": {"offset": 0},
    "turbo": {"rule": "leading"},
    "sd3": {"low": None},
    "sd35": {"low": None},
    "flux": {"shift": 3.0},
    "schnell": {"shift": 3.0},
    "pixart": {"spare": False},
    "alpha": {"rule": "trailing"},
    "sana": {"shift": 1.0},
}


def test_a_misreading_moves_latents_by_a_hundred_tolerances(pair):
    own = latents(pair.ours, 2, 5.0)
    for name, methods in MISREAD[pair.name].items():
        undo = planted(pair.ours, **methods)
        moved = float((latents(pair.ours, 2, 5.0) - own).abs().max())
        undo()
        assert moved >= TEETH * TOLERANCE, f"{name}: {moved}"


def test_other_knots_move_latents_by_a_hundred_tolerances(pair):
    own, kept = latents(pair.ours, 2, 5.0), pair.ours.process
    schedule: Any = type(kept.schedule).__new__(type(kept.schedule))
    schedule.__dict__ |= kept.schedule.__dict__ | {"_knots": {}}
    schedule.spacing = replace(schedule.spacing, **KNOTS[pair.name])
    pair.ours.process = Process(schedule)
    moved = float((latents(pair.ours, 2, 5.0) - own).abs().max())
    pair.ours.process = kept
    assert moved >= TEETH * TOLERANCE


@pytest.mark.parametrize("pair", ["sd3", "sd35", "flux", "schnell"], indirect=True, scope="module")
def test_an_autoencoder_without_its_shift_moves_images(pair):
    z, codec = latents(pair.ours, 2, 1.0), pair.ours.codec
    own, kept = pair.ours.decode(z), codec.shift
    codec.shift = torch.zeros_like(kept)  # type: ignore[arg-type]
    moved = float((pair.ours.decode(z) - own).abs().max())
    codec.shift = kept
    assert moved >= TEETH * TOLERANCE


def test_every_layout_that_is_read_has_a_folder(tmp_path):
    folders = [make(name, tmp_path / name) for name in MAKERS]
    names = [json.loads((folder / "model_index.json").read_text())["_class_name"] for folder in folders]
    assert set(names) == set(LAYOUTS)


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_levels_of_edm_are_walked_in_their_place(tmp_path, kind):
    """As Playground 2.5 has them; diffusers begins with noise of √(σ² + 1), which is taken out here."""
    import diffusers

    folder = make("sdxl", tmp_path / "sdxl")
    scheduler = getattr(diffusers, kind)(sigma_max=80.0)
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    theirs = DiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    pair = Pair("sdxl", folder, from_pipeline(folder, image_size=SIDE), theirs)
    own = latents(pair.ours, 8, 1.0)
    assert len(pair.ours.read.notes) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(theirs.scheduler), "init_noise_sigma", property(lambda self: 80.0))
        torch.testing.assert_close(own, called(pair, 8, 1.0), rtol=1e-4, atol=1e-3)
