"""Scores on val, and a sample grid, during training."""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchmetrics import Metric

from lmsd import spec, types
from lmsd.cli.build.experiment import instantiate, unconditional
from lmsd.cli.build.extractors import extractor_of
from lmsd.cli.build.families import families_of, tuned_on
from lmsd.cli.config.schema import LIBRARIES, plain
from lmsd.cli.runs import store
from lmsd.data.shardset import ShardSet
from lmsd.engine.callbacks import Progress
from lmsd.engine.ema import EMA
from lmsd.engine.module import Engine
from lmsd.errors import UserError
from lmsd.evaluation import Checker, Evaluator
from lmsd.evaluation.families import Families
from lmsd.evaluation.features import Uncaptioned
from lmsd.evaluation.foreign import opened
from lmsd.evaluation.grid import save_grid, to_picture
from lmsd.evaluation.overlap import overlap, similarity_of
from lmsd.evaluation.reconstruction import Reconstruction
from lmsd.features.base import ImageSet
from lmsd.files import cache_folder
from lmsd.models.codec import Codec
from lmsd.models.generator import Generator
from lmsd.objectives.base import generator_of
from lmsd.ranks import rank_and_world
from lmsd.rng import Rng
from lmsd.sampling import Generate, Generation, Settings
from lmsd.sampling.generation import Editing


def evaluator(config: DictConfig, data: ShardSet, split: Any, *, n: int | None) -> Evaluator:
    """The scorer of one split with the chosen extractor; lmsd-cnn is trained first if necessary."""
    settings = config.evaluate
    if settings.checker == "shapes" and config.data.channels != 3:
        raise UserError("evaluate.checker=shapes reads images in color; set data.channels=3, or no checker")
    sets: list[ImageSet] = [data.split_set(each, real=True) for each in (split, "train")]
    held_out, train = [Uncaptioned(each) for each in sets] if unconditional(config) else sets
    extractor = extractor_of(settings.extractor, data)
    cache, shared = cache_folder() / "features", None
    if split != "train" and rank_and_world()[0] == 0:
        shared = overlap(
            train,
            held_out,
            similarity=similarity_of(config.data.shards),
            mirrored=config.data.train.flip,
            cache=cache,
        )
    return Evaluator(
        held_out,
        extractor,
        n=n,
        train=train if settings.neighbors and split != "train" else None,
        checker=checker(settings.checker),
        cache=cache,
        shared=shared,
        mirrored=config.data.train.flip,
    )


def metrics(config: DictConfig) -> dict[str, Metric]:
    """The metrics of `evaluate.metrics` by the names of their scores; older runs have none."""
    return {
        name: opened(name, partial(spec.build, plain(node), LIBRARIES))
        for name, node in (config.evaluate.get("metrics") or {}).items()
    }


def checker(name: str | None) -> Checker | None:
    """An exact reader of images, by name: "shapes", or none."""
    if name is None:
        return None
    from lmsd.data.builders.shapes import check

    return lambda images, captions: torch.from_numpy(check(images, captions)["all"])


def on_val(config: DictConfig, data: ShardSet) -> Evaluator:
    """The scorer on val. Raises UserError where there are no val shards."""
    require_val(data)
    return evaluator(config, data, "val", n=min(config.evaluate.n, len(data.split_set("val"))))


def require_val(data: ShardSet) -> None:
    """Refuse to score without val shards."""
    if not data.has("val"):
        raise UserError(
            "there are no val shards to score on: give data.val=SHARDS, or evaluate.n=0 to train unscored"
        )


def sighted(made: Generation, data: ShardSet, split: Any) -> Generation:
    """A generation whose scores are made from the further pictures of a split, if the data have such."""
    return Editing(made, data.split_set(split).pictures) if data.images else made


