"""How large the source is, by `ast`: the figures of the tree against ceilings that only ever go down.

    statements      every node that is a statement, docstrings among them
    long            functions of more than 45 lines
    wide            functions of more than ten parameters (self apart), dataclasses of more than ten fields,
                    inherited ones included: the options of a verb are one record, however many classes it has
    probes          calls of getattr and hasattr, each of which is a missing interface
    isinstance      calls of it
    long files      of more than 400 lines

`pytest -s tests/test_size.py` prints the table.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lmsd"
STATEMENTS = 14371
OPTION_LINES = 1451
LONG = 0
WIDE = {
    "cli/verbs/sweep.py: SweepOptions",
    "data/scan.py: _Gathered",
    "data/shardset.py: ShardSet",
    "models/parts.py: from_parts",
}
WIDEST = 12
PROBES = 8
ISINSTANCE = 175
LONG_FILES = 0
NEW = {
    "arguments.py": "no raw exception of the Python API",
    "checkpoints.py": "a run opens without us",
    "cli/build/pretrained.py": "a pipeline's folder is judged without training",
    "cli/build/callbacks.py": "what watches a run apart from what is trained",
    "cli/build/roles.py": "what is typed and read by nothing is refused",
    "cli/build/families.py": "families of features",
    "cli/build/precision.py": "what learns photographs fastest",
    "cli/build/reading.py": "captions and classes that a run was not made for",
    "cli/build/words.py": "a pipeline's folder is judged without training",
    "cli/build/latents.py": "latents: codecs whose statistics are checked",
    "data/builders/edits.py": "latents: editing that is trained",
    "data/mixture.py": "learning from little: several sources by weights",
    "data/synthetic.py": "learning from little: generated images are for training alone",
    "data/latents.py": "latents: a cache that cannot be stale",
    "evaluation/reconstruction.py": "latents: an autoencoder of one's own",
    "models/codes.py": "latents: a cache that cannot be stale",
    "models/own.py": "latents: an autoencoder of one's own",
    "objectives/autoencoding.py": "latents: an autoencoder of one's own",
    "objectives/editing.py": "latents: editing that is trained",
    "cli/verbs/latents.py": "latents: codecs whose statistics are checked",
    "models/statistics.py": "latents: codecs whose statistics are checked",
    "models/tiles.py": "latents: large images in tiles",
    "cli/runs/pipelines.py": "a pipeline's folder is judged without training",
    "cli/config/older.py": "older versions' configurations under today's names",
    "cli/config/settings.py": "one schema",
    "cli/runs/resuming.py": "a run goes on as itself, or longer",
    "cli/runs/secrets.py": "secrets in what a run stores",
    "cli/runs/offline.py": "W&B in parts: every line once",
    "cli/sweeps/checks.py": "a sweep is sure of its combinations and scores before the first trial",
    **dict.fromkeys(
        [
            f"data/builders/{name}.py"
            for name in ("building", "catalog", "chunks", "folders", "plan", "pool", "sharding")
        ],
        "building at scale",
    ),
    "data/buckets.py": "buckets of sizes that resume exactly",
    "cli/build/buckets.py": "buckets of sizes that resume exactly",
    "cli/verbs/parts.py": "building at scale",
    "data/builders/arrow.py": "data as people have it",
    "data/builders/entries.py": "data as people have it",
    "data/builders/layouts.py": "data as people have it",
    "data/builders/parquet.py": "data as people have it",
    "data/builders/tars.py": "data as people have it",
    "data/builders/where.py": "data as people have it",
    "data/builders/captions.py": "captions that are never silently wrong",
    "data/color.py": "color profiles",
    "data/names.py": "one pairing of files, of folders and of shards",
    "data/notes.py": "what is worth telling of data",
    "data/text.py": "captions that are never silently wrong",
    "data/urls.py": "no circle in data/",
    "engine/state.py": "an engine without other people's notes",
    "cli/verbs/export.py": "a run leaves as a program of its own",
    "export/__init__.py": "a run leaves as a program of its own",
    "export/base.py": "a run leaves as a program of its own",
    "export/card.py": "a run leaves as a program of its own",
    "export/folder.py": "a run leaves as a program of its own",
    "export/gate.py": "a run leaves as a program of its own",
    "export/hub.py": "a run leaves as a program of its own",
    "export/parts.py": "a run leaves as a program of its own",
    "export/safetensors.py": "a run leaves as a program of its own",
    "models/exported.py": "a run leaves as a program of its own",
    "export/alone.py": "a run leaves as a program of its own",
    "export/aoti.py": "a run leaves as a program of its own",
    "export/onnx.py": "a run leaves as a program of its own",
    "export/opening.py": "a run leaves as a program of its own",
    "export/plan.py": "a run leaves as a program of its own",
    "export/programs.py": "a run leaves as a program of its own",
    "export/sample.py": "a run leaves as a program of its own",
    "export/standalone.py": "a run leaves as a program of its own",
    "export/torch_export.py": "a run leaves as a program of its own",
    "models/runtimes.py": "a run leaves as a program of its own",
    "export/web.py": "a run leaves as a program of its own",
    "export/page.py": "a run leaves as a program of its own",
    "export/diffusers.py": "a run leaves as a program of its own",
    "export/quantize.py": "a run leaves as a program of its own",
    "export/own_pipeline.py": "a run leaves as a program of its own",
    "serving/__init__.py": "a model behind an address",
    "serving/api.py": "a model behind an address",
    "serving/asked.py": "a model behind an address",
    "serving/ballots.py": "a model behind an address",
    "serving/batcher.py": "a model behind an address",
    "serving/door.py": "a model behind an address",
    "serving/figures.py": "a model behind an address",
    "serving/options.py": "a model behind an address",
    "serving/pictures.py": "a model behind an address",
    "serving/program.py": "a model behind an address",
    "serving/served.py": "a model behind an address",
    "serving/service.py": "a model behind an address",
    "serving/source.py": "a model behind an address",
    "cli/verbs/serve.py": "a model behind an address",
    "data/votes.py": "what people say of pictures comes back as data",
    "cli/verbs/votes.py": "what people say of pictures comes back as data",
    "evaluation/catalog.py": "one row a metric",
    "evaluation/families.py": "families of features",
    "evaluation/foreign.py": "torchmetrics is the interface of metrics",
    "evaluation/gallery.py": "data as people have it",
    "evaluation/looks.py": "the report looks at pictures as a person would",
    "evaluation/side.py": "the report looks at pictures as a person would",
    "features/base.py": "an extractor says what it is",
    "features/random_conv.py": "families of features",
    "features/ssl.py": "families of features",
    "cli/build/casting.py": "a cast of any size",
    "cli/build/sources.py": "data as people have it",
    "data/builders/near.py": "data as people have it",
    "cli/config/refusals.py": "one schema",
    "data/builders/listed.py": "data as people have it",
    "data/orientation.py": "color profiles",
    "metrics/infinity.py": "torchmetrics is the interface of metrics",
    "nets/patch.py": "latents: an autoencoder of one's own",
    "data/masks.py": "latents: editing that is trained",
    "data/shardset.py": "rooms: a shard set without Lightning",
    "engine/datamodule.py": "rooms: a shard set without Lightning",
    "engine/hardware.py": "no more than ten arguments",
    "features/clip.py": "rooms: features of their own",
    "features/training.py": "families of features",
    "flat.py": "no record of more than ten fields",
    "files.py": "one place that writes whole or not at all",
    "metrics/shares.py": "torchmetrics is the interface of metrics",
    "metrics/sliced.py": "families of features",
    "metrics/streaming.py": "torchmetrics is the interface of metrics",
    "models/autoencoder.py": "a generator owns its codec",
    "models/fake_score.py": "few-step methods",
    "models/folder.py": "a pipeline's folder is a generator",
    "models/layouts/__init__.py": "a pipeline's folder is a generator",
    "models/layouts/base.py": "a pipeline's folder is a generator",
    "models/layouts/flux.py": "a pipeline's folder is a generator",
    "models/layouts/pixart.py": "a pipeline's folder is a generator",
    "models/layouts/sana.py": "a pipeline's folder is a generator",
    "models/layouts/stable_diffusion.py": "a pipeline's folder is a generator",
    "models/layouts/stable_diffusion_3.py": "a pipeline's folder is a generator",
    "models/layouts/stable_diffusion_xl.py": "a pipeline's folder is a generator",
    "models/pipeline.py": "a pipeline's folder is a generator",
    "cli/build/imagined.py": "a plan before machines are rented",
    "cli/verbs/plan.py": "a plan before machines are rented",
    "engine/buckets.py": "gradients travel while the backward pass goes on",
    "engine/failures.py": "a plan before machines are rented",
    "engine/imagined.py": "a plan before machines are rented",
    "engine/plan.py": "a plan before machines are rented",
    "engine/rehearsal.py": "a plan before machines are rented",
    "engine/muon.py": "what learns photographs fastest",
    "engine/precision.py": "what learns photographs fastest",
    "models/conv_unet.py": "photographs on a CPU",
    "models/uvit.py": "what learns photographs fastest",
    "models/scheduler.py": "knots",
    "models/taps.py": "few-step methods",
    "models/parts.py": "a run opens without us",
    "nets/autoencoder.py": "the article's own objective",
    "objectives/anchor.py": "methods on a screen",
    "engine/scored.py": "little data: the adversary overfits first",
    "engine/patience.py": "learning from little: a run ends at its best",
    "nets/spectral.py": "learning from little: an adversary that does not overfit",
    "cli/verbs/synthesize.py": "learning from oneself: images of a run to train on",
    "evaluation/synthesis.py": "learning from oneself: images of a run to train on",
    "cli/build/robust.py": "robustness, measured",
    "evaluation/disturbed.py": "robustness, measured",
    "evaluation/robustness.py": "robustness, measured",
    "objectives/continual.py": "learning again: new images without forgetting the old",
    "objectives/robust.py": "robustness, trained",
    "cli/verbs/update.py": "learning again: new images without forgetting the old",
    "cli/build/weaker.py": "guidance by a weaker model, found again by its record",
    "cli/build/prompts.py": "learning again: captions whose own images keep what was learned",
    "cli/verbs/continual.py": "learning again: tasks one after the other, by one command",
    "evaluation/tasks.py": "learning again: tasks one after the other",
    "evaluation/overfitting.py": "learning from little: the gap and the copies in one plot",
    "objectives/augmentation.py": "learning from little: an adversary that does not overfit",
    "objectives/article.py": "the article's own objective",
    "objectives/balance.py": "adversarial flow models",
    "objectives/cafm.py": "an adversary on the velocity",
    "objectives/distill.py": "few-step methods",
    "objectives/fd_loss.py": "how a score is gamed",
    "objectives/jumps.py": "methods on a screen",
    "objectives/matching.py": "few-step methods",
    "objectives/meanflow.py": "few-step methods",
    "objectives/mismatch.py": "methods on a screen",
    "objectives/penalty.py": "methods on a screen",
    "objectives/phases.py": "methods on a screen",
    "objectives/post_training.py": "few-step methods",
    "objectives/pulse.py": "a run that teaches nothing says so",
    "objectives/ratio.py": "few-step methods",
    "objectives/starts.py": "few-step methods",
    "objectives/warm.py": "methods on a screen",
    "process/knots.py": "knots",
    "sampling/plms.py": "knots",
    "sampling/model.py": "a run opens without us",
    "sampling/settings.py": "one class of sampling settings",
    "spec.py": "a run opens without us",
    "cli/verbs/launch.py": "a run that a scheduler restarts",
    "cli/runs/watched.py": "a page that lives while runs do",
    "cli/verbs/watch.py": "a page that lives while runs do",
    "cli/verbs/compress.py": "a smaller net, taught by the uncut one",
    "models/cut.py": "a smaller net, taught by the uncut one",
    "objectives/imitation.py": "a smaller net, taught by the uncut one",
    "tuning/pruning.py": "a smaller net, taught by the uncut one",
    "cli/verbs/ask.py": "a run that hears",
    "engine/requests.py": "a run that hears",
    "cli/verbs/promote.py": "the better model takes over",
    "evaluation/pointer.py": "the better model takes over",
    "evaluation/promotion.py": "the better model takes over",
    "cli/verbs/merge.py": "adapters into weights, runs into one",
    "export/embedding.py": "what a part of a net learned, for other tools",
    "export/kohya.py": "what a part of a net learned, for other tools",
    "export/lora.py": "what a part of a net learned, for other tools",
    "models/trained.py": "a run is the base of a tuning",
    "models/words.py": "new words",
    "objectives/preserved.py": "a few images of one thing",
    "tuning/__init__.py": "which weights move",
    "tuning/base.py": "which weights move",
    "tuning/files.py": "which weights move",
    "tuning/full.py": "which weights move",
    "tuning/lora.py": "which weights move",
    "tuning/low.py": "which weights move",
    "tuning/merge.py": "which weights move",
    "tuning/textual_inversion.py": "which weights move",
    "tuning/written.py": "which weights move",
}
"""Files that are new since checkpoint version 2, with what wanted them; `STATEMENTS` bounds all others."""
OPTIONS = ["cli/config/[!_]*.py"]
NO_OPTIONS = ("settings.py", "older.py")
"""All that reads, checks, lists, completes or describes options: without annotations, at constructors or of
the configuration's own options, and without how stored ones are migrated."""

