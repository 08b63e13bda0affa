"""Adapters in files: read by us and by plain diffusers with the same effect, merged, mixed and refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.models.pipeline import PipelineGenerator, from_pipeline
from lmsd.rng import Rng
from lmsd.sampling import Generation, Settings, Tau, sample
from lmsd.spec import build
from lmsd.tuning import LoRA, TextualInversion, tuned
from lmsd.tuning.files import load
from lmsd.tuning.low import Low, changes, layers
from lmsd.tuning.merge import Adapter, attach, fill, merged, mixed, soup, taken_off
from lmsd.tuning.written import diffusers_keys, embeddings, kohya_keys
from lmsd.types import Batch

sys.path.append(str(Path(__file__).parents[1] / "models"))
from tiny_pipelines import make

READS = ["sd15", "sdxl", "sd3", "flux", "sana"]
LAYOUTS = [pytest.param(name, marks=[] if name == "sd15" else [pytest.mark.slow]) for name in READS]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
KINDS = {"lora": LoRA(4, alpha=2.0), "rslora": LoRA(4, alpha=1.0, rslora=True), "dora": LoRA(4, dora=True)}
WORDS = ["a red Circle", "two <thing> over a line"]
RNG = Rng(0, torch.arange(2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipelines")
    made: dict[str, Path] = {}

    def folder(layout: str) -> Path:
        if layout not in made:
            made[layout] = make(layout, place / layout)
        return made[layout]

    return folder


def read(folder: Path) -> PipelineGenerator:
    torch.manual_seed(1)
    return from_pipeline(folder, image_size=32).requires_grad_(False).eval()


def stirred(generator: Any) -> Any:
    draw = torch.Generator().manual_seed(3)
    for parameter in generator.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    return generator


def asked() -> Batch:
    return Batch(x=torch.zeros(2, 3, 32, 32), position=torch.arange(2), text=WORDS)


@torch.no_grad()
def latents(generator: PipelineGenerator) -> Tensor:
    cond = generator.condition(asked())
    return sample(
        generator, cond, None, sampler=build(generator.read.sampler), settings=Settings(2),
        rng=RNG, shape=generator.shape,
    )  # fmt: skip


def theirs(folder: Path, layout: str, prepare: Any) -> Tensor:
    """Latents of plain diffusers from the same start."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    prepare(pipeline)
    shape = read(folder).shape
    start, more = RNG.normal(shape, "x_T"), dict[str, Any]()
    if layout == "flux":
        start = pipeline._pack_latents(start, *start.shape)
        more = {"guidance_scale": 3.5}
    elif layout == "sana":
        more = {"use_resolution_binning": False, "clean_caption": False, "guidance_scale": 1.0}
    else:
        more = {"guidance_scale": 1.0}
    made = pipeline(
        WORDS, height=32, width=32, num_inference_steps=2, latents=start, output_type="latent", **more
    ).images
    return made if made.ndim == 4 else pipeline._unpack_latents(made, 32, 32, 32 // shape[1])


def near(one: Tensor, other: Tensor, before: Tensor) -> None:
    """To 1e-5 of the largest number, which float32 leaves; the adapter does a hundred times as much."""
    size = max(1.0, float(other.abs().max()))
    assert float((one - other).abs().max()) < 1e-5 * size
    assert float((other - before).abs().max()) > 1e-3 * size


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_plain_diffusers_and_we_read_what_we_write(folders, tmp_path, layout, kind):
    tuning, folder = KINDS[kind], folders(layout)
    if layout in ("sd15", "sdxl", "sd3"):
        tuning = LoRA(4, alpha=tuning.alpha, rslora=tuning.rslora, dora=tuning.dora, text=TEXT)
    before = latents(read(folder))
    own = stirred(tuned(read(folder), tuning))
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(diffusers_keys(changes(own)), file)
    found = latents(own)
    again = tuned(read(folder), LoRA(4, modules=tuning.modules, text=tuning.text, dora=tuning.dora))
    assert load(file, again) == ([], [])
    near(latents(again), found, before)
    near(
        theirs(folder, layout, lambda pipe: pipe.load_lora_weights(tmp_path, weight_name=file.name)),
        found,
        before,
    )
    plain = read(folder)
    attach(plain, [Adapter(str(file), 1.0)])
    near(latents(plain), found, before)
    near(latents(merged(own)), found, before)
    assert Generation(plain, Tau(1), Settings(2)).record()["adapters"] == f"{file.name}*1"
    assert "adapters" not in Generation(own, Tau(1), Settings(2)).record()


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_readers_of_kohyas_keys_see_the_same(folders, tmp_path, layout, kind):
    tuning, folder = KINDS[kind], folders(layout)
    tuning = LoRA(4, alpha=tuning.alpha, rslora=tuning.rslora, text=TEXT)
    before, own = latents(read(folder)), stirred(tuned(read(folder), tuning))
    file = tmp_path / "kohya.safetensors"
    save_file(kohya_keys(changes(own)), file)
    found = latents(own)
    near(
        theirs(folder, layout, lambda pipe: pipe.load_lora_weights(tmp_path, weight_name=file.name)),
        found,
        before,
    )
    again = tuned(read(folder), LoRA(4, text=TEXT))
    assert load(file, again) == ([], [])
    near(latents(again), found, before)


def test_a_dora_comes_back_from_kohyas_keys(folders, tmp_path):
    own = stirred(tuned(read(folders("sd15")), LoRA(4, dora=True)))
    save_file(kohya_keys(changes(own)), tmp_path / "dora.safetensors")
    again = tuned(read(folders("sd15")), LoRA(4, dora=True))
    load(tmp_path / "dora.safetensors", again)
    near(latents(again), latents(own), latents(read(folders("sd15"))))


def test_kohyas_keys_are_those_of_stable_diffusion(folders):
    """All 192 layers in the attention blocks of Stable Diffusion 1.5, and what CLIP's are called."""
    with torch.device("meta"):
        net = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    kinds = (nn.Linear, nn.Conv2d)
    inside = [n for n, m in net.named_modules() if isinstance(m, kinds) and ".attentions." in n]
    low = Low(torch.zeros(4, 8), torch.zeros(8, 4))
    names = {key.partition(".")[0] for key in kohya_keys({("unet", name): low for name in inside})}
    assert len(names) == 192
    for known in (
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_down_blocks_1_attentions_1_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_k",
    ):
        assert known in names
    text = kohya_keys({("text_encoder", "encoder.layers.11.self_attn.q_proj"): low})
    assert set(text) == {
        f"lora_te_text_model_encoder_layers_11_self_attn_q_proj.{end}"
        for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    both = {
        ("text_encoder", "encoder.layers.0.mlp.fc1"): low,
        ("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1"): low,
    }
    assert {key.partition(".")[0] for key in kohya_keys(both)} == {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
    }
    with pytest.raises(UserError, match="format=kohya is for U-Nets"):
        kohya_keys({("transformer", "x"): low})


def test_files_of_older_diffusers_and_of_kohya_without_a_scale_are_read(folders, tmp_path):
    folder = folders("sd15")
    own = stirred(tuned(read(folder), LoRA(4)))
    found, keys = latents(own), diffusers_keys(changes(own))
    ends = {".lora_A.weight": ".lora.down.weight", ".lora_B.weight": ".lora.up.weight"}
    for number, (old, new) in enumerate((("", ""), ("unet.", "unet."))):
        renamed = dict(keys.items())
        for end, other in ends.items():
            renamed = {key.replace(end, other): value for key, value in renamed.items()}
        file = tmp_path / f"{number}.safetensors"
        save_file({key.replace(old, new): value for key, value in renamed.items()}, file)
        again = tuned(read(folder), LoRA(4))
        load(file, again)
        torch.testing.assert_close(latents(again), found, rtol=0, atol=1e-5)
    metadata = {"lora_adapter_metadata": '{"unet.lora_alpha": 8, "unet.r": 4}'}
    save_file(keys, tmp_path / "told.safetensors", metadata=metadata)
    again = tuned(read(folder), LoRA(4))
    load(tmp_path / "told.safetensors", again)
    twice = changes(again)
    for place, low in changes(own).items():
        torch.testing.assert_close(twice[place].up, 2 * low.up)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: {"diffusion_model.x.lora_A.weight": torch.zeros(2, 2)},
            "holds no LoRA for this generator",
        ),
        (
            lambda t: {k: v[:2] if "lora_A" in k else v[:, :2] for k, v in t.items()},
            "has rank 2 and tuning.rank=4",
        ),
        (
            lambda t: {k.replace("attn1", "attn9").replace("attn2", "attn9"): v for k, v in t.items()},
            "holds no LoRA",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(folders, tmp_path, change, said):
    own = tuned(read(folders("sd15")), LoRA(4))
    keys = {key: value.contiguous() for key, value in change(diffusers_keys(changes(own))).items()}
    save_file(keys, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        load(tmp_path / "x.safetensors", own)
    (tmp_path / "no.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UserError, match="is no file of safetensors"):
        load(tmp_path / "no.safetensors", own)
    save_file(diffusers_keys(changes(own)), tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="has no adapters: take tuning=lora"):
        load(tmp_path / "y.safetensors", read(folders("sd15")))
    with pytest.raises(UserError, match="is a LoRA: take tuning=lora"):
        load(tmp_path / "y.safetensors", tuned(read(folders("sd15")), LoRA(4, dora=True)))


def test_a_word_comes_back_and_diffusers_reads_it(folders, tmp_path):
    folder, tuning = folders("sd15"), TextualInversion("thing", vectors=2)
    own = stirred(tuned(read(folder), tuning))
    file = tmp_path / "thing.safetensors"
    save_file(embeddings(own, "<thing>"), file)
    assert {key: tuple(value.shape) for key, value in load_file(file).items()} == {"<thing>": (2, 32)}
    again = tuned(read(folder), tuning)
    load(file, again)
    assert torch.equal(latents(again), latents(own))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_textual_inversion(str(file))
    ids = pipeline.tokenizer(
        pipeline.maybe_convert_prompt(WORDS[1], pipeline.tokenizer),
        padding="max_length", max_length=77, return_tensors="pt",
    ).input_ids  # fmt: skip
    states = pipeline.text_encoder(ids)[0]
    torch.testing.assert_close(own.condition(asked()).tokens[1:], states, rtol=0, atol=1e-5)


def test_words_of_two_encoders_are_in_one_file(folders, tmp_path):
    folder, tuning = folders("sdxl"), TextualInversion("thing", vectors=2)
    own = stirred(tuned(read(folder), tuning))
    save_file(embeddings(own, "<thing>"), tmp_path / "x.safetensors")
    assert set(load_file(tmp_path / "x.safetensors")) == {"clip_l", "clip_g"}
    again = tuned(read(folder), tuning)
    load(tmp_path / "x.safetensors", again)
    assert torch.equal(latents(again), latents(own))
    with pytest.raises(UserError, match=r"and the word has \[3, 32\] in clip_l here"):
        load(tmp_path / "x.safetensors", tuned(read(folder), TextualInversion("thing", vectors=3)))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_adapters_in_float64(folders, kind):
    own = stirred(tuned(read(folders("sd15")), KINDS[kind])).double()
    cond = own.condition(asked()).map(lambda v: v.double())
    x, t = RNG.normal(own.shape, "x").double(), torch.full((2,), 500.0)
    net = own.net
    with torch.no_grad():
        before = net(x, t, cond)
        after = merged(own).net(x, t, cond)
    assert float((before - after).abs().max()) < 1e-6
    assert not list(layers(own))


def test_adapters_add_up_at_their_strengths(folders, tmp_path):
    """As diffusers' set_adapters has it."""
    folder = folders("sd15")
    for number in (1, 2):
        one = tuned(read(folder), LoRA(2 * number))
        draw = torch.Generator().manual_seed(number)
        for parameter in one.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
        save_file(diffusers_keys(changes(one)), tmp_path / f"{number}.safetensors")
    own = read(folder)
    before = latents(own)
    attach(
        own, [Adapter.parse(f"{tmp_path}/1.safetensors*0.7"), Adapter.parse(f"{tmp_path}/2.safetensors*-0.4")]
    )
    assert own.about["adapters"] == "1.safetensors*0.7, 2.safetensors*-0.4"

    def prepare(pipe: Any) -> None:
        for number in (1, 2):
            pipe.load_lora_weights(tmp_path, weight_name=f"{number}.safetensors", adapter_name=f"a{number}")
        pipe.set_adapters(["a1", "a2"], [0.7, -0.4])

    near(theirs(folder, "sd15", prepare), latents(own), before)
    with pytest.raises(UserError, match="x is no strength"):
        Adapter.parse("a.safetensors*x")


@pytest.mark.parametrize("magnitude", [None, torch.tensor([2.0, 0.5, 3.0])], ids=["lora", "dora"])
def test_at_strength_0_an_adapter_is_off(magnitude):
    weight, draw = torch.randn(3, 4), torch.Generator().manual_seed(0)
    low = Low(torch.randn(2, 4, generator=draw), torch.randn(3, 2, generator=draw), 0.7, magnitude)
    assert not low.delta(weight, 0).any()
    assert low.delta(weight, 0.5).abs().min() > 0


def test_a_soup_of_equal_nets_is_the_net(folders):
    state = read(folders("sd15")).state_dict()
    for name, value in soup([state, state, state]).items():
        assert not isinstance(value, Tensor) or torch.equal(value, state[name])
    half = {name: v + 1 if isinstance(v, Tensor) else v for name, v in state.items()}
    mean = soup([state, half])
    name = next(n for n, v in state.items() if isinstance(v, Tensor))
    torch.testing.assert_close(mean[name], state[name] + 0.5)
    with pytest.raises(UserError, match="only some have extra"):
        soup([state, {**state, "extra": 1}])


def test_a_soup_of_adapters_is_exact_where_its_rank_reaches(folders):
    folder, parts = folders("sd15"), []
    for number in (1, 2):
        one = tuned(read(folder), LoRA(2, alpha=1.0))
        draw = torch.Generator().manual_seed(number)
        for parameter in one.parameters():
            parameter.data += torch.randn(parameter.shape, generator=draw)
        parts.append((changes(one.double()), 0.5))
    exact = {
        place: 0.5 * low.product(weight_at(one, place))
        + 0.5 * parts[1][0][place].product(weight_at(one, place))
        for place, low in parts[0][0].items()
    }
    found = mixed(parts, 4)
    for place, low in found.items():
        assert float((low.product(exact[place]) - exact[place]).abs().max()) < 1e-12
    least = mixed(parts, 2)
    errors = [float((low.product(exact[place]) - exact[place]).norm()) for place, low in least.items()]
    best = [float(torch.linalg.svdvals(exact[place].flatten(1))[2:].norm()) for place in least]
    assert errors == pytest.approx(best, rel=1e-6)
    again = tuned(read(folder), LoRA(4)).double()
    fill(again, found)
    for place, low in changes(again).items():
        torch.testing.assert_close(low.product(exact[place]), exact[place])
    with pytest.raises(UserError, match="DoRAs have magnitudes"):
        mixed([(changes(tuned(read(folder), LoRA(2, dora=True))), 1.0)], 2)


def weight_at(generator: Any, place: tuple[str, str]) -> Tensor:
    return generator.net.model.get_submodule(place[1]).weight


def test_taken_off_adapters_leave_the_base(folders):
    own = stirred(tuned(read(folders("sd15")), LoRA(2)))
    before = latents(read(folders("sd15")))
    assert taken_off(own)
    assert torch.equal(latents(own), before)
