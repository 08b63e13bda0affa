"""The model card, README.md: how the model is used, what it scored and by what; its head is the hub's YAML.

Scores are those of the run's newest records, each with n, seeds, split and 95 % interval, beside the floor
that real images reach among themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmsd import __version__
from lmsd.export.base import Parity, Written
from lmsd.sampling.model import Model

TASKS = {"text": "text-to-image", "label": "unconditional-image-generation"}
"""The hub's names of tasks, by what a model reads; of those that read nothing the last one."""
SHOWN = ("fd", "kid", "cmmd", "fid", "right")
"""Scores that a card lists, by the first word of their names; with them stands what real images reach."""
AVERAGES = {"raw": "raw", "ema": "the run's first average"}


@dataclass(frozen=True)
class Told:
    """What a card tells that the model does not know.

    command: the words that made the export; license: of the model, by the hub's name; records: the run's
    newest scores by split; base: the model that this one was made from, if any.
    """

    command: Sequence[str] = ()
    license: str | None = None
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base: str | None = None


def card(model: Model, name: str, written: Written, parity: Parity, told: Told) -> str:
    """The text of README.md."""
    from huggingface_hub import ModelCardData

    results = list(_results(model, told.records))
    data = ModelCardData(
        base_model=told.base,
        license=told.license,
        library_name="diffusers" if name == "diffusers" else "lmsd",
        pipeline_tag=TASKS.get(model.generator.conditioner.reads, TASKS["label"]),
        tags=["diffusion", "adversarial", name],
        model_name=model.name,
        eval_results=results or None,
    )
    body = "\n".join(_body(model, name, written, parity, told))
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def _results(model: Model, records: Mapping[str, Mapping[str, Any]]) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    for split, record in records.items():
        for score, value in shown(record):
            yield EvalResult(
                task_type=TASKS.get(model.generator.conditioner.reads, TASKS["label"]),
                dataset_type=str(record["setup"].get("data", ""))[:12] or "unknown",
                dataset_name=f"{model.name} {split}",
                dataset_split=split,
                metric_type=score,
                metric_value=value["value"],
                metric_config=f"n={record['n']}, seeds {record['seeds']}, 95 % interval {interval(value)}",
            )


def shown(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The scores of a record that stand on a card, with their intervals."""
    found = [
        (name, value) for name, value in record["scores"].items() if {"value", "low", "high"} <= set(value)
    ]
    return [(name, value) for name, value in found if name.partition("[")[0] in SHOWN]


def interval(score: Mapping[str, Any]) -> str:
    """[low, high] of a score."""
    return f"[{score['low']:.4g}, {score['high']:.4g}]"


def _body(model: Model, name: str, written: Written, parity: Parity, told: Told) -> Iterator[str]:
    settings = model.generation().settings
    channels, side, _ = model.generator.image_shape
    yield f"# {model.name}\n"
    yield (
        f"Images of {side}x{side} pixels in {'color' if channels == 3 else 'gray'}, drawn in "
        f"{settings.steps} steps at guidance {settings.guidance:g}. Trained on {model.images:,} images; "
        f"exported by lmsd {__version__}.\n"
    )
    yield "```python\nimport lmsd\n"
    asked = "n=4" if model.generator.conditioner.reads == "nothing" else '["..."]'
    yield f'images = lmsd.load("FOLDER").sample({asked}, seed=0)  # uint8 [n,{side},{side},{channels}]\n```\n'
    if written.needs:
        yield f"Reading it needs {', '.join(written.needs)}.\n"
    yield from (f"{note}\n" for note in written.notes)
    yield "## Scores\n"
    yield from _scores(told.records)
    yield f"## Parity\n\nThe folder against the checkpoint that it was made from (format {name}):\n"
    yield "| what | value | limit |\n|---|---|---|"
    for row in parity.rows:
        yield f"| {row.what} | {row.value:.3g} | {'at least' if row.at_least else 'at most'} {row.limit:g} |"
    yield "\n## Where it comes from\n"
    if told.command:
        yield f"- command: `lmsd {' '.join(told.command)}`"
    yield f"- weights: {AVERAGES.get(model.ema, f'the average with a half-life of {model.ema} images')}"
    for split, record in told.records.items():
        yield f"- data of {split}: {record['setup'].get('data', 'not recorded')}"
    yield f"- license: {told.license or 'none was named'}"


def _scores(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not records:
        yield "The run has not been scored.\n"
    for split, record in records.items():
        setup = record["setup"]
        yield (
            f"{split}, n = {record['n']}, seeds {', '.join(map(str, record['seeds']))}, "
            f"{setup['steps']} steps, guidance {setup['guidance']:g}, EMA {setup['ema']}:\n"
        )
        yield "| score | value | 95 % interval | real images |\n|---|---|---|---|"
        for name, value in shown(record):
            stem, bracket, rest = name.partition("[")
            other = next(
                (record["scores"].get(f"{stem}_{e}{bracket}{rest}") for e in ("floor", "real")), None
            )
            other = other or record["scores"].get(f"{stem}_real{bracket}{rest}")
            real = f"{other['value']:.4g}" if other else "–"
            yield f"| {name} | {value['value']:.4g} | {interval(value)} | {real} |"
        yield ""