TREES = {path.relative_to(SOURCE).as_posix(): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}
NODES = {name: list(ast.walk(ast.parse(text))) for name, text in TREES.items()}


def test_statements() -> None:
    count = {name: sum(isinstance(node, ast.stmt) for node in nodes) for name, nodes in NODES.items()}
    print("\nstatements by package:", packages(count))
    print(f"\nstatements in all: {sum(count.values())}, of them in new files:")
    for name, why in NEW.items():
        assert name in count, f"{name} is gone: strike it from NEW"
        print(f"  {count.pop(name):5} {name}: {why}")
    at_most("statements in files that there were", sum(count.values()), STATEMENTS)


def test_what_reads_and_checks_options() -> None:
    files = [path for pattern in OPTIONS for path in SOURCE.glob(pattern) if path.name not in NO_OPTIONS]
    found = {path: path.read_text().count("\n") for path in files}
    told = [f"{path.name} ({count})" for path, count in sorted(found.items(), key=lambda item: -item[1])]
    at_most("lines about options", sum(found.values()), OPTION_LINES, told)


def test_six_files_at_most_lie_directly_in_cli() -> None:
    found = [path.name for path in sorted((SOURCE / "cli").glob("*.py"))]
    at_most("files directly in cli/", len(found), 6, found)


def test_functions_are_at_most_45_lines_long() -> None:
    found = [f"{name}: {node.name} ({lines(node)})" for name, node in functions() if lines(node) > 45]
    at_most("functions of more than 45 lines", len(found), LONG, found)


