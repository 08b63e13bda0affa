"""Every option of `lmsd train`, changed alone to a value that must matter.

    OTHER      weights, averages, moments, counts or metrics are others
    SAME       all of them are equal to the last bit; what changes is speed, memory, the screen or a place
    RECORD     tensors and metrics are equal, and what the option is for is written down
    NOTHING    nothing is trained or written
    REFUSED    one sentence

A run is compared with one that differs in nothing else, by what `lmsd verify-resume` compares.
"""

import shlex
import shutil
from pathlib import Path

import pytest
from tiny_home import TINY, Home, spoken

from lmsd import cli
from lmsd.cli.config.listing import listing
from lmsd.cli.verbs.verify_resume import differences

OTHER, SAME, RECORD, NOTHING, REFUSED = "other", "same", "record", "nothing", "refused"
BASE = [
    *(word for word in TINY if not word.startswith(("evaluate.n=", "images=", "checkpoint_every="))),
    "data.shards=data/shapes",
    "images=256",
    "objective.warmup=0.25",
    "objective.head_start=0.25",
    "optim.warmup_images=64",
    "evaluate.n=0",
]
SCORED = "evaluate.n=24 evaluate.every=0 evaluate.at_start=false"
"""What options of evaluation are changed from."""

FIXED = "objective.game.penalty.augment.strength=fixed objective.game.penalty.augment.p=1"
SIGN = "objective.game.penalty.augment.strength=sign objective.game.penalty.augment.p=0.5 transforms=[mirror]"
"""An augmentation that acts, and one that adapts."""

