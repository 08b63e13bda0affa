"""Which runs take images of several sizes: `data.train.buckets=`."""

from omegaconf import DictConfig

from lmsd.errors import UserError
from lmsd.models.backbones import PooledUNet, TextUNet
from lmsd.models.conv_unet import ConvUNet
from lmsd.models.generator import Generator

OBJECTIVE = "lmsd.objectives.denoising.Denoising"


def check_buckets(config: DictConfig, generator: Generator | None) -> None:
    """UserError in one sentence where a net or a method takes images of one size alone."""
    multiple = config.data.train.get("buckets")
    if multiple is None:
        return
    if generator is None or config.objective._target_ != OBJECTIVE:
        raise UserError(
            "data.train.buckets= is for objective=denoising: what else trains (a discriminator, a codec, a "
            "reward) takes images of one size; leave it out"
        )
    match generator.net:
        case ConvUNet(patch=patch, down=down):
            levels = len(down) + 1
        case TextUNet(patch=patch, model=model) | PooledUNet(patch=patch, model=model):
            levels = len(model.config["block_out_channels"])
        case _:
            raise UserError(
                "data.train.buckets= needs a net of any size, net=unet_conv, unet_pooled or unet_text: this "
                "one has a place for every patch of one square"
            )
    needed = patch * 2 ** (levels - 1) * (config.data.image_size // generator.net.image_size)
    if multiple % needed:
        raise UserError(
            f"data.train.buckets={multiple}: this net takes sides that are multiples of {needed}: take one"
        )
