"""The engine against loops written by hand: same bits, same counts, and who has gradients when."""

import math
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from tiny_run import OBJECTIVES, SEED, Stream, cast_for, engine, players, run, samples
from torch import nn
from torch.optim import SGD, AdamW

from lmsd.checkpoints import KEY
from lmsd.engine.callbacks import Evaluate, Progress
from lmsd.engine.hardware import Hardware
from lmsd.engine.logging import read_metrics
from lmsd.engine.module import Engine
from lmsd.engine.optim import adamw
from lmsd.engine.trainer import fit
from lmsd.errors import UserError
from lmsd.objectives import Adversarial, Denoising
from lmsd.objectives.base import Cast, Objective, trained
from lmsd.process.times import Jumps, Uniform
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Loss, Players, Turn


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"{name} differs by {(a - b).abs().max()}"


def test_denoising_is_bit_equal_to_a_plain_loop(tmp_path: Path) -> None:
    subject = engine("denoising", batches=6)
    run(subject, tmp_path)

    generator = players()["generator"]
    optimizer = AdamW(generator.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    objective = Denoising(Uniform())
    for start in range(0, 48, 8):
        batch = samples(torch.arange(start, start + 8))
        loss = objective.loss(generator, batch, Rng(SEED, batch.position)).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_same(subject.players["generator"], generator)
    assert not torch.equal(next(generator.parameters()), next(players()["generator"].parameters()))


def by_hand(name: str, *, batches: int, autocast: bool = False, clip: float | None = None) -> Players:
    """A GAN loop as one writes it: all gradients on, each turn its own autocast, lr in place."""
    dtype = torch.float32 if autocast else torch.float64
    objective = OBJECTIVES[name]()
    cast = cast_for(objective, dtype=dtype)
    optimizers = {role: adamw(cast[role].parameters(), lr=1e-3) for role in trained(objective.cast)}
    clock = Clock(8 * batches, "generator")
    for start in range(0, 8 * batches, 8):
        batch = samples(torch.arange(start, start + 8), dtype)
        turns = objective.turns(cast, batch, clock, Rng(SEED, batch.position))
        while True:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                turn = next(turns, None)
            if turn is None:
                break
            for role in turn.restart:
                optimizers[role].state.clear()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = turn.loss().value
            optimizer = optimizers[turn.player]
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(cast[turn.player].parameters(), clip)
            middle = torch.tensor(start + 4.0, dtype=torch.float64)
            cosine = 0.5 * (1 + torch.cos(torch.pi * middle / (8 * batches)))
            optimizer.param_groups[0]["lr"] = 1e-3 * (min(1.0, middle / 20) * cosine).item() * turn.rate
            optimizer.step()
            clock.played[turn.player] = clock.played.get(turn.player, 0) + 1
        clock.images += 8
    return cast


def fast(params: list[nn.Parameter]) -> AdamW:
    return adamw(params, lr=1e-3)


@pytest.mark.parametrize(("name", "clip"), [("marginal", 0.5), ("ddgan", None), ("recipe", None)])
def test_adversarial_equals_a_loop_by_hand(tmp_path: Path, name: str, clip: float | None) -> None:
    limits = {"generator": clip, "discriminator": clip}
    makers = {"generator": fast, "discriminator": fast}
    subject = engine(name, optimizers=makers, clip=limits, warmup_images=20, lr_decay="cosine")
    run(subject, tmp_path)
    expected = by_hand(name, batches=6, clip=clip)
    for role, player in expected.items():
        for a, b in zip(subject.roles[role].parameters(), player.parameters(), strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-10, atol=1e-11
            )  # D's bias has only rounding for a gradient


def test_autocast_never_uses_weights_of_before_the_update(tmp_path: Path) -> None:
    """Two turns of D in one batch: autocast would reuse the first one's half-precision copies."""
    makers = {"generator": fast, "discriminator": fast}
    cast = players(dtype=torch.float32, pairing="marginal")
    subject = engine("marginal", players=cast, optimizers=makers, warmup_images=20, lr_decay="cosine")
    data = Stream(8, dtype=torch.float32)
    run(subject, tmp_path, datamodule=data, precision="bf16-mixed")
    expected = by_hand("marginal", batches=6, autocast=True)
    for role, player in expected.items():
        assert_same(subject.roles[role], player)


def test_in_half_precision_rollout_and_learning_see_the_same_policy(tmp_path: Path) -> None:
    """The ratio of both is 1 within 1e-4 at every first update of a batch, at the loop's own autocast."""
    objective = OBJECTIVES["grpo"]()
    subject = engine(objective=objective, players=cast_for(objective, dtype=torch.float32), batches=4)
    objective.held_out = samples(torch.arange(1000, 1006), torch.float32)
    run(subject, tmp_path, datamodule=Stream(8, dtype=torch.float32), precision="bf16-mixed")
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [abs(math.expm1(line["generator/ratio"])) < 1e-4 for line in lines] == [True] * 4
    assert lines[-1]["generator/kl"] > 0


class Watched(Objective):
    """An objective that looks at the players whenever it is its turn to run."""

    def __init__(self, inner: Adversarial) -> None:
        self.inner, self.turns_seen = inner, 0

    @property
    def cast(self) -> Cast:
        return self.inner.cast

    def turns(self, players: Players, batch: Batch, clock: object, rng: Rng) -> Iterator[Turn]:
        everyone = [p for player in players.values() for p in player.parameters()]
        for turn in self.inner.turns(players, batch, clock, rng):  # type: ignore[arg-type]
            assert not torch.is_grad_enabled()
            assert not any(p.requires_grad for p in everyone)

            def loss(turn: Turn = turn) -> Loss:
                assert torch.is_grad_enabled()
                for role, player in players.items():
                    assert all(p.requires_grad == (role == turn.player) for p in player.parameters())
                return turn.loss()

            yield Turn(turn.player, loss)
            self.turns_seen += 1
            assert all(p.grad is None for p in everyone)


def test_only_the_playing_player_has_gradients(tmp_path: Path) -> None:
    """Looked at between turns, during losses, and when the generator's optimizer steps."""
    subject: Engine
    steps = []

    class Looking(SGD):
        def step(self, closure: object = None) -> None:
            steps.append([p.grad is None for p in subject.players["discriminator"].parameters()])
            assert all(p.grad is not None for group in self.param_groups for p in group["params"])
            super().step()

    objective = Watched(Adversarial(Jumps(4), d_steps=2))
    makers = {"generator": lambda params: Looking(params, lr=1e-3), "discriminator": adamw}
    subject = engine(objective=objective, optimizers=makers, batches=3)
    run(subject, tmp_path)
    assert objective.turns_seen == 3 * 3
    assert len(steps) == 3
    assert all(all(absent) for absent in steps)
    assert all(p.requires_grad for p in subject.players.parameters())  # as they were found


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "fd_loss"])
def test_accumulation_equals_the_large_batch(tmp_path: Path, name: str) -> None:
    """K = 4, cut by the engine or handed over in pieces by the loader, against K = 1."""
    whole, pieces, loaded = (
        engine(name, optimizers=plain(name), batches=2, micro_batches=k) for k in (1, 4, 4)
    )
    run(whole, tmp_path / "1")
    run(pieces, tmp_path / "4")
    run(loaded, tmp_path / "4-loaded", loader_pieces=4)
    assert loaded.clock == pieces.clock == whole.clock
    assert loaded.trainer.global_step == whole.trainer.global_step == 2
    assert_same(pieces.players, loaded.players)
    for a, b in zip(whole.players.parameters(), pieces.players.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_moments_of_whole_batches_refuse_accumulation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fd_loss: a distance of whole batches .* set micro_batches=1"):
        run(engine("fd_loss", batches=2, micro_batches=2), tmp_path)


def plain(name: str) -> dict[str, object]:
    """SGD, whose step is the gradient itself: Adam's first steps would show only its sign."""
    return dict.fromkeys(trained(OBJECTIVES[name]().cast), lambda params: SGD(params, lr=0.05))


@pytest.mark.parametrize("d_steps", [1, 2, 5])
def test_counts_do_not_depend_on_the_discriminator(tmp_path: Path, d_steps: int) -> None:
    subject = engine(objective=Adversarial(Jumps(4), d_steps=d_steps), batches=4, lr_decay="cosine")
    trainer = run(subject, tmp_path)
    assert (subject.clock.images, subject.clock.updates, trainer.global_step) == (32, 4, 4)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["images"], line["updates"]) for line in lines] == [(8, 1), (16, 2), (24, 3), (32, 4)]
    assert [line["discriminator/updates"] for line in lines] == [d_steps * k for k in (1, 2, 3, 4)]
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt"))
    assert names == ["step_000000016.ckpt", "step_000000024.ckpt", "step_000000032.ckpt"]
    assert lines[-1]["generator/lr"] == pytest.approx(
        2e-4 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 7 / 8)))
    )


