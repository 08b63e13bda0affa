"""The families of pipelines that are read, by the class in model_index.json."""

from collections.abc import Mapping

from lmsd.models.layouts.base import Layout
from lmsd.models.layouts.flux import Flux
from lmsd.models.layouts.pixart import PixArtAlpha, PixArtSigma
from lmsd.models.layouts.sana import Sana
from lmsd.models.layouts.stable_diffusion import StableDiffusion
from lmsd.models.layouts.stable_diffusion_3 import StableDiffusion3
from lmsd.models.layouts.stable_diffusion_xl import StableDiffusionXL

LAYOUTS: Mapping[str, type[Layout]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "PixArtAlphaPipeline": PixArtAlpha,
    "PixArtSigmaPipeline": PixArtSigma,
    "SanaPipeline": Sana,
}
