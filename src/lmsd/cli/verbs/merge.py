"""`lmsd merge`: adapters into weights, and several runs into one, as a run of its own."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsd.checkpoints import WeightsRef, checkpoint_name, find, find_run
from lmsd.cli.config import options
from lmsd.cli.runs import store
from lmsd.errors import Count, UserError
from lmsd.files import sha256_of, write_text

if TYPE_CHECKING:
    from lmsd.models.generator import Generator
    from lmsd.sampling import Model

HELP = """lmsd merge run=RUN to=FOLDER [adapters='[A.safetensors, RUN*0.7]']
lmsd merge runs='[RUN@ema, RUN@ema, ...]' to=FOLDER [how=uniform|greedy] [rank=R]

  run=RUN[@ema]      the run's adapters, and those that are named, each at its strength, into its weights
  runs=[...]         runs of one net: their mean (how=uniform), or the mean of those that do not make it worse
                     on val, best first (how=greedy, n= images); of runs with adapters on one base their mean
                     at rank R, by default that of the first, exact where R reaches the sum of theirs
  to=FOLDER          a run without training, for lmsd sample, evaluate, export and init_from=; its merge.json
                     says what went in
"""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of `lmsd merge`; see HELP."""

    to: Path
    run: str | None = None
    runs: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    how: Literal["uniform", "greedy"] = "uniform"
    rank: Count | None = None
    n: Count = 1_000


def main(arguments: list[str]) -> int:
    """Merge, and say where the run lies."""
    chosen = options.read(MergeOptions, arguments, verb="merge")
    if (chosen.run is None) == (not chosen.runs) or len(chosen.runs) == 1:
        raise UserError("lmsd merge takes run=RUN, or runs=[A, B, ...] of two or more")
    if chosen.adapters and chosen.runs:
        raise UserError("adapters= go with run=RUN: merge them into each of the runs first")
    if chosen.to.exists():
        raise UserError(f"to={chosen.to} exists: name a new folder, or remove it")
    words = ["merge", *map(store.shown, arguments)]
    print(one(chosen, words) if chosen.run is not None else several(chosen, words))
    return 0


def place(text: str) -> tuple[Path, WeightsRef]:
    """The checkpoint that RUN[@ema] names, and which of its weights."""
    source = WeightsRef.parse(text)
    return find(source.path if source.path.exists() else find_run(str(source.path))), source


def opened(text: str) -> "Model":
    """The model of RUN[@ema]; raw weights without @."""
    from lmsd.sampling import load

    checkpoint, source = place(text)
    return load(checkpoint, ema=source.ema or "raw")


def one(chosen: MergeOptions, words: Sequence[str]) -> Path:
    """One run with its adapters, and others, in its weights."""
    from lmsd.tuning.low import changes
    from lmsd.tuning.merge import Adapter, merged, whole

    assert chosen.run is not None
    model = opened(chosen.run)
    generator, found = model.generator, [Adapter.parse(text) for text in chosen.adapters]
    parts = [(adapter.lows(generator), adapter.strength) for adapter in found]
    if not parts and not changes(generator):
        raise UserError(f"{chosen.run} has no adapters, and none are named: adapters='[A.safetensors]'")
    if any(name.startswith("text_encoder") for part, _ in parts for name, _ in part):
        raise UserError("merge: adapters of text encoders are merged from the run that trained them alone")
    text = any(name.startswith("text_encoder") for name, _ in changes(generator))
    merged(generator, parts)
    record = {"how": "adapters into weights", "parts": [told(chosen.run), *map(told, chosen.adapters)]}
    return written(chosen.to, model, whole(model.spec, text=text), record, words)


def several(chosen: MergeOptions, words: Sequence[str]) -> Path:
    """A soup of runs."""
    from lmsd.tuning.low import changes
    from lmsd.tuning.merge import fill, mixed, soup

    models = [opened(text) for text in chosen.runs]
    specs = [model.spec for model in models]
    for text, spec in zip(chosen.runs, specs, strict=True):
        if spec != specs[0]:
            raise UserError(
                f"merge: {text} has another generator than {chosen.runs[0]}: soups are of one net"
            )
    first = models[0]
    picked = list(range(len(models)))
    scores: dict[str, float] = {}
    if chosen.how == "greedy":
        picked, scores = greedy(chosen, models)
    parts = [(changes(models[number].generator), 1 / len(picked)) for number in picked]
    if parts[0][0]:
        rank = chosen.rank or next(iter(parts[0][0].values())).rank
        spec = {**specs[0], "tuning": {**specs[0]["tuning"], "rank": rank, "alpha": None, "rslora": False}}
        from lmsd.spec import build

        built: Generator = build(spec)
        fill(built, mixed(parts, rank))
    else:
        if chosen.rank is not None:
            raise UserError("rank= is of runs with adapters (tuning=lora), and these have none: leave it out")
        spec, built = specs[0], first.generator
        built.load_state_dict(soup([models[number].generator.state_dict() for number in picked]))
    record = {
        "how": chosen.how,
        "parts": [{**told(text), "taken": number in picked} for number, text in enumerate(chosen.runs)],
        **({"val": scores} if scores else {}),
    }
    return written(chosen.to, first, spec, record, words, built)


