"""Pictures for a person to judge by: real images beside generated ones, and what one caption varies in."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lmsd.evaluation.evaluator import Evaluator, quantized
from lmsd.evaluation.grid import save_grid
from lmsd.rng import Rng
from lmsd.sampling import Generate, Generation

CAPTIONS, SEEDS = 8, 16
"""Captions side by side, and images of one."""


def pictures(evaluator: Evaluator, generate: Generation, record: Path) -> None:
    """Both pictures beside a record of scores: RECORD.side.png and RECORD.seeds.png."""
    settings = generate.settings
    ways = {f"guidance {settings.guidance:g}": generate}
    if settings.guidance != 1:
        plain = replace(settings, guidance=1.0, interval=None)
        ways = {"guidance 1": Generation(generate.generator, generate.sampler, plain), **ways}
    side_by_side(evaluator, ways, record.with_suffix(".side.png"))
    one_caption(evaluator, generate, record.with_suffix(".seeds.png"))


def side_by_side(evaluator: Evaluator, ways: Mapping[str, Generate], path: Path) -> Path:
    """A row of held-out images, then a row of each way of sampling, of the same captions, by name."""
    seen = evaluator.prompts(range(min(4 * CAPTIONS, evaluator.n)))
    told = seen.text or [str(row) for row in range(len(seen))]
    places = list({caption: row for row, caption in reversed(list(enumerate(told)))}.values())[-CAPTIONS:]
    batch = evaluator.prompts(sorted(places))
    images = list(evaluator.held_out.images([evaluator.rows[place] for place in sorted(places)]))
    names = [f"real: {told[place]}" for place in sorted(places)]
    for name, generate in ways.items():
        images += list(quantized(generate(batch, Rng(0, batch.position))))
        names += [name] * len(batch)
    return save_grid(images, names, path, columns=len(batch), tile=96)


def one_caption(evaluator: Evaluator, generate: Generate, path: Path) -> Path:
    """Sixteen images of the first caption, a seed each."""
    batch = evaluator.prompts([0])
    made = [quantized(generate(batch, Rng(seed, batch.position)))[0] for seed in range(SEEDS)]
    caption = "" if batch.text is None else batch.text[0]
    names = [f"seed {seed}" + (f": {caption}" if not seed else "") for seed in range(SEEDS)]
    return save_grid(made, names, path, columns=8, tile=64)
