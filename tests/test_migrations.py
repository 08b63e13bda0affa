"""A checkpoint of version 2 in today's form."""

import torch

from lmsd.checkpoints import KEY, VERSION, averages, migrated, roles, weights

CONFIG = """
schedule: {_target_: lmsd.process.schedules.Article, steps: 4}
conditioner: {_target_: lmsd.models.conditioner.NullConditioner}
net: {_target_: lmsd.models.backbones.mlp, width: 8}
data: {channels: 1, image_size: 8}
generator: {prediction: x0, z_dim: 4}
"""


def test_version_2_gives_each_role_its_own_optimizer_and_the_generator_its_averages() -> None:
    one, two = {"state": {0: {"step": 1}}}, {"state": {0: {"step": 2}}}
    state = {
        "players.generator.w": torch.tensor(1.0),
        "players.discriminator.w": torch.tensor(2.0),
        "ema.4000.w": torch.tensor(3.0),
    }
    own = {
        "version": 2,
        "players": ["discriminator", "generator"],
        "config": CONFIG,
        "clock": {"images": 8},
    }
    content = {"state_dict": state, "optimizer_states": [one, two], KEY: own}
    found = migrated(content)
    assert found[KEY]["version"] == VERSION
    assert found["optimizers"] == {"discriminator": one, "generator": two}
    assert "optimizer_states" not in found
    assert roles(found) == ("generator", "discriminator")
    assert list(averages(found, "generator")) == ["4000"]
    assert averages(found, "discriminator") == {}
    assert weights(found, "generator", "ema")["w"] == 3.0
    assert weights(found, "discriminator")["w"] == 2.0
    spec = found[KEY]["spec"]
    assert (spec["channels"], spec["image_size"], spec["prediction"], spec["z_dim"]) == (1, 8, "x0", 4)
    assert spec["net"] == {"_target_": "lmsd.models.backbones.mlp", "width": 8, "_partial_": True}
    assert found[KEY]["clock"] == {"images": 8}
    assert migrated(found) == found  # what is of today's version is left as it is
