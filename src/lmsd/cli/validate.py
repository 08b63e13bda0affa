"""Scores on val and a sample grid while a run trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lmsd.cli import build
from lmsd.cli.extractors import find_or_train
from lmsd.data.index import cache_folder
from lmsd.data.module import ShardDataModule
from lmsd.engine import Engine
from lmsd.errors import UserError
from lmsd.evaluation import Checker, Evaluator, make_generate
from lmsd.evaluation.grid import save_grid
from lmsd.models.generator import Generator
from lmsd.rng import Rng
from lmsd.types import Batch


def evaluator(config: DictConfig, data: ShardDataModule, split: Any, *, n: int | None) -> Evaluator:
    """The scorer of one split: the data set's own extractor, trained first where there is none yet."""
    settings = config.evaluate
    path = None if settings.extractor.path is None else Path(settings.extractor.path)
    if path is not None and not (path / "lmsd-cnn.json").is_file():
        raise UserError(f"evaluate.extractor.path={path} holds no lmsd-cnn; lmsd data features makes one")
    if settings.checker == "shapes" and config.data.channels != 3:
        raise UserError("evaluate.checker=shapes reads images in color; set data.channels=3, or no checker")
    held_out = data.split_set(split)
    extractor, _ = find_or_train(
        data, augment=settings.extractor.augment, images=settings.extractor.images, folder=path
    )
    return Evaluator(
        held_out,
        extractor,
        n=n,
        train=data.split_set("train") if settings.neighbors else None,
        checker=checker(settings.checker),
        cache=cache_folder() / "features",
    )


def checker(name: str | None) -> Checker | None:
    """An exact reader of images, by name: "shapes", or none."""
    if name is None:
        return None
    if name != "shapes":
        raise UserError(f"evaluate.checker={name}: there is one exact checker, shapes")
    from lmsd.data.build.shapes import check

    return lambda images, captions: torch.from_numpy(check(images, captions)["all"])


class Validation:
    """What the engine calls at its cadence: scores of the first EMA on val, D on held-out reals, a grid.

    active: whether this process is the one that scores. folder: the run's, set once it is known. monitor: the
    score that the best checkpoint is chosen by.
    """

    def __init__(self, config: DictConfig, data: ShardDataModule, *, active: bool) -> None:
        self.config, self.data, self.folder = config, data, Path()
        self.monitor: str | None = None
        if not data.has("val"):
            raise UserError(
                "there are no val shards to score on: give data.val=SHARDS, or evaluate.n=0 to train unscored"
            )
        if active:
            count = min(config.evaluate.n, len(data.split_set("val")))
            self.evaluator = evaluator(config, data, "val", n=count)
            self.monitor = f"val/fd[{self.evaluator.extractor.name}]"
            self.sampler = build.sampler(config)

    def __call__(self, engine: Engine) -> Mapping[str, float]:
        """Scores by name, val/... ; the grid goes into samples/, the record into eval/val/."""
        generator = engine.ema.average() if engine.ema.half_lives else engine.generator
        assert isinstance(generator, Generator)
        settings = self.config.evaluate
        interval = None if settings.interval is None else (settings.interval[0], settings.interval[1])
        generate = make_generate(
            generator, self.sampler, steps=settings.steps, guidance=settings.guidance, interval=interval
        )
        half_life = str(engine.ema.half_lives[0]) if engine.ema.half_lives else "raw"
        scores = self.evaluator(
            generate,
            seeds=list(settings.seeds),
            split="val",
            ema=half_life,
            setup={"images": engine.clock.images, "updates": engine.clock.updates},
        )
        scores.write(self.folder)
        found = scores.scalars("val/") | self._verdicts(engine)
        self._grid(generate, engine.clock.images)
        print(f"{engine.clock.images:,} images  {scores}", flush=True)
        return found

    def _verdicts(self, engine: Engine) -> dict[str, float]:
        """Sign accuracy of the discriminator on train and on held-out reals: apart when it memorizes."""
        judge = getattr(engine.objective, "sign_accuracy", None)
        if judge is None:
            return {}
        rows = self.evaluator.rows[:256]
        found = {}
        for split in ("train", "val"):
            held_out = self.data.split_set(split)
            places = [row % len(held_out) for row in rows]
            batch = prompts(self.evaluator, places, held_out).to(engine.device)
            rng = Rng(engine.seed, batch.position)
            found[f"discriminator/accuracy_{split}"] = float(judge(engine.players, batch, rng))
        return found

    def _grid(self, generate: Any, images: int) -> None:
        count = min(self.config.evaluate.grid, self.evaluator.n)
        if count:
            held_out = self.evaluator.held_out
            batch = prompts(self.evaluator, self.evaluator.rows[:count], held_out)
            made = generate(batch, Rng(0, batch.position))
            captions = batch.text or [
                str(label) for label in (batch.label if batch.label is not None else range(count))
            ]
            save_grid(list(made), captions, self.folder / "samples" / f"step_{images:09d}.png")


def prompts(scorer: Evaluator, rows: list[int], held_out: Any) -> Batch:
    """Images, captions and labels of some rows of a split."""
    text = None if scorer.captions is None else held_out.captions(rows)
    return Batch(x=held_out.images(rows), position=torch.tensor(rows), text=text, label=held_out.labels(rows))