def test_what_takes_more_than_ten_arguments() -> None:
    found = {f"{name}: {owner}": count for name, owner, count in arguments() if count > 10}
    told = [f"{name} ({count})" for name, count in sorted(found.items(), key=lambda item: -item[1])]
    at_most("more than ten arguments or fields", len(found), len(WIDE), told)
    assert set(found) <= WIDE
    at_most("the most arguments", max(found.values(), default=0), WIDEST, told[:1])


@pytest.mark.parametrize(
    ("names", "ceiling"), [(("getattr", "hasattr"), PROBES), (("isinstance",), ISINSTANCE)], ids=str
)
def test_probes(names: tuple[str, ...], ceiling: int) -> None:
    found = {
        name: sum(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
            for node in nodes
        )
        for name, nodes in NODES.items()
    }
    told = [f"{name} ({count})" for name, count in sorted(found.items(), key=lambda item: -item[1]) if count]
    at_most(" and ".join(names), sum(found.values()), ceiling, told[:12])


def test_files_are_at_most_400_lines_long() -> None:
    found = [f"{name} ({text.count(chr(10))})" for name, text in TREES.items() if text.count("\n") > 400]
    at_most("files of more than 400 lines", len(found), LONG_FILES, found)


def at_most(what: str, count: int, ceiling: int, told: list[str] | None = None) -> None:
    """The row of the table, and the ceiling that it stays below."""
    print(f"\n{what}: {count} (at most {ceiling}) {'; '.join(told or ())}")
    assert count <= ceiling, f"{what}: {count}, at most {ceiling}: {'; '.join(told or ())}"


