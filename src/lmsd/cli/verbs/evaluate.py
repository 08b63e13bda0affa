"""`lmsd evaluate`: scores of a run on held-out data, with n, seeds, intervals and floor."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lmsd.cli.build.words import reading
from lmsd.cli.config.settings import Combinations, ScoringOptions
from lmsd.cli.runs import store
from lmsd.cli.verbs import report
from lmsd.errors import Number, Seed, UserError
from lmsd.ranks import launched_rank

if TYPE_CHECKING:
    import torch

    from lmsd.evaluation import Evaluator, Scores
    from lmsd.evaluation.families import Families
    from lmsd.sampling import Generation, Model

HELP = """lmsd evaluate run=RUN [option=value ...]

  run=last|ID|FOLDER    or pipeline=FOLDER data.shards=SHARDS data.image_size=N, a diffusers folder as it is:
                        image_size= of its own images, batch_size= of them at once (4), generator.precision=
                        split=test|val|train    n= (default: the whole split)    seeds=[0,1,2]
  steps=[1,2,4] guidance=[1,3] sampler=         default: the run's own; every combination is scored
  interval=[0.2,0.8]             guide only the steps that start at these times; default: the run's own
  autoguidance=RUN|CHECKPOINT    guide away from this weaker model; @ema, @raw or @HALFLIFE at its end
  ema=[ema,raw,HALFLIFE]  checkpoint=FILE  adapters='[A.safetensors, RUN*0.7]'
  extractor=KIND weights=PATH    lmsd-cnn, lmsd-ssl; inception, clip or dinov2 from files that you have
  shards=SHARDS         held-out shards that lie elsewhere
  families=[ssl,random]          further features beside the extractor's: also FOLDER of a DINOv2; or none
  robustness=true       also how easily it is disturbed: noise and attacks on x_t, other noise, noise on the
                        code, typing errors, drift; curves into the report (docs/learning.md)
  keep=[images,features]         beside the record; overlap=label scores a split that training has seen

Writes RUN/eval/SPLIT/NAME.json for every combination, metrics.json (the newest) and the report. Several
processes share the work: torchrun --nproc-per-node 2 -m lmsd.cli evaluate ... gives the same numbers.
Numbers of different n, extractors or splits do not compare.
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of `lmsd evaluate`; see HELP."""

    sampling: Combinations
    features: ScoringOptions = field(default_factory=ScoringOptions)
    split: Literal["test", "val", "train"] = "test"
    n: Annotated[int, Number(2)] | None = None
    seeds: tuple[Seed, ...] = (0, 1, 2)
    shards: str | None = None
    keep: tuple[Literal["images", "features"], ...] = ()
    overlap: Literal["refuse", "label"] = "refuse"
    robustness: bool = False


def main(arguments: list[str]) -> int:
    """Evaluate, print the scores and the report's path."""
    with reading(EvaluateOptions, arguments, verb="evaluate") as chosen, ranks():
        folder = store.find_folder(chosen.sampling.run)
        said = evaluate(folder, chosen)
        if launched_rank() == 0:
            print(said)
            print(f"Report: {report.write(folder)}")
    return 0


@contextmanager
def ranks() -> Iterator[None]:
    """The process group of a launcher's processes, if there are several; features travel on the CPU.

    torch.distributed.nn binds the current group as default arguments when it is imported. Imported later on,
    as a part of something else, it would keep the group and gloo's threads past their end; and a thread that
    drops its last tensor while the interpreter exits aborts the process.
    """
    import torch.distributed as dist

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if several:
        import torch.distributed.nn  # noqa: F401

        dist.init_process_group("gloo")
    try:
        yield
    finally:
        if several:
            dist.destroy_process_group()


def evaluate(folder: Path, chosen: EvaluateOptions) -> str:
    """Score a run on a split at every combination of settings, write the records, return them as text."""
    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.families import tuned_on
    from lmsd.cli.build.pretrained import fitted
    from lmsd.cli.build.robust import disturb
    from lmsd.cli.build.trained import opened
    from lmsd.cli.build.validate import metrics, sighted

    config = store.config_of(folder)
    about = {"run": folder.name, "commit": store.environment()["commit"], "tuned_on": tuned_on(config)}
    scorer, beside, others, said = None, None, metrics(config), list[str]()
    for told in chosen.sampling.each():
        model, generate = opened(folder, told)
        model.generator.to(device())
        generate = fitted(generate, config)
        if scorer is None:
            scorer, beside = scorer_of(config, chosen, model.generator.conditioner.reads)
        generate = sighted(generate, shard_set(config), chosen.split)
        made = partial(scorer, generate, metrics=others, families=beside)
        said.append(str(score(folder, model, generate, scorer, made, chosen, about)))
        said += disturb(folder, generate, scorer, chosen.split, seed=chosen.seeds[0], on=chosen.robustness)
    return "\n\n".join(said)


