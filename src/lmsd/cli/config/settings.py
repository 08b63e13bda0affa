"""Options that no constructor takes: their types, ranges, defaults and meanings.

A field is an option, its annotation what it may be, the line below it what it means. Those of `lmsd train`
are never built; groups (net, objective, ...) are nodes, whose constructors say what they take. The records at
the end are shared by the small verbs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from lmsd.errors import Amount, Count, Guidance, Measure, Seed, When, Word

Name = Annotated[str, Word(r"^[^/]{1,100}$", "a name of 1 to 100 characters without a slash")]
Folder = Annotated[str, Word(r"^(?!\.{1,2}$)[^/]{1,100}$", "a folder's name: no slash, nor . or ..")]
ExtractorKind: TypeAlias = Literal["lmsd-cnn", "lmsd-ssl", "inception", "clip", "dinov2"]
Node = Mapping[str, Any]
"""What a constructor makes."""


class Extractor:
    """The features that images are scored in."""

    kind: ExtractorKind = "lmsd-cnn"
    """lmsd-cnn, lmsd-ssl (no labels); inception, clip, dinov2 with their weights"""
    path: str | None = None
    """a file (inception) or folder; null: the data set's own lmsd-cnn or lmsd-ssl, trained once and kept"""
    augment: Annotated[Literal["none", "shift", "shift_flip"], When("kind", ("lmsd-cnn", "lmsd-ssl"))] = (
        "shift"
    )
    """what the images that lmsd-cnn learns from go through"""
    images: Annotated[Count | None, When("kind", ("lmsd-cnn", "lmsd-ssl"))] = None
    """to train lmsd-cnn on; null: six passes, at least 60,000, at most 100 passes"""


class Evaluate:
    """When and how a run is scored on val."""

    every: Annotated[Amount, When("n", unless=0, told=True)] = 100_000
    """images between two evaluations on val; there is always one at the end"""
    at_start: Annotated[bool, When("n", unless=0, told=True)] = True
    """also before the first update"""
    n: Amount = 1_000
    """held-out images and as many generated ones; at most the split's"""
    seeds: Sequence[Amount] = (0,)
    """of the generated images"""
    steps: Count = 4
    """of sampling"""
    guidance: float = 1.0
    """w of x_hat = null + w (cond - null); 1: off"""
    image_guidance: float = 1.0
    """of a run that sees an image (objective=edit, inpaint): the same for the image; 1: off"""
    interval: tuple[Measure, Measure] | None = None
    """the times [low, high] of the schedule at which guidance acts; null: all"""
    grid: Annotated[Amount, When("n", unless=0, told=True)] = 32
    """images of the sample grid"""
    neighbors: bool = True
    """distance to the nearest training image, beside that of held-out images"""
    stop_hacking: Annotated[Amount, When("n", unless=0, told=True)] = 3
    """learning from rewards: end after so many evaluations in a row with more reward and worse FD; 0: no"""
    checker: Literal["shapes"] | None = None
    """shapes: the exact reader of its captions, in place of the classifier"""
    metrics: Mapping[str, object]
    """of torchmetrics, by the names of their scores: {tv: {_target_: torchmetrics.image.TotalVariation}}"""
    extractor: Extractor
    """the features"""
    families: Annotated[Sequence[str], When("n", unless=0, told=True)] = ()
    """further features while training, which takes longer: ssl, random, a folder of DINOv2"""


class Optim:
    """How the players learn."""

    generator: Node
    """its optimizer"""
    discriminator: Node
    """its optimizer"""
    warmup_images: Amount = 10_000
    """over which the learning rate rises"""
    decay: Literal["cosine", "constant"] = "cosine"
    """of the learning rate after it"""
    clip: Mapping[str, Measure | None]
    """largest gradient norm of each role; null: any"""
    ema: Sequence[Count] = (5_000,)
    """half-lives of the averages in images, of which the first one is sampled and scored"""
    averages: Mapping[str, Sequence[Count]]
    """half-lives of further players' averages, by role: {discriminator: [5_000]}"""