def packages(count: dict[str, int]) -> str:
    totals: dict[str, int] = {}
    for name, number in count.items():
        package = name.split("/")[0].removesuffix(".py")
        totals[package] = totals.get(package, 0) + number
    return ", ".join(f"{name} {number}" for name, number in sorted(totals.items(), key=lambda item: -item[1]))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, nodes in NODES.items():
        yield from (
            (name, node) for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def arguments() -> Iterator[tuple[str, str, int]]:
    """(file, function or class, how many parameters or fields); __init__ goes by its class."""
    classes = {
        node.name: node for nodes in NODES.values() for node in nodes if isinstance(node, ast.ClassDef)
    }

    def fields(node: ast.ClassDef) -> int:
        bases = [classes[ast.unparse(base)] for base in node.bases if ast.unparse(base) in classes]
        return sum(isinstance(part, ast.AnnAssign) for part in node.body) + sum(map(fields, bases))

    for name, nodes in NODES.items():
        owners = {
            id(part): node.name for node in nodes if isinstance(node, ast.ClassDef) for part in node.body
        }
        for node in nodes:
            if isinstance(node, ast.ClassDef) and any(
                "dataclass" in ast.dump(d) for d in node.decorator_list
            ):
                yield name, node.name, fields(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                owner = owners.get(id(node), "")
                called = owner if node.name == "__init__" else f"{owner}.{node.name}".lstrip(".")
                yield name, called, sum(argument.arg not in ("self", "cls") for argument in given)
