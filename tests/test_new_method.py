"""A new method is one file and one YAML: both are written here, and `lmsd train` finds and trains them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONSISTENCY = """
from functools import partial
import torch
from lmsd.objectives.base import Objective, generator_of, mean_square, standard_normal
from lmsd.types import Loss, Turn

class Consistency(Objective):
    def __init__(self, jumps):
        self.jumps = jumps

    def turns(self, players, batch, clock, rng):
        generator = generator_of(players)
        process = generator.process
        s, t = self.jumps(rng, process)
        eps = standard_normal(rng, batch.x, "eps")
        x_s, x_t = (process.noise(batch.x, time, eps) for time in (s, t))
        clean = (s == process.schedule.t_clean)[:, None, None, None]
        target = torch.where(clean, batch.x, generator(x_s, s, generator.condition(batch)))
        yield Turn("generator", partial(self.loss, generator, batch, x_t, t, target))

    def loss(self, generator, batch, x_t, t, target):
        value = mean_square(generator(x_t, t, generator.condition(batch)) - target).mean()
        return Loss(value, {"consistency": value.detach()})
"""
DENOISING_GAN = """
from functools import partial
import torch
from torch.nn.functional import softplus
from lmsd.objectives.base import Objective, Part, discriminator_of, generator_of, standard_normal
from lmsd.types import Loss, Turn

class DenoisingGAN(Objective):
    cast = {"discriminator": Part(given={"marginal": True}), "generator": Part()}

    def __init__(self, jumps):
        self.jumps = jumps

    def turns(self, players, batch, clock, rng):
        s, t = self.jumps(rng, generator_of(players).process)
        for player, sign in (("discriminator", 1.0), ("generator", -1.0)):
            yield Turn(player, partial(self.loss, players, batch, s, t, rng, sign))

    def loss(self, players, batch, s, t, rng, sign):
        generator, critic = generator_of(players), discriminator_of(players)
        x_s, x_t = generator.process.pair(batch.x, s, t, rng)
        cond = generator.condition(batch)
        z = rng.normal((generator.z_dim,), "z") if generator.z_dim else None
        x_0 = generator(x_t, t, cond, z)
        fake = generator.process.noise(x_0, s, standard_normal(rng, x_0, "fake"))
        gap = critic(x_s, None, s, t, cond) - critic(fake, None, s, t, cond)
        value = softplus(-sign * gap).mean()
        return Loss(value, {"gap": gap.mean().detach()})
"""
YAML = """
_target_: {target}
jumps: {{_target_: lmsd.process.times.Jumps, steps: "${{steps}}", last: null}}
"""
TINY = (
    "images=64 batch_size=16 log_every=16 net.width=16 net.depth=1 discriminator.trunk.width=16 evaluate.n=0 "
    "discriminator.trunk.depth=1 data.image_size=16 accelerator=cpu threads=1"
)


@pytest.mark.parametrize(
    ("code", "name", "log", "z_dim"),
    [
        (CONSISTENCY, "Consistency", "consistency", 0),
        pytest.param(DENOISING_GAN, "DenoisingGAN", "gap", 8, marks=pytest.mark.slow),
    ],
)
def test_one_file_and_one_yaml_train(code: str, name: str, log: str, z_dim: int, tmp_path: Path) -> None:
    from lmsd.data.builders import BuildOptions, Drawing, Preparation
    from lmsd.data.builders import build as build_data

    (tmp_path / "my_method.py").write_text(code)
    (tmp_path / "groups" / "objective").mkdir(parents=True)
    (tmp_path / "groups" / "objective" / "mine.yaml").write_text(YAML.format(target=f"my_method.{name}"))
    counts = BuildOptions(
        pictures=Preparation(image_size=16), drawing=Drawing(train_count=40, val_count=8, test_count=8)
    )
    build_data("shapes", tmp_path / "shapes", options=counts)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "LMSD_CONFIG_DIR": str(tmp_path / "groups"),
        "LMSD_ALLOW": "my_method",
        "LMSD_CACHE": str(tmp_path / "cache"),
    }
    words = [
        "objective=mine",
        f"generator.z_dim={z_dim}",
        f"data.shards={tmp_path / 'shapes'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    command = [sys.executable, "-m", "lmsd.cli", "train", *words, *TINY.split()]
    command = [word for word in command if z_dim or not word.startswith("discriminator.")]
    done = subprocess.run(command, env={**os.environ, **own}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line[f"generator/{log}"] for line in lines if f"generator/{log}" in line]
    assert len(found) == 4
    assert len(set(found)) == 4
