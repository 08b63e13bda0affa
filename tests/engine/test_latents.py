"""Every objective in latents: equal to pixels where it must be; killed and resumed, the unbroken run."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from tiny_run import OBJECTIVES, SHAPE, cast_for, engine, gradient, run, samples

from lmsd.engine.callbacks import Checkpoint
from lmsd.errors import UserError
from lmsd.models.codec import Unshuffle
from lmsd.objectives import Adversarial, Reference
from lmsd.process.times import Jumps
from lmsd.rewards import Function

LATENTS = {"scale": 1.5, "shift": 0.1}


def weights(subject: object) -> dict[str, torch.Tensor]:
    state = subject.state_dict()
    return {name: value.clone() for name, value in state.items() if torch.is_tensor(value)}


def played(name: str, folder: Path, codec: Unshuffle | None, batches: int = 4) -> dict[str, torch.Tensor]:
    objective = OBJECTIVES[name]()
    cast = cast_for(objective, codec=codec)
    subject = engine(objective=objective, players=cast, batches=batches, ema=[16])
    run(subject, folder)
    return weights(subject)


@pytest.mark.filterwarnings("ignore:reward Spotty")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_codec_that_changes_nothing_changes_no_bit(name: str, tmp_path: Path) -> None:
    """Squares of one pixel, scale 1: encoded, bounded and decoded on the way, and yet the run of pixels."""
    pixels = played(name, tmp_path / "pixels", None)
    through = played(name, tmp_path / "through", Unshuffle(1))
    assert pixels.keys() == through.keys()
    assert all(torch.equal(pixels[key], through[key]) for key in pixels)


class Stop(Callback):
    """Ends the run after some batches, as a signal does: with no word to anybody."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: object, module: object, *rest: object) -> None:
        if module.clock.images >= self.after:
            raise KeyboardInterrupt


RESUMED = ["lmsd", "marginal", "afm", "ladd", "meanflow", "cafm", "fd_loss", "grpo", "draft", "nft", "dpo"]
RESUMED += ["f_distill"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_in_latents_is_the_unbroken_run(name: str, tmp_path: Path) -> None:
    def subject() -> object:
        objective = OBJECTIVES[name]()
        return engine(
            objective=objective,
            players=cast_for(objective, codec=Unshuffle(2, **LATENTS)),
            batches=4,
            ema=[16],
        )

    whole = subject()
    run(whole, tmp_path / "whole")
    broken = subject()
    saving = [Checkpoint(every_images=8), Stop(16)]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(broken, tmp_path / "parts", callbacks=saving)
    assert broken.clock.images == 16
    again = subject()
    run(again, tmp_path / "parts", resume_from=tmp_path / "parts")
    assert again.clock.images == whole.clock.images == 32
    ours, theirs = weights(whole), weights(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_in_other_latents_is_refused(tmp_path: Path) -> None:
    played("denoising", tmp_path, Unshuffle(2, **LATENTS))
    objective = OBJECTIVES["denoising"]()
    other = engine(objective=objective, players=cast_for(objective, codec=Unshuffle(2)), batches=8, ema=[16])
    with pytest.raises(UserError, match=r"latents of scale 1\.5, and this run's has 1\.0"):
        run(other, tmp_path, resume_from=tmp_path)


def test_the_discriminator_sees_latents_and_a_reward_images(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def look(images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        seen.append(tuple(images.shape[1:]))
        assert images.abs().max() <= 1.0
        return images.flatten(1).mean(1)

    codec = Unshuffle(2, **LATENTS)
    objective = gradient(Function(look), group=2, reference=Reference(0.1))
    subject = engine(objective=objective, players=cast_for(objective, codec=codec), batches=2)
    run(subject, tmp_path / "rewards")
    assert set(seen) == {SHAPE}

    objective = Adversarial(Jumps(4))
    cast = cast_for(objective, codec=codec)
    judged: list[torch.Tensor] = []
    cast["discriminator"].register_forward_pre_hook(lambda module, inputs: judged.append(inputs[0]))
    run(engine(objective=objective, players=cast, batches=1), tmp_path / "game")
    assert {tuple(x.shape[1:]) for x in judged} == {(4, 2, 2)}
    batch = cast["generator"].encode(samples(torch.arange(4)))
    assert batch.x.shape == (4, 4, 2, 2)
