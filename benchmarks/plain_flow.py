"""The plain script that photographs are compared with: flow matching with a U-Net of diffusers.

    python benchmarks/plain_flow.py SHARDS OUT.pt [--seconds 1000] [--seed 0] [--arm velocity|x0]
                                    [--rate 1e-3] [--average 0.995] [--width 64] [--half]

velocity    net → ε − x₀, plain mean square
x0          net → x₀, weighted by min(SNR, 5) with SNR = ((1 − t)/t)²; the velocity is then (x − x̂₀)/t

SHARDS: a folder with train-*.tar of KEY.jpg and KEY.cls. Trains for so many CPU seconds on one thread, at a
rate that falls by a cosine to a twentieth, and writes the moving average of the weights.
"""

import argparse
import copy
import glob
import io
import math
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
DROPPED = 0.1  # share of labels
BATCH = 64


class PlainNet(nn.Module):
    """A U-Net of diffusers on patches of 2x2 pixels; the label is its one cross-attention token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unet: Any = UNet2DConditionModel(
            sample_size=16,
            in_channels=12,
            out_channels=12,
            block_out_channels=(width, 2 * width),
            layers_per_block=1,
            norm_num_groups=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=32,
        )
        self.labels = nn.Embedding(CLASSES + 1, 128)  # the last one: none

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The net's output for x [B,3,H,W], t [B] in (0, 1] and label [B]."""
        token = self.labels(label)[:, None]
        return F.pixel_shuffle(self.unet(F.pixel_unshuffle(x, 2), 1000 * t, token).sample, 2)


def load(folder: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N,3,H,W] and labels [N] of a folder's training shards."""
    images, labels = {}, {}
    for path in sorted(glob.glob(f"{folder}/train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                key, suffix = member.name.rsplit(".", 1)
                if suffix == "jpg" and content:
                    images[path, key] = np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB"))
                elif suffix == "cls" and content:
                    labels[path, key] = int(content.read())
    pixels = torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor([labels[key] for key in images])


def loss_of(net: PlainNet, x_0: Tensor, label: Tensor, arm: str, half: bool) -> Tensor:
    """The arm's loss at times of the logit-normal law."""
    t, eps = torch.sigmoid(torch.randn(len(x_0))), torch.randn_like(x_0)
    s = t[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = net((1 - s) * x_0 + s * eps, t, label).float()
    if arm == "velocity":
        return (out - (eps - x_0)).square().mean()
    weight = ((1 - t) / t).square().clamp(max=5.0)
    return (weight * (out - x_0).square().mean(dim=(1, 2, 3))).mean()


def train(images: Tensor, labels: Tensor, options: argparse.Namespace) -> tuple[PlainNet, int]:
    """The moving average after `seconds` of CPU time, and how many images it has seen."""
    torch.manual_seed(options.seed)
    net = PlainNet(options.width)
    average = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        net.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=0, fused=True
    )
    start, step = time.process_time(), 0
    while (spent := time.process_time() - start) < options.seconds:
        rows = torch.randint(len(images), (BATCH,))
        x_0 = images[rows].float() / 127.5 - 1
        x_0 = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x_0.flip(3), x_0)
        label = torch.where(torch.rand(BATCH) < DROPPED, CLASSES, labels[rows])
        optimizer.zero_grad()
        loss_of(net, x_0, label, options.arm, options.half).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        left = 0.5 * (1 + math.cos(math.pi * spent / options.seconds))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, (step + 1) / 50) * (0.05 + 0.95 * left)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(weight, 1 - min(options.average, (1 + step) / (10 + step)))
    return average, step * BATCH


class Drawer:
    """Images of a trained file by Euler's steps: what an `Evaluator` calls, (batch, rng) → images."""

    def __init__(self, path: Path, *, steps: int, guidance: float) -> None:
        content = torch.load(path, weights_only=True)
        self.net = PlainNet(content["width"]).eval().requires_grad_(False)
        self.net.load_state_dict(content["net"])
        self.arm, self.half, self.steps, self.guidance = content["arm"], content["half"], steps, guidance

    @torch.no_grad()
    def __call__(self, batch: Any, rng: Any) -> Tensor:
        """Images [B,3,H,W] in [-1,1] for the batch's labels."""
        x = rng.normal(batch.x.shape[1:], "start")
        for k in range(self.steps, 0, -1):
            t = torch.full((len(x),), k / self.steps)
            velocity = self._velocity(x, t, batch.label)
            if self.guidance != 1:
                free = self._velocity(x, t, torch.full_like(batch.label, CLASSES))
                velocity = free + self.guidance * (velocity - free)
            x = x - velocity / self.steps
        return x.clamp(-1, 1)

    def _velocity(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        parts = zip(x.split(BATCH), t.split(BATCH), label.split(BATCH), strict=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            out = torch.cat([self.net(*part).float() for part in parts])
        return out if self.arm == "velocity" else (x - out) / t[:, None, None, None]


def main() -> None:
    """Train one arm and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=1000.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", choices=["velocity", "x0"], default="velocity")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.995)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--half", action="store_true", help="bfloat16, for CPUs that have it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    net, seen = train(*load(options.shards), options)
    content = {"net": net.state_dict(), "arm": options.arm, "width": options.width, "images": seen}
    content["half"] = options.half
    torch.save(content, options.out)
    print(f"{seen:,} images in {options.seconds:g} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