def greedy(chosen: MergeOptions, models: "Sequence[Model]") -> tuple[list[int], dict[str, float]]:
    """Which runs are taken: best on val first, each where the soup with it is no worse; all scores."""
    from lmsd.tuning.merge import soup

    scored = judge(chosen, models[0])
    states = [model.generator.state_dict() for model in models]
    scores = {text: scored(model.generator) for text, model in zip(chosen.runs, models, strict=True)}
    order = sorted(range(len(models)), key=lambda number: scores[chosen.runs[number]])
    picked, best, trial = order[:1], scores[chosen.runs[order[0]]], models[0].generator
    for number in order[1:]:
        trial.load_state_dict(soup([states[other] for other in (*picked, number)]))
        found = scored(trial)
        scores[" + ".join(chosen.runs[other] for other in (*picked, number))] = found
        if found <= best:
            picked, best = [*picked, number], found
    models[0].generator.load_state_dict(states[0])
    return sorted(picked), scores


def judge(chosen: MergeOptions, model: "Model") -> Any:
    """Generator → FD on val, with the first run's shards and settings."""
    from lmsd.cli.build.experiment import instantiate, shard_set
    from lmsd.cli.build.validate import on_val
    from lmsd.sampling import Generation, Settings

    config = store.config_of(store.folder_of(model.checkpoint))
    config.evaluate.n = chosen.n
    scorer, own = on_val(config, shard_set(config)), config.evaluate

    def scored(generator: "Generator") -> float:
        settings = Settings(own.steps, guidance=own.guidance, interval=own.interval)
        made = Generation(generator, instantiate(config.sampler), settings)
        found = scorer(made, seeds=list(own.seeds), split="val", ema="raw", setup={}).scalars("")
        score = found.get(f"fd[{scorer.extractor.name}]")
        if score is None:
            raise UserError(
                f"how=greedy compares FD on val, for which {scorer.n} images are too few: raise n="
            )
        print(f"note: FD on val {score:.4g}", file=sys.stderr)
        return float(score)

    return scored


def told(text: str) -> dict[str, Any]:
    """A part of a merge: what it was called, its file and that file's sha256."""
    source, star, strength = text.rpartition("*")
    name = source if star else text
    path = Path(name) if name.endswith(".safetensors") else place(name)[0]
    more = {"strength": float(strength)} if star else {}
    return {"source": name, "file": str(path), "sha256": sha256_of(path), **more}


def written(
    to: Path,
    model: "Model",
    spec: Mapping[str, Any],
    record: dict[str, Any],
    words: Sequence[str],
    generator: "Generator | None" = None,
) -> Path:
    """A run folder that holds the generator and no training."""
    from omegaconf import OmegaConf

    from lmsd.checkpoints import KEY, VERSION, read
    from lmsd.engine.checkpoint import save

    config = store.config_of(store.folder_of(model.checkpoint))
    config.run_dir, config.name = str(to), to.name
    tuned = "lora" in str(spec.get("tuning", {}))
    if not tuned and "tuning" in config:
        config.tuning = {"_target_": "lmsd.tuning.full.Full", "modules": None, "text": []}
    elif tuned:
        config.tuning = spec["tuning"]
    folder = store.create(config, words)
    own = read(model.checkpoint)[KEY]
    state = (generator or model.generator).state_dict()
    content = {
        "state_dict": {f"players.generator.{name}": value for name, value in state.items()},
        "optimizers": {},
        KEY: {
            "version": VERSION,
            "clock": own["clock"],
            "players": [],
            "metrics": {},
            "seed": own["seed"],
            "config": OmegaConf.to_yaml(config),
            "spec": dict(spec),
            "merged": record,
        },
    }
    save(content, folder / "checkpoints" / checkpoint_name(model.images))
    write_text(folder / "merge.json", json.dumps(record, indent=1) + "\n")
    store.set_status(folder, state="done")
    return folder
