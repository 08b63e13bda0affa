"""`format=diffusers` of a run from scratch: a net of diffusers' on a schedule of ours, for plain diffusers.

unet/ or transformer/         the net, as diffusers saves it
scheduler/                    DDIM on the chain's own betas, or Euler for a flow: on our knots, at our noise
text_encoder/ tokenizer/      CLIP's classes, under the names and in the files that older readers know
extra.safetensors             how z and the pooled condition enter a net of diffusers
pipeline.py, model_index.json what calls them in our order
"""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsd.errors import UserError
from lmsd.export.base import Row
from lmsd.export.gate import Limits, asked, drawn, psnr
from lmsd.export.plan import plan
from lmsd.models.codec import Codec, Identity, Unshuffle
from lmsd.models.conditioner import LabelConditioner, TextConditioner
from lmsd.process.knots import TRAILING, Shifted
from lmsd.process.schedules import Discrete, Flow
from lmsd.rng import Rng
from lmsd.sampling.model import Model
from lmsd.sampling.samplers import Tau

TEMPLATE = Path(__file__).with_name("pipeline.txt")
NETS = {
    "TextUNet": "unet",
    "PooledUNet": "unet",
    "TextTransformer": "transformer",
    "LabelTransformer": "transformer",
}
"""Our adapters around nets of diffusers, and the components that those are."""
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "velocity": "velocity"}
EXTRA = "extra.safetensors"


def write(model: Model, folder: Path) -> str:
    """All components; the net's name among them.

    Raises UserError for a model that is not made of what diffusers has.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
    from safetensors.torch import save_file

    told = facts(model)
    net: Any = model.generator.net
    component = NETS[told["kind"]]
    net.model.save_pretrained(folder / component)
    if told["flow"]:
        scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    else:
        scheduler = DDIMScheduler(
            num_train_timesteps=told["chain"],
            trained_betas=betas(model).tolist(),
            prediction_type=told["prediction"],
            timestep_spacing="trailing",
            clip_sample=False,
        )
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": ["pipeline", "OwnPipeline"],
        **{name: [None, None] for name in ("unet", "transformer", "text_encoder", "tokenizer")},
        "scheduler": ["diffusers", type(scheduler).__name__],
        component: ["diffusers", type(net.model).__name__],
        "told": told,
    }
    match model.generator.conditioner:
        case TextConditioner() as text:
            index |= write_text(text, folder)
    save_file(extras(model), folder / EXTRA)
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(TEMPLATE, folder / "pipeline.py")
    return component


def extras(model: Model) -> dict[str, Tensor]:
    """Weights of ours beside diffusers': of the net's adapter, and the table of labels."""
    net: Any = model.generator.net
    found = {key: value for key, value in net.state_dict().items() if not key.startswith("model.")}
    match model.generator.conditioner:
        case LabelConditioner() as labels:
            found["table.weight"] = labels.table.weight
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def fits(model: Model) -> None:
    """Raise UserError, by name, for what diffusers has no counterpart of."""
    generator, generate = model.generator, model.generation()
    net, schedule, sampler, codec = (
        generator.net,
        generator.process.schedule,
        generate.sampler,
        generator.codec,
    )
    kind, flow, walks = type(net).__name__, False, False
    match schedule:
        case Flow():
            flow, walks = True, schedule.spacing == Shifted()
        case Discrete():
            # DDIMScheduler steps T // n whatever its own knots are
            walks = schedule.spacing == TRAILING and schedule.steps % generate.settings.steps == 0
    tau = sampler.tau if type(sampler) is Tau else None
    for there, what in (
        ("kept" not in model.spec.get("net", {}), "a net that was cut (lmsd compress)"),
        (kind in NETS, f"net {kind} (those that are: {', '.join(NETS)})"),
        (generator.precondition == "none", "precondition=edm"),
        (type(codec) in (Identity, Unshuffle), f"codec {type(codec).__name__}"),
        (walks, f"the knots of {type(schedule).__name__} at steps={generate.settings.steps}"),
        (
            tau == 0 or (tau == 1 and not flow),
            f"sampler {type(sampler).__name__} here (ddim, or ancestral on a chain)",
        ),
        (generate.settings.interval is None, "guidance in an interval"),
    ):
        if not there:
            raise UserError(f"format=diffusers: diffusers has no counterpart of {what}; take format=onnx")


def facts(model: Model) -> dict[str, Any]:
    """What the pipeline is told."""
    fits(model)
    generator, generate = model.generator, model.generation()
    net: Any = generator.net
    sampler: Any = generate.sampler
    table = plan(generate)
    return {
        "kind": type(net).__name__,
        "flow": type(generator.process.schedule) is Flow,
        "chain": generator.process.schedule.steps or 1000,
        "eta": sampler.tau,
        "prediction": PREDICTIONS[generator.prediction],
        "reads": generator.conditioner.reads,
        "classes": generator.conditioner.classes,
        "length": int(vars(generator.conditioner).get("length", 0)),
        "pooled": net.pooled_dim,
        "patch": int(vars(net)["patch"]),
        "z_dim": generator.z_dim,
        "shape": list(generator.shape),
        "steps": generate.settings.steps,
        "guidance": generate.settings.guidance,
        "bounds": table["bounds"],
        **squares(generator.codec),
    }


def squares(codec: Codec) -> dict[str, Any]:
    """How what is diffused becomes pixels."""
    match codec:
        case Unshuffle():
            return {"unshuffle": codec.factor, "scale": codec.scale, "shift": codec.shift}
    return {"unshuffle": 1, "scale": 1.0, "shift": 0.0}


def betas(model: Model) -> Tensor:
    """The chain's β, float64 [T]."""
    schedule: Any = model.generator.process.schedule
    bars: Tensor = schedule.alpha_bar
    return 1 - bars[1:] / bars[:-1]