TABLE = {
    "transforms": (f"{FIXED} transforms=[mirror]", OTHER),
    "patience": ("patience=3", SAME),
    "data.weights": ("data.weights=[1,1]", REFUSED),
    "discriminator.spectral": ("discriminator.spectral=true", OTHER),
    "objective.game.penalty.augment.strength": ("objective.game.penalty.augment.strength=fixed", REFUSED),
    "objective.game.penalty.augment.transforms": (
        f"{FIXED} objective.game.penalty.augment.transforms=[mirror]",
        OTHER,
    ),
    "objective.game.penalty.augment.p": (
        f"{FIXED} transforms=[mirror] objective.game.penalty.augment.p=0.5",
        OTHER,
    ),
    "objective.game.penalty.augment.target": (f"{SIGN} objective.game.penalty.augment.target=0.1", OTHER),
    "objective.game.penalty.augment.span": (f"{SIGN} objective.game.penalty.augment.span=10", OTHER),
    "objective.game.penalty.augment.most": (f"{SIGN} objective.game.penalty.augment.most=0.6", OTHER),
    "objective.game.penalty.augment.pixels": (
        f"{FIXED} transforms=[shift] objective.game.penalty.augment.pixels=3",
        OTHER,
    ),
    "objective.game.penalty.augment.background": (
        f"{FIXED} transforms=[shift] objective.game.penalty.augment.background=1",
        OTHER,
    ),
    "objective.game.penalty.augment.consistency": (
        f"{FIXED} transforms=[mirror] objective.game.penalty.augment.consistency=1",
        OTHER,
    ),
    "name": ("name=mine", SAME),
    "source": ("source='make data'", SAME),
    "seed": ("seed=1", OTHER),
    "images": ("images=128", OTHER),
    "batch_size": ("batch_size=64", OTHER),
    "micro_batches": ("micro_batches=2", OTHER),
    "precision": ("precision=bf16-mixed", OTHER),
    "devices": ("devices=3", REFUSED),
    "num_nodes": ("num_nodes=3", REFUSED),
    "fsdp": ("fsdp=true", REFUSED),
    "accelerator": ("accelerator=cuda", REFUSED),
    "compile": ("compile=true", REFUSED),  # without a compiler in PATH
    "checkpointing": ("checkpointing=true", None),
    "threads": ("threads=1", SAME),
    "run_dir": ("run_dir=outputs/elsewhere", SAME),
    "resume": ("resume=nowhere", REFUSED),
    "extend": ("extend=nowhere", REFUSED),
    "dry": ("dry=true", NOTHING),
    "profiler": ("profiler=simple", SAME),
    "init_from": ("init_from=outputs/first", OTHER),
    "log_every": ("log_every=64", OTHER),
    "checkpoint_every": ("checkpoint_every=32", SAME),
    "checkpoint_async": ("checkpoint_async=false", SAME),
    "keep": ("keep=1 checkpoint_every=32", SAME),
    "keep_every": ("keep_every=64 checkpoint_every=32", SAME),
    "hang_seconds": ("hang_seconds=0", SAME),
    "steps": ("steps=2", OTHER),
    "data.shards": ("data.shards=nowhere", REFUSED),
    "data.image_size": ("data.image_size=8", OTHER),
    "data.channels": ("data.channels=1", OTHER),
    "data.val": ("data.val=nowhere", REFUSED),
    "data.test": ("data.test=nowhere", REFUSED),
    "data.caption_key": ("data.caption_key=text", REFUSED),
    "data.captions": ("data.captions=first", SAME),  # captions here are of one line; tests/data has others
    "data.decode": ("data.decode=old", RECORD),  # these pictures have no profile; tests/data has others
    "data.cache.folder": ("data.cache.folder=kept", SAME),
    "data.cache.gigabytes": ("data.cache.gigabytes=1", SAME),
    "data.images": ("data.images=[]", SAME),  # these shards have none; test_autoencoder_runs has some
    "data.train.latents": ("data.train.latents=nowhere", REFUSED),
    "data.train.first": ("data.train.first=16", OTHER),
    "data.train.buckets": ("data.train.buckets=8", REFUSED),  # of a method that takes squares alone
    "data.train.window": ("data.train.window=1", None),
    "data.train.flip": ("data.train.flip=true", OTHER),
    "data.train.color": ("data.train.color=0.5", OTHER),
    "data.train.num_workers": ("data.train.num_workers=0", SAME),
    "data.train.memory_gb": ("data.train.memory_gb=0", SAME),
    "data.train.on_error": ("data.train.on_error=stop", OTHER),  # data/substituted is not logged
    "data.train.on_change": ("data.train.on_change=new_epoch", SAME),
    "schedule.steps": ("schedule.steps=8", OTHER),
    "schedule.on_vanish": ("schedule.on_vanish=error", None),
    "conditioner.dim": ("conditioner.dim=32", OTHER),
    "conditioner.vocab": ("conditioner.vocab=600", OTHER),
    "conditioner.layers": ("conditioner.layers=2", OTHER),
    "conditioner.heads": ("conditioner.heads=4", OTHER),
    "conditioner.length": ("conditioner.length=8", OTHER),
    "conditioner.std": ("conditioner.std=0.5", OTHER),
    "net.width": ("net.width=24", OTHER),
    "net.depth": ("net.depth=2", OTHER),
    "net.hidden": ("net.hidden=2", OTHER),
    "net.time_dim": ("net.time_dim=32", OTHER),
    "generator.prediction": ("generator.prediction=x0", OTHER),
    "generator.z_dim": ("generator.z_dim=4", OTHER),
    "generator.sees": ("generator.sees=source", REFUSED),  # the objective shows it none
    "generator.precondition": ("generator.precondition=edm", REFUSED),
    "generator.sigma_data": ("generator.sigma_data=2", REFUSED),
    "tuning.modules": ("tuning.modules=[layers]", REFUSED),  # of a generator that begins at random
    "tuning.text": ("tuning.text=['*']", REFUSED),
    "discriminator.trunk.width": ("discriminator.trunk.width=24", OTHER),
    "discriminator.trunk.depth": ("discriminator.trunk.depth=2", OTHER),
    "discriminator.trunk.time_dim": ("discriminator.trunk.time_dim=32", OTHER),
    "discriminator.trunk.cond_dim": ("discriminator.trunk.cond_dim=8", OTHER),
    "discriminator.heads": ("discriminator.heads=2", OTHER),
    "sampler.tau": (f"sampler.tau=0.5 {SCORED}", OTHER),
    "objective.game.jumps.steps": ("objective.game.jumps.steps=2", OTHER),
    "objective.game.jumps.last": ("objective.game.jumps.last=0.5", OTHER),
    "objective.game.pairing": ("objective.game.pairing=marginal", OTHER),
    "objective.game.loss": ("objective.game.loss=nonsaturating", OTHER),
    "objective.game.penalty.kind": ("objective.game.penalty.kind=exact", OTHER),
    "objective.game.penalty.gamma": ("objective.game.penalty.gamma=5", OTHER),
    "objective.game.penalty.sigma": ("objective.game.penalty.sigma=0.5", OTHER),
    "objective.game.penalty.r1": ("objective.game.penalty.r1=false", OTHER),
    "objective.game.penalty.r2": ("objective.game.penalty.r2=false", OTHER),
    "objective.game.penalty.lazy": ("objective.game.penalty.lazy=4", OTHER),
    "objective.game.penalty.center": ("objective.game.penalty.center=1", OTHER),
    "objective.game.anchor.kind": ("objective.game.anchor.kind=energy", OTHER),
    "objective.game.anchor.weight": (
        "objective.game.anchor.kind=mse_kl objective.game.anchor.weight=3",
        OTHER,
    ),
    "objective.game.anchor.kappa": (
        "objective.game.anchor.kind=mse_kl objective.game.anchor.kappa=0.01",
        OTHER,
    ),
    "objective.game.anchor.normalize": (
        "objective.game.anchor.kind=mse_kl objective.game.anchor.normalize=0.9",
        OTHER,
    ),
    "objective.game.mismatch.weight": ("objective.game.mismatch.weight=1", OTHER),
    "objective.game.mismatch.captions": ("objective.game.mismatch.captions=['a red circle']", REFUSED),
    "objective.game.d_steps": ("objective.game.d_steps=2", OTHER),
    "objective.game.bound": ("objective.game.bound=0.1", OTHER),
    "objective.game.caption_dropout": ("objective.game.caption_dropout=0.5", OTHER),
    "objective.game.diversity_every": ("objective.game.diversity_every=1", OTHER),
    "objective.warm.weighting": ("objective.warm.weighting=min_snr", None),
    "objective.warm.caption_dropout": ("objective.warm.caption_dropout=0.9", OTHER),
    "objective.warmup": ("objective.warmup=0.5", OTHER),
    "objective.head_start": ("objective.head_start=0", OTHER),
    "objective.warm_rate": ("objective.warm_rate=3", OTHER),
    "objective.rate": ("objective.rate=3", OTHER),
    "objective.freeze_text": ("objective.freeze_text=true", OTHER),
    "optim.generator.lr": ("optim.generator.lr=1e-3", OTHER),
    "optim.generator.betas": ("optim.generator.betas=[0.5,0.9]", OTHER),
    "optim.generator.weight_decay": ("optim.generator.weight_decay=1", OTHER),
    "optim.generator.fused": ("optim.generator.fused=false", None),
    "optim.generator.eps": ("optim.generator.eps=0.1", OTHER),
    "optim.generator.amsgrad": ("optim.generator.amsgrad=true", OTHER),
    "optim.generator.maximize": ("optim.generator.maximize=true", OTHER),
    "optim.generator.foreach": ("optim.generator.foreach=false", SAME),
    "optim.generator.capturable": ("optim.generator.capturable=true", SAME),
    "optim.generator.differentiable": ("optim.generator.differentiable=true", REFUSED),
    "optim.discriminator.lr": ("optim.discriminator.lr=1e-3", OTHER),
    "optim.discriminator.betas": ("optim.discriminator.betas=[0.5,0.9]", OTHER),
    "optim.discriminator.weight_decay": ("optim.discriminator.weight_decay=1", OTHER),
    "optim.discriminator.fused": ("optim.discriminator.fused=false", None),
    "optim.discriminator.eps": ("optim.discriminator.eps=0.1", OTHER),
    "optim.discriminator.amsgrad": ("optim.discriminator.amsgrad=true", OTHER),
    "optim.discriminator.maximize": ("optim.discriminator.maximize=true", OTHER),
    "optim.discriminator.foreach": ("optim.discriminator.foreach=false", SAME),
    "optim.discriminator.capturable": ("optim.discriminator.capturable=true", SAME),
    "optim.discriminator.differentiable": ("optim.discriminator.differentiable=true", REFUSED),
    "optim.warmup_images": ("optim.warmup_images=0", OTHER),
    "optim.decay": ("optim.decay=constant", OTHER),
    "optim.clip.generator": ("optim.clip.generator=1e-3", OTHER),
    "optim.clip.discriminator": ("optim.clip.discriminator=1e-3", OTHER),
    "optim.ema": ("optim.ema=[128]", OTHER),
    "optim.averages": ("optim.averages={discriminator: [64]}", OTHER),
    "rollback.skipped": ("rollback.skipped=1", SAME),  # a sound run; tests/engine has others
    "rollback.collapsed": ("rollback.collapsed=1", SAME),
    "rollback.at_most": ("rollback.at_most=0", SAME),
    "rollback.max_bad": ("rollback.max_bad=0", SAME),
    "logger.auto": ("logger.auto=false", SAME),
    "callbacks.progress.seconds": ("callbacks.progress.seconds=0", SAME),
    "evaluate.every": (f"{SCORED} evaluate.every=128", OTHER),
    "evaluate.at_start": (f"{SCORED} evaluate.at_start=true", OTHER),
    "evaluate.n": (f"{SCORED} evaluate.n=20", OTHER),
    "evaluate.seeds": (f"{SCORED} evaluate.seeds=[3]", OTHER),
    "evaluate.steps": (f"{SCORED} evaluate.steps=2", OTHER),
    "evaluate.guidance": (f"{SCORED} evaluate.guidance=9", OTHER),
    "evaluate.image_guidance": (f"{SCORED} evaluate.image_guidance=2", REFUSED),  # it sees no image
    "evaluate.interval": (f"{SCORED} evaluate.interval=[0,2]", REFUSED),
    "evaluate.grid": (f"{SCORED} evaluate.grid=2", SAME),  # of pictures
    "evaluate.neighbors": (f"{SCORED} evaluate.neighbors=false", OTHER),
    "evaluate.stop_hacking": (f"{SCORED} evaluate.stop_hacking=1", SAME),  # nothing is rewarded
    "evaluate.checker": (f"{SCORED} evaluate.checker=shapes", OTHER),
    "evaluate.metrics": (
        f"{SCORED} evaluate.metrics.tv._target_=torchmetrics.image.TotalVariation",
        OTHER,
    ),
    "evaluate.extractor.kind": (f"{SCORED} evaluate.extractor.kind=clip", REFUSED),
    "evaluate.extractor.path": (f"{SCORED} evaluate.extractor.path=nowhere", REFUSED),
    "evaluate.extractor.augment": (f"{SCORED} evaluate.extractor.augment=none", OTHER),
    "evaluate.extractor.images": (f"{SCORED} evaluate.extractor.images=128", OTHER),
    "evaluate.families": (
        f"{SCORED} evaluate.families=[random]",
        SAME,
    ),  # val is too small here; tests/evaluation has others
}