class Poisoned(Adversarial):
    """The discriminator's loss is NaN on the second batch."""

    def turns(self, players: Players, batch: Batch, clock: object, rng: Rng) -> Iterator[Turn]:
        for turn in super().turns(players, batch, clock, rng):  # type: ignore[arg-type]
            poisoned = turn.player == "discriminator" and bool((batch.position == 8).any())

            def loss(turn: Turn = turn, poisoned: bool = poisoned) -> Loss:
                found = turn.loss()
                return Loss(found.value * float("nan"), found.logs) if poisoned else found

            yield Turn(turn.player, loss)


@pytest.mark.parametrize("optimizer", [adamw, lambda params: SGD(params, lr=0.1, momentum=0.9)])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(tmp_path: Path, optimizer: object) -> None:
    kept: list[list[torch.Tensor]] = []

    class Keeping(Poisoned):
        def turns(self, players: Players, batch: Batch, clock: object, rng: Rng) -> Iterator[Turn]:
            kept.append([p.clone() for p in players["discriminator"].parameters()])
            yield from super().turns(players, batch, clock, rng)

    makers = {"generator": optimizer, "discriminator": optimizer}
    subject = engine(objective=Keeping(Jumps(4)), optimizers=makers, batches=4, clip={"discriminator": 1.0})
    run(subject, tmp_path)
    kept.append(list(subject.players["discriminator"].parameters()))
    moved = [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(kept)]
    assert moved == [True, False, True, True]
    assert all(p.isfinite().all() for p in subject.players.parameters())
    skipped = [line["discriminator/skipped"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert skipped == [0.0, 1.0, 0.0, 0.0]
    assert subject.clock.updates == 4


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    ours, theirs = engine(batches=2, gradient_checkpointing=True), engine(batches=2)
    run(ours, tmp_path / "checkpointed")
    run(theirs, tmp_path / "plain")
    assert ours.players["generator"].net.model.gradient_checkpointing
    assert_same(ours.players, theirs.players)


def test_any_state_that_dropout_draws_from_is_a_function_of_the_images(tmp_path: Path) -> None:
    def dropping() -> Players:
        cast = players()
        cast["generator"].net = nn.ModuleDict({"inner": cast["generator"].net, "drop": nn.Dropout(0.5)})
        inner = cast["generator"].net
        inner.forward = lambda x, *rest: inner["drop"](inner["inner"](x, *rest))  # type: ignore[method-assign]
        return cast

    ours, theirs = engine("denoising", players=dropping()), engine("denoising", players=dropping())
    run(ours, tmp_path / "a")
    torch.rand(7)
    run(theirs, tmp_path / "b")
    assert_same(ours.players, theirs.players)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": {"generator": adamw}}, "'discriminator' has no optimizer"),
        ({"optimizers": {"generator": adamw, "discriminator": adamw, "critic": adamw}}, "critic"),
        ({"clip": {"gen": 1.0}}, "gen"),
        ({"players": {"net": nn.Linear(1, 1)}}, "'discriminator' and the players are"),
        ({"ema": {"critic": (10,)}}, "critic"),
        ({"players": {"generator": nn.Linear(1, 1)}}, "'discriminator'"),
        ({"players": dict.fromkeys(("generator", "discriminator"), nn.Linear(1, 1))}, "share"),
        ({"ema": (10, 10)}, "distinct"),
        ({"total_images": 0}, "images=0"),
        ({"micro_batches": 0}, "micro_batches=0"),
        ({"lr_decay": "linear"}, "'linear'"),
        ({"gradient_checkpointing": True, "players": {**players(), "generator": nn.Linear(1, 1)}}, "Linear"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        engine(**options)  # type: ignore[arg-type]


def test_compile_is_for_nets_and_leaves_averages_alone(tmp_path: Path) -> None:
    subject = engine("ddgan", compile=True, ema=(8,))
    compiled = {name for name, module in subject.named_modules() if module._compiled_call_impl is not None}
    assert compiled == {"players.generator.net", "players.discriminator.trunk"}
    with pytest.raises(UserError, match="kind=fd"):  # exact R1 needs what compiled code has not
        run(subject, tmp_path)


@pytest.mark.slow
def test_compiled_nets_train_as_plain_ones_do(tmp_path: Path) -> None:
    """To 1e-6, where Adam moves every weight by 6e-4: sines of times in float32 differ in the last bit."""
    ours, theirs = engine(batches=3, compile=True), engine(batches=3)
    run(ours, tmp_path / "compiled")
    run(theirs, tmp_path / "plain")
    for a, b in zip(ours.players.parameters(), theirs.players.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    start = players()["generator"].parameters()
    moved = max(
        (a - b).abs().max() for a, b in zip(ours.players["generator"].parameters(), start, strict=True)
    )
    assert moved > 1e-4


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_speed_losses_and_time_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    run(engine(batches=3), tmp_path, callbacks=[Progress(seconds=0.0)])
    shown = capfd.readouterr().err
    assert "24/24" in shown
    assert re.search(r"\d+ images/s +discriminator \d\S* +generator \d\S* +\d+\.\d GiB +0:00 left", shown)
    assert ("8/24 images" in shown) is not terminal  # lines in a file, one bar on a terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_the_bar_shows_what_holds_training_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    from lmsd.cli.build.validate import shown

    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("COLUMNS", "160")

    def score(subject: Engine) -> dict[str, float]:
        told = shown(subject)
        assert told is not None
        told(1_000, 2_000, "sampling")
        time.sleep(0.5 if terminal else 0.0)  # a bar is drawn four times a second
        return {"val/fd": 1.0}

    evaluation = Evaluate(score, every_images=16)
    run(engine(batches=3), tmp_path, callbacks=[evaluation, Progress(seconds=0.0)])
    assert "sampling 1,000/2,000" in capfd.readouterr().err


def test_runs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bf16-mixed"):
        run(engine(), tmp_path, precision="16-mixed")
    with pytest.raises(UserError, match="1 devices x 3 micro-batches: take a multiple of 3"):
        run(engine(micro_batches=3), tmp_path)
    with pytest.raises(UserError, match=r"LightningDataModule has no advance"):
        run(engine(), tmp_path, datamodule=LightningDataModule())
    with pytest.raises(UserError, match="4 images on each of 1 ranks"):
        fit(engine(), Stream(4), run_dir=tmp_path, hardware=Hardware(accelerator="cpu"))


def test_unequal_scripts_are_an_error(tmp_path: Path) -> None:
    class Uneven(Denoising):
        def turns(self, players: Players, batch: Batch, clock: object, rng: Rng) -> Iterator[Turn]:
            if not (batch.position == 0).any():
                yield from super().turns(players, batch, clock, rng)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="different turns"):
        run(engine(objective=Uneven(Uniform()), micro_batches=2), tmp_path)


def test_frozen_players_stay_as_they_are(tmp_path: Path) -> None:
    """A net that no optimizer names is a reference: played with, never moved."""
    cast = {**players(), "reference": players()["generator"]}
    subject = engine("denoising", players=cast, batches=2)
    run(subject, tmp_path)
    assert_same(cast["reference"], players()["generator"])
    assert_same(cast["discriminator"], players()["discriminator"])


def test_what_another_program_or_another_cast_wrote_is_no_run_to_go_on_with() -> None:
    with pytest.raises(UserError, match="not written by lmsd: use init_from="):
        engine().on_load_checkpoint({"state_dict": {}})
    with pytest.raises(UserError, match=r"players are \['generator', 'fake'\] and this run's .*'generator'"):
        engine().on_load_checkpoint({KEY: {"players": ["generator", "fake"]}})
