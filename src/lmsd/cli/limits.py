"""What the values of `train` may be: ranges and choices, looked at before anything is built."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, TypeAlias

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.suggest import nearest
from lmsd.errors import UserError


@dataclass(frozen=True)
class Number:
    """A number in [low, high], whole or not; null: may also be null; many: a list of them."""

    low: float = 0
    high: float = inf
    whole: bool = True
    null: bool = False
    many: int | Literal["any"] | None = None

    def fits(self, value: Any) -> bool:
        """Whether a value is such a number, or such a list."""
        if value is None:
            return self.null
        if self.many is not None:
            right_length = isinstance(value, list) and self.many in ("any", len(value))
            return right_length and all(self._one(item) for item in value)
        return self._one(value)

    def _one(self, value: Any) -> bool:
        kinds = int if self.whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high

    def words(self) -> str:
        """What the value should be."""
        kind = "whole number" if self.whole else "number"
        bound = f"from {self.low:g} to {self.high:g}" if self.high < inf else f"of at least {self.low:g}"
        if self.many is not None:
            count = "" if self.many == "any" else f"{self.many} "
            return f"a list of {count}{kind}s {bound}, e.g. [1, 2]{' or null' * self.null}"
        return f"a {kind} {bound}{' or null' * self.null}"


@dataclass(frozen=True)
class Choice:
    """One of some words; null: may also be null."""

    options: tuple[str, ...]
    null: bool = False

    def fits(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return self.null if value is None else value in self.options

    def words(self) -> str:
        """What the value should be."""
        return f"one of {', '.join(self.options)}{' or null' * self.null}"


Rule: TypeAlias = Number | Choice

RULES: Mapping[str, Rule] = {
    "seed": Number(0, 2**63 - 1),
    "images": Number(1),
    "batch_size": Number(1),
    "micro_batches": Number(1),
    "precision": Choice(("32-true", "bf16-mixed", "16-mixed")),  # the engine says why not the last
    "devices": Number(1),
    "accelerator": Choice(("auto", "cpu", "gpu", "cuda")),
    "threads": Number(1, null=True),
    "log_every": Number(1),
    "checkpoint_every": Number(0),
    "keep": Number(1),
    "steps": Number(1),
    "generator.prediction": Choice(("eps", "x0", "v", "velocity")),
    "generator.z_dim": Number(0),
    "generator.precondition": Choice(("none", "edm")),
    "optim.warmup_images": Number(0),
    "optim.decay": Choice(("cosine", "constant")),
    "optim.clip.generator": Number(0, whole=False, null=True),
    "optim.clip.discriminator": Number(0, whole=False, null=True),
    "optim.ema": Number(1, many="any"),
    "evaluate.every": Number(0),
    "evaluate.n": Number(0),
    "evaluate.seeds": Number(0, many="any"),
    "evaluate.steps": Number(1),
    "evaluate.guidance": Number(-inf, whole=False),
    "evaluate.interval": Number(0, whole=False, null=True, many=2),
    "evaluate.grid": Number(0),
    "evaluate.checker": Choice(("shapes",), null=True),
    "evaluate.extractor.kind": Choice(("lmsd-cnn", "inception", "clip", "dinov2")),
    "evaluate.extractor.augment": Choice(("none", "shift", "shift_flip")),
    "evaluate.extractor.images": Number(1, null=True),
    "data.image_size": Number(1),
    "data.channels": Number(1, 3),
    "data.color": Number(0, 1, whole=False),
    "data.num_workers": Number(0),
    "data.window": Number(1),
    "data.cache_gb": Number(0, whole=False),
    "data.memory_gb": Number(0, whole=False),
}


def check_limits(config: DictConfig) -> None:
    """Refuse a value outside its rule, and a mandatory one that was not given."""
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} has no value of its own: give {key}=...")
    for key, rule in RULES.items():
        value = OmegaConf.select(config, key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not rule.fits(value):
            hint = nearest(str(value), rule.options) if isinstance(rule, Choice) else ""
            raise UserError(f"{key}={value} is not {rule.words()}{hint}")
    parts = config.devices * config.micro_batches
    if config.batch_size % parts:
        raise UserError(
            f"batch_size={config.batch_size} (global) does not divide by {config.devices} devices x "
            f"{config.micro_batches} micro-batches: take a multiple of {parts}"
        )
    check_guidance(config, config.evaluate.guidance)


def check_guidance(config: DictConfig, guidance: float) -> None:
    """Refuse guidance away from what a run never learned: its images without a condition."""
    objective = config.objective
    drops = [node.get("drop", 0.0) for node in (objective, objective.get("warm")) if node is not None]
    if guidance != 1.0 and not any(drops):
        raise UserError(
            f"guidance={guidance:g} needs a generator that was trained without captions too, and this one "
            "was not (objective.drop=0): take guidance=1, or train with objective.drop=0.1"
        )