def test_the_table_names_every_option() -> None:
    rows = [line.split()[0] for line in listing([]).splitlines() if not line.split()[0].endswith("=")]
    assert set(TABLE) == set(rows)


def merged(base: list[str], changed: str) -> list[str]:
    """Words of a run, with others in the place of those for the same options."""
    words = [changed] if "{" in changed or "['" in changed else shlex.split(changed)
    return list({word.partition("=")[0]: word for word in [*base, *words]}.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_of_train(
    name: str, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, what = TABLE[name]
    base = Path("outputs/options-scored" if SCORED in changed else "outputs/options-base")
    start = merged(BASE, SCORED) if SCORED in changed else BASE
    if not base.is_dir():
        spoken(["train", *start, f"run_dir={base}"])
    if name == "compile":
        for variable in ("CXX", "CC"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("PATH", "")
    folder = Path("outputs/elsewhere" if name == "run_dir" else "outputs/options-changed")
    shutil.rmtree(folder, ignore_errors=True)
    capsys.readouterr()
    code = cli.run(["train", *merged([*start, f"run_dir={folder}"], changed)])
    said = capsys.readouterr().err
    assert code == (2 if what == REFUSED else 0), said
    if what in (REFUSED, NOTHING):
        assert not folder.exists()
        assert what == NOTHING or len([line for line in said.splitlines() if line.startswith("lmsd: ")]) == 1
        return
    found = list(differences(base, folder))
    mattered = [
        line for line in found if " differ" in line or " lines of metrics" in line or "tensors" in line
    ]
    if what == OTHER:
        assert mattered or any("one of the two only" in line for line in found), found
    if what == RECORD:
        assert found
        assert not mattered
    if what == SAME:
        assert not found