class Validation:
    """Called by the engine at its cadence: scores of the first EMA on val, D on held-out images, a grid.

    Every rank makes its share of the images. folder: the run's; scorer: prepared by the process that writes
    the files; the others, given None, take up what it prepared at their first call. monitor: the score that
    the best checkpoint is chosen by; others: metrics of torchmetrics.
    """

    def __init__(
        self,
        config: DictConfig,
        data: ShardSet,
        folder: Path,
        scorer: Evaluator | None,
        others: Mapping[str, Metric],
    ) -> None:
        self.config, self.data, self.folder, self.active = config, data, folder, scorer is not None
        self.monitor = None if scorer is None else f"val/fd[{scorer.extractor.name}]"
        self._scorer, self.others = scorer, others
        if self.active:
            self.families  # noqa: B018  made by this process before the others ask

    @property
    def evaluator(self) -> Evaluator:
        """The scorer on val."""
        if self._scorer is None:
            self._scorer = on_val(self.config, self.data)
        return self._scorer

    @cached_property
    def families(self) -> Families | None:
        """Further families, where they are asked for; none by default, since each takes its time."""
        settings = self.config.evaluate
        return families_of(
            settings.get("families") or (), settings.extractor, self.data, own=self.evaluator.extractor
        )

    @cached_property
    def commit(self) -> str | None:
        """The code's commit, for the records."""
        found: str | None = store.environment()["commit"] if self.active else None
        return found

    def __call__(self, engine: Engine) -> Mapping[str, float]:
        """Scores by name, val/... ; the grid goes into samples/, the record into eval/val/."""
        averages, lead = self._lead(engine)
        settings = self.config.evaluate
        generate = self._generate(lead)
        scores = self.evaluator(
            generate,
            seeds=list(settings.seeds),
            split="val",
            ema=str(averages.half_lives[0]) if averages.half_lives else "raw",
            setup={
                "images": engine.clock.images,
                "updates": engine.clock.updates,
                "commit": self.commit,
                "tuned_on": tuned_on(self.config),
            },
            progress=shown(engine),
            metrics=self.others,
            families=self.families,
        )
        found = scores.scalars("val/")
        if self.active:
            scores.write(self.folder)
            found |= self._probed(engine)
            self._table(found, engine)
            self._grid(generate, engine)
            print(f"{engine.clock.images:,} images\n{scores}", flush=True)
        return found

    def sample(self, engine: Engine) -> None:
        """The grid alone, into samples/."""
        if self.active:
            self._grid(self._generate(self._lead(engine)[1]), engine)

    @staticmethod
    def _lead(engine: Engine) -> tuple[EMA, nn.Module]:
        """What is scored: the first average, or the weights where there is none."""
        averages = engine.average(engine.lead)
        return averages, averages.average() if averages.half_lives else engine.players[engine.lead]

    def _generate(self, lead: nn.Module) -> Generate:
        """How images are made: sampled, or given back by a codec that is trained itself."""
        if isinstance(lead, Codec):
            return Reconstruction(lead, self.data.split_set("val"))
        assert isinstance(lead, Generator)
        settings = self.config.evaluate
        limits = {"interval": settings.interval, "image_guidance": settings.get("image_guidance", 1.0)}
        ways = Settings(settings.steps, guidance=settings.guidance, **limits)
        return sighted(Generation(lead, instantiate(self.config.sampler), ways), self.data, "val")

    def _probed(self, engine: Engine) -> dict[str, float]:
        """The method's diagnostics on training and held-out images: they differ when a player memorizes."""
        rows = self.evaluator.rows[:256]
        found: dict[str, float] = {}
        for split in ("train", "val"):
            held_out = self.data.split_set(split)
            batch = held_out.batch([row % len(held_out) for row in rows]).to(engine.device)
            if "generator" in engine.roles:
                batch = generator_of(engine.roles).encode(batch)
            logs = engine.objective.probe(engine.roles, batch, Rng(engine.seed, batch.position))
            found |= {f"{name}_{split}": float(value) for name, value in logs.items()}
        return found

    def _table(self, found: Mapping[str, float], engine: Engine) -> None:
        """Send scores with their intervals to loggers that support tables."""
        whole = {name: value for name, value in found.items() if not name.endswith(("/low", "/high"))}
        rows = [
            [name, value, found.get(f"{name}/low"), found.get(f"{name}/high")]
            for name, value in whole.items()
        ]
        for logger in engine.trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table(
                    "scores",
                    columns=["score", "value", "low (95 %)", "high (95 %)"],
                    data=rows,
                    step=engine.clock.images,
                )

    def _grid(self, generate: Any, engine: Engine) -> None:
        """Save the grid in samples/; send its images with captions to loggers that support images."""
        count = min(self.config.evaluate.grid, self.evaluator.n)
        if count:
            batch = self.data.split_set("val").batch(self.evaluator.rows[:count])
            made = generate(batch, Rng(0, batch.position))
            captions = batch.text or [str(label) for label in (() if batch.label is None else batch.label)]
            if unconditional(self.config):
                captions = [""] * count
            images = engine.clock.images
            save_grid(list(made), captions, self.folder / "samples" / f"step_{images:09d}.png")
            for logger in engine.trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image(
                        "samples", [to_picture(image) for image in made], step=images, caption=captions
                    )


def shown(engine: Engine) -> types.Progress | None:
    """The progress bar's counter of sampled images; None without a bar."""
    bar = next((c for c in engine.trainer.callbacks if isinstance(c, Progress)), None)  # type: ignore[attr-defined]
    return None if bar is None else bar.tell
