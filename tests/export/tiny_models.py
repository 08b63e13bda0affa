"""Models with random weights over the nets of the experiments, small, as `lmsd.load` would open them."""

from pathlib import Path
from typing import Any

import torch
import yaml

from lmsd.models.conditioner import TextConditioner
from lmsd.sampling.model import Model
from lmsd.spec import build

WORDS = ["a red circle", "a blue star on the left", "a large green ring", "the photo of a frog"]
ARTICLE = {"_target_": "lmsd.process.schedules.Article", "steps": 4}
FLOW = {"_target_": "lmsd.process.schedules.Flow"}
DDIM = {"_target_": "lmsd.sampling.Tau", "tau": 0.0}


def text(dim: int, **other: Any) -> dict[str, Any]:
    target = "lmsd.models.conditioner.TextConditioner"
    return {"_target_": target, "dim": dim, "vocab": 600, "layers": 1, "heads": 2, "length": 8, **other}


def net(kind: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"lmsd.models.{kind}", "_partial_": True, **options}


def spec(kind: dict[str, Any], schedule: dict[str, Any], **other: Any) -> dict[str, Any]:
    whole = {"channels": 3, "image_size": 16, "conditioner": text(16), "prediction": "v", **other}
    return {"_target_": "lmsd.models.parts.from_parts", "net": kind, "schedule": schedule, **whole}


SPECS: dict[str, dict[str, Any]] = {
    "digits": spec(
        net("backbones.MLPBackbone", width=32, depth=2, time_dim=16),
        ARTICLE,
        channels=1,
        image_size=8,
        z_dim=4,
    ),
    "shapes": spec(
        net("backbones.MLPBackbone", width=32, depth=1, time_dim=16), FLOW, prediction="x0", z_dim=4
    ),
    "cifar10": spec(
        net("conv_unet.ConvUNet", widths=[16, 32], blocks=[1, 1], patch=2, context=32),
        FLOW,
        prediction="velocity",
    ),
    "emoji": spec(
        net("backbones.PooledUNet", widths=[16, 32], patch=2, head_dim=16), FLOW, prediction="x0", z_dim=4
    ),
}
"""Nets by name: first those of the four experiments."""
EXPERIMENTS = tuple(SPECS)

CHAIN = {"_target_": "lmsd.process.schedules.Cosine", "steps": 50}
EDM = {"_target_": "lmsd.process.schedules.EDM"}
LABELS = {"_target_": "lmsd.models.conditioner.LabelConditioner", "classes": 3, "dim": 16}
NOBODY = {"_target_": "lmsd.models.conditioner.NullConditioner"}
SQUARES = {"_target_": "lmsd.models.codec.Unshuffle", "factor": 2, "scale": 2.0}
ANCESTRAL = {"_target_": "lmsd.sampling.Tau", "tau": 1.0}
HEUN = {"_target_": "lmsd.sampling.Heun"}
DPMPP = {"_target_": "lmsd.sampling.DPMSolverPP2M"}
MLP = net("backbones.MLPBackbone", width=32, depth=1, time_dim=16)
CONVOLUTIONS = net("conv_unet.ConvUNet", widths=[16, 32], blocks=[1, 1], patch=2, context=32)
SMALL = {"heads": 2, "head_dim": 16, "layers": 2, "patch": 2}
SPECS |= {
    "linear": spec(
        MLP, {"_target_": "lmsd.process.schedules.Linear", "steps": 100}, channels=1, image_size=8, z_dim=4
    ),
    "chain": spec(MLP, CHAIN, channels=1, image_size=8, prediction="x0", z_dim=4),
    "text_unet": spec(net("backbones.TextUNet", widths=[16, 32], heads=2, patch=2), FLOW, z_dim=4),
    "transformer": spec(net("backbones.TextTransformer", **SMALL), CHAIN, image_size=8, z_dim=4),
    "dit": spec(
        net("backbones.LabelTransformer", classes=3, **SMALL), CHAIN, image_size=8, conditioner=LABELS
    ),
    "labels": spec(MLP, ARTICLE, image_size=8, channels=1, conditioner=LABELS, z_dim=4),
    "edm": spec(MLP, EDM, image_size=8, channels=1, conditioner=NOBODY, precondition="edm", prediction="x0"),
    "free": spec(
        net("backbones.PooledUNet", widths=[16, 32], head_dim=16, patch=2),
        CHAIN,
        image_size=8,
        conditioner=NOBODY,
        prediction="eps",
    ),
    "squares": spec(CONVOLUTIONS, FLOW, prediction="velocity", codec=SQUARES),
    "pooled_squares": spec(
        net("backbones.PooledUNet", widths=[16, 32], head_dim=16),
        FLOW,
        prediction="velocity",
        conditioner=LABELS,
        codec=SQUARES,
        z_dim=4,
    ),
}


def model(name: str, *, seed: int = 0, guidance: float = 1.0, steps: int = 4, **config: Any) -> Model:
    """The model of that name: every weight random, so that none of the net's parts is silent."""
    tree = SPECS[name]
    torch.manual_seed(seed)
    generator = build(tree)
    with torch.no_grad():
        for value in generator.parameters():
            value.copy_(torch.randn(value.shape) / max(4.0, value[0].numel() ** 0.5))
    if isinstance(generator.conditioner, TextConditioner):
        generator.conditioner.fit(WORDS)
    own = {
        "name": name,
        "sampler": DDIM,
        "objective": {"caption_dropout": 0.1},
        "evaluate": {"steps": steps, "guidance": guidance, "interval": None},
        **config,
    }
    return Model(
        generator=generator.eval().requires_grad_(False),
        checkpoint=Path("none.ckpt"),
        images=64,
        ema="ema",
        text=yaml.safe_dump(own),
        config=own,
        spec=tree,
    )