def device() -> "torch.device":
    """The GPU of this process, or the CPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def scorer_of(config: Any, chosen: EvaluateOptions, reads: str) -> "tuple[Evaluator, Families | None]":
    """The scorer of the chosen split, and further families; refused where training saw much of the split.

    reads: what images are made of, which the split has to hold: text, label or nothing.
    """
    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.families import families_of, known
    from lmsd.cli.build.validate import evaluator
    from lmsd.ranks import by_first, first_alone

    if chosen.shards is not None:
        if chosen.split == "train":
            raise UserError("shards= names held-out shards; choose split=val or split=test")
        config.data[chosen.split] = chosen.shards
    if chosen.features.extractor is not None:
        config.evaluate.extractor.kind = chosen.features.extractor
    if chosen.features.weights is not None:
        config.evaluate.extractor.path = str(chosen.features.weights)
    known(chosen.features.families)
    with first_alone():
        data = shard_set(config)
        held = data.index(chosen.split)
        if reads == "text" and not held.captions:
            raise UserError(
                f"these images are made of captions, and the shards of split={chosen.split} hold none "
                "(KEY.txt, KEY.json): name others, shards=SHARDS"
            )
        scorer = evaluator(config, data, chosen.split, n=chosen.n)
        families = families_of(
            chosen.features.families, config.evaluate.extractor, data, own=scorer.extractor
        )
    for extractor in (scorer.extractor, *(families.beside if families else ())):
        extractor.net.to(device())
    by_first(lambda: refuse_overlap(scorer, chosen))
    return scorer, families


OVERLAP = 0.1
"""Share of a split that may lie in the training set before its scores are refused."""


def refuse_overlap(scorer: "Evaluator", chosen: EvaluateOptions) -> None:
    """Refuse to score a split of which more than a tenth was trained on, unless it is asked for."""
    shared = scorer.shared
    if shared is not None and shared.near > OVERLAP * shared.of and chosen.overlap == "refuse":
        raise UserError(
            f"{shared.near} of {shared.of} images of split={chosen.split} lie in the training set or nearly "
            "so: scores on them flatter; take other shards (shards=), or overlap=label to have them labeled"
        )


_PLAIN = re.compile(r"[\w./:@+-]+")
"""A value that the grammar of options takes without quotes."""


def asked(chosen: EvaluateOptions) -> str | None:
    """The options that override the run's own and that no other field of a record shows."""
    given = {
        "sampler": chosen.sampling.sampler,
        "extractor": chosen.features.extractor,
        "weights": chosen.features.weights,
        "shards": chosen.shards,
        "overlap": None if chosen.overlap == "refuse" else chosen.overlap,
    }
    texts = {name: str(value) for name, value in given.items() if value is not None}
    words = [f"{n}=" + (t if _PLAIN.fullmatch(t) else f"'{t}'") for n, t in texts.items()]
    adapters = ", ".join(chosen.sampling.adapters)
    return shlex.join([*words, *([f"adapters=[{adapters}]"] if adapters else [])]) or None


def score(
    folder: Path,
    model: "Model",
    generate: "Generation",
    scorer: "Evaluator",
    made: "Callable[..., Scores]",
    chosen: EvaluateOptions,
    about: Mapping[str, str | None],
) -> "Scores":
    """Scores at one setting, with its record and the picture of closest pairs; made: the scorer, at work."""
    from lmsd.cli.bar import Bar
    from lmsd.cli.build.weaker import short
    from lmsd.evaluation.side import pictures

    kept = folder / "eval" / chosen.split / "kept"
    record = generate.record()
    settings = [
        chosen.sampling.sampler or record["sampler"],
        f"steps{record['steps']}",
        f"guidance{record['guidance']}",
        *([f"interval{record['interval']}".replace(" to ", "-")] if "interval" in record else []),
        *([short(str(record["autoguidance"]))] if "autoguidance" in record else []),
    ]
    name = "-".join(map(str, [model.checkpoint.stem, model.ema, *settings, f"n{scorer.n}"]))
    if chosen.shards is not None:
        name += f"-data{(scorer.held_out.hash or '')[:8]}"
    features = f"{name}-seeds{'_'.join(map(str, chosen.seeds))}-{scorer.extractor.name}.safetensors".replace(
        "/", "_"
    )
    with Bar() as bar:
        scores = made(
            seeds=list(chosen.seeds),
            split=chosen.split,
            ema=model.ema,
            setup={"checkpoint": model.checkpoint.name, **about, "options": asked(chosen)},
            progress=bar.update,
            keep_images=kept / name if "images" in chosen.keep else None,
            keep_features=kept / features if "features" in chosen.keep else None,
        )
    if launched_rank() == 0:
        path = scores.write(folder)
        scorer.closest(generate, scores, path.with_suffix(".png"))
        if scores.look is not None:
            pictures(scorer, generate, path)
    return scores
