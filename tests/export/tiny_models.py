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
    return {"_target_": target, "dim": dim, "vocab": 540, "layers": 1, "heads": 2, "length": 8, **other}


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
"""The nets of the four experiments, and what else an export must carry."""


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