def write_text(text: TextConditioner, folder: Path) -> dict[str, Any]:
    """The encoder and the tokenizer, for old readers and new; their rows of model_index.json."""
    from safetensors.torch import save_file

    encoder: Any = text.encoder
    encoder.config.architectures = ["CLIPTextModel"]
    encoder.config.save_pretrained(folder / "text_encoder")
    state = {f"text_model.{key.removeprefix('text_model.')}": v for key, v in encoder.state_dict().items()}
    kept = {key: value.contiguous() for key, value in state.items() if "position_ids" not in key}
    save_file(kept, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    place = folder / "tokenizer"
    place.mkdir()
    model = json.loads(text.tokenizer)["model"]
    (place / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "".join(f"{one} {two}\n" for one, two in model["merges"])
    (place / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    end = "<|endoftext|>"
    names = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": text.length, **names}
    (place / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}


def opened(folder: Path) -> Any:
    """The folder's pipeline, by plain diffusers."""
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(
        str(folder),
        custom_pipeline=str(folder / "pipeline.py"),
        trust_remote_code=True,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def row(folder: Path, model: Model, limits: Limits) -> Row:
    """The worst image of plain diffusers, given the noise that sampling draws."""
    import torch

    batch = asked(model, limits.n)
    rng, generator, steps = Rng(0, batch.position), model.generator, range(model.generation().settings.steps)
    z = [rng.at(k).normal((generator.z_dim,), "z") for k in steps] if generator.z_dim else []
    noise = [rng.at(k).normal(generator.shape, "step") for k in steps]
    label = [] if batch.label is None else batch.label.tolist()
    images = opened(folder)(
        batch.text or label or None,
        num=len(batch),
        latents=rng.normal(generator.shape, "x_T"),
        z=torch.stack(z, 1) if z else None,
        noise=torch.stack(noise, 1),
        output_type="np",
    ).images
    found = psnr(drawn(model.generation(), batch), torch.from_numpy(images).permute(0, 3, 1, 2))
    return Row("PSNR of the worst image, plain diffusers, dB", found, limits.psnr, at_least=True)
