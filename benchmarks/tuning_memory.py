"""What tuning saves: the peak memory of two updates of a 100 M net, each setting in a process of its own.

    python benchmarks/tuning_memory.py WORK

A random Stable Diffusion folder with a U-Net of 100 M weights at 32x32 latents, batches of 4, AdamW with one
average, on the CPU. The peak is that of the process (ru_maxrss) less what it was before the net was read.
"""

import resource
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "models"))

SETTINGS: dict[str, list[str]] = {
    "all weights": ["tuning=full"],
    "all weights, checkpointing": ["tuning=full", "checkpointing=true"],
    "LoRA, rank 16": ["tuning=lora"],
    "LoRA, base in bfloat16": ["tuning=lora", "generator.net_precision=bfloat16"],
    "LoRA, base in bfloat16, checkpointing": [
        "tuning=lora",
        "generator.net_precision=bfloat16",
        "checkpointing=true",
    ],
}


def folder(place: Path) -> Path:
    """The random pipeline, written once."""
    found = place / "sd100m"
    if not found.exists():
        from tiny_pipelines import sd15, unet

        torch.manual_seed(0)
        pipeline = sd15(place / "vocabulary")
        pipeline.unet = unet(
            block_out_channels=(160, 320, 608),
            layers_per_block=2,
            sample_size=32,
            attention_head_dim=8,
            norm_num_groups=32,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        )
        print(f"{sum(p.numel() for p in pipeline.unet.parameters()) / 1e6:.0f} M weights in the net")
        pipeline.save_pretrained(found)
    return found


def peak() -> float:
    """The most memory that this process ever held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(place: Path, words: list[str]) -> None:
    """Two updates; prints the peak beyond the imports', the weights that move, and seconds an update."""
    import time

    from lmsd.cli.build import experiment
    from lmsd.cli.config.compose import load
    from lmsd.rng import Rng
    from lmsd.types import Batch

    more = [
        "experiment=pipeline_full",
        f"generator.path={folder(place)}",
        "data.image_size=64",
        "source=null",
    ]
    config = load([*more, *words])
    import diffusers  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401

    before = peak()
    torch.manual_seed(0)
    generator = experiment.generator(config)
    objective = experiment.instantiate(config.objective)
    engine = experiment.engine(config, {"generator": generator}, objective)
    optimizer = engine.configure_optimizers()[0]
    start = time.perf_counter()
    for step in range(2):
        rng = Rng(0, torch.arange(4) + 4 * step)
        batch = Batch(x=torch.zeros(4, *generator.shape), position=rng.position, text=["a circle"] * 4)
        for turn in objective.turns({"generator": generator}, batch, engine.clock, rng):
            turn.loss().value.backward()
            optimizer.step()
            optimizer.zero_grad()
        engine.average("generator").advance(generator, 4 * (step + 1))
    seconds = (time.perf_counter() - start) / 2
    moving = sum(p.numel() for p in generator.parameters())
    print(f"{peak() - before:.2f} GB  {moving / 1e6:.1f} M move  {seconds:.1f} s an update")


def main() -> None:
    """All settings, or the one that is named."""
    place = Path(sys.argv[1])
    if len(sys.argv) > 2:
        measure(place, SETTINGS[sys.argv[2]])
        return
    folder(place)
    for name in SETTINGS:
        command = [sys.executable, __file__, str(place), name]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{name:40}{found.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
