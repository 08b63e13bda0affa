"""Random weights for Inception-v3, and what torch-fidelity makes of them.

The golden values in test_inception.py are remade where torch-fidelity (0.4) is installed, with torchvision:

    PYTHONPATH=src python tests/models/golden_inception.py

which writes the weights to a temporary file, lets torch-fidelity read it and prints its features and logits.
"""

import tempfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from lmsd.features.inception import InceptionV3

SIZES = (32, 299, 320)


def random_state() -> dict[str, Tensor]:
    """A state dict whose activations neither vanish nor explode; each tensor from its name's checksum."""
    state = InceptionV3().state_dict()
    for name, value in state.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            state[name] = (0.1 * drawn).exp()
        elif name.endswith(("bn.bias", "running_mean")):
            state[name] = 0.1 * drawn
        elif name.endswith("bn.weight"):
            state[name] = 1.0 + 0.1 * drawn
        else:
            fan_in = value[0].numel() if value.ndim > 1 else 1
            state[name] = drawn * (2.0 / fan_in) ** 0.5
    return state


def pixels(size: int) -> Tensor:
    """Two uint8 images [2,3,size,size]."""
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)


def main() -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        torch.save(random_state(), path)
        net = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
        for size in SIZES:
            features, logits = net(pixels(size))
            for found in (features, logits):
                shown = [round(value, 7) for value in (*found[0, :4].tolist(), found.double().sum().item())]
                print(size, tuple(found.shape), shown)


if __name__ == "__main__":
    main()