class Train:
    """One run."""

    name: Name = "custom"
    """of the run's folder"""
    source: str | None = None
    """the command that makes the data, for the message where they are missing"""
    seed: Seed = 0
    """of weights, data order and all noise"""
    images: Count = 1_000_000
    """to see in all, over all ranks, as in all counts"""
    batch_size: Count = 64
    """global: over all ranks and micro-batches"""
    micro_batches: Count = 1
    """gradient accumulation: parts of a rank's share of the batch"""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "auto"] = (
        "32-true"  # the engine refuses the third
    )
    """of the nets' arithmetic; auto: the faster one on this device, tried once and written down"""
    devices: Count | Literal["auto"] = 1
    """processes on each machine, one a device; auto: all GPUs there are"""
    num_nodes: Count = 1
    """machines"""
    fsdp: bool = False
    """cut the generator, its averages and moments over the devices, where one cannot hold them"""
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto"
    """kind of the devices"""
    compile: bool = False
    """torch.compile of the nets"""
    checkpointing: bool = False
    """recompute the generator's activations in the backward pass"""
    threads: Count | None = None
    """CPU threads a process; null: torch's choice"""
    run_dir: str | None = None
    """null: outputs/<date_time>-<name>-<id>"""
    resume: str | None = None
    """auto, last, a run's id, folder or checkpoint"""
    extend: str | None = None
    """a run or checkpoint to train longer in a new run, to images= in all"""
    dry: bool = False
    """build everything, train and write nothing (debug=dry)"""
    profiler: Literal["simple", "pytorch"] | None = None
    """tables of where the time goes, in the run's folder (debug=profile)"""
    init_from: str | Sequence[str] | Mapping[str, str] | None = None
    """RUN|PATH[:player][@ema], a list of them, or one for each role: weights only, a new clock"""
    log_every: Count = 10_000
    """images between two lines of metrics"""
    checkpoint_every: Amount = 100_000
    """images between two checkpoints; 0: a tenth of the run"""
    patience: Amount = 0
    """end after so many evaluations in a row without a better FD on val, and keep the best; 0: no"""
    checkpoint_async: bool = True
    """written in the background, from one copy in memory"""
    keep: Count = 3
    """how many of the newest checkpoints, beside the best by val"""
    keep_every: Amount = 0
    """images: also the first checkpoint past each multiple; 0: none"""
    hang_seconds: Measure = 1800
    """without a batch (ten times as long within an evaluation) until the run ends; 0: never"""
    steps: Count = 4
    """jumps of the chain in few-step training, and steps of sampling"""
    transforms: Sequence[str] = ()
    """that leave captions true, for penalty.augment: shift, mirror, turn, cutout, color"""
    data: Node
    schedule: Node
    conditioner: Node
    codec: Node
    net: Node
    generator: Node
    tuning: Node
    discriminator: Node
    sampler: Node
    objective: Node
    optim: Optim
    rollback: Node
    logger: Mapping[str, object | bool]
    """loggers by name, beside metrics.jsonl"""
    callbacks: Mapping[str, object]
    """Lightning's callbacks by name"""
    evaluate: Evaluate


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A run, what is taken of it, and how its sampling goes; None takes the run's own choice.

    checkpoint: a file name, or the newest; adapters: LoRA files or runs, each with *STRENGTH, to be added;
    autoguidance: a weaker RUN or checkpoint, with @ema, @HALFLIFE or @raw, in place of the null condition.
    """

    run: str
    sampler: str | None = None
    checkpoint: str | None = None
    adapters: tuple[str, ...] = ()
    autoguidance: str | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(RunOptions):
    """One way of sampling; ema: "ema" for the first average, a half-life in images, or "raw".

    interval: the times (low, high) of the schedule at which guidance acts; empty: the run's own.
    """

    steps: Count | None = None
    guidance: Guidance | None = None
    image_guidance: Guidance | None = None
    interval: tuple[Measure, ...] = ()
    ema: str = "ema"


@dataclass(frozen=True, kw_only=True)
class Combinations(RunOptions):
    """Ways of sampling, each with each; those that are not given are the run's own."""

    steps: tuple[Count, ...] = ()
    guidance: tuple[Guidance, ...] = ()
    interval: tuple[Measure, ...] = ()
    ema: tuple[str, ...] = ("ema",)

    def each(self) -> Iterator[SamplingOptions]:
        """One by one; of several, the one without guidance goes without interval, to compare with."""
        for ema, steps, guidance in product(self.ema, self.steps or (None,), self.guidance or (None,)):
            unguided = guidance == 1 and max(self.guidance) != 1
            yield SamplingOptions(
                run=self.run,
                sampler=self.sampler,
                checkpoint=self.checkpoint,
                adapters=self.adapters,
                autoguidance=None if unguided else self.autoguidance,
                steps=steps,
                guidance=guidance,
                interval=() if unguided else self.interval,
                ema=ema,
            )


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """The features that images are scored in: the run's own, or others; weights: of the extractor."""

    extractor: ExtractorKind | None = None
    weights: Path | None = None
    families: tuple[str, ...] = ("ssl", "random")
