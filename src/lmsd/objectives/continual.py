"""Learning on without forgetting: new images, and what keeps the generator near what it could.

    L = L_method(new) + λ K,     θ* the weights that the run began with (`init_from=`)

    replay    K = E ‖x̂_θ(x_t) − x̂_θ*(x_t)‖²/D       x_t of θ*'s own images of the old prompts: its own
                                                     answer is the target, not the image (distillation)
    l2        K = ½ ‖θ − θ*‖²
    ewc       K = ½ Σ F_i (θ_i − θ*_i)²              F = E_n g_n², g_n the gradient of sample n's loss at θ*,
                                                     over the mean of all F (Kirkpatrick et al. 2017)
    rank1     K = ½ (μ·(θ − θ*))²                    μ = E_n g_n, of length 1: gradients at low SNR are
                                                     nearly collinear (arXiv 2509.23593)

The square of a batch's mean gradient would be near F/B, not F: gradients are taken sample by sample. Own
images, and what is computed from them, are a function of θ* and the seed, so nothing has to be stored. A
reservoir of real old images is a second source: `data.shards=[NEW, OLD] data.weights=[0.7, 0.3]`.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import Count, Measure, one_of
from lmsd.models.generator import Generator
from lmsd.objectives.base import Cast, Objective, Part, generator_of, latent, mean_square, standard_normal
from lmsd.objectives.denoising import Denoising
from lmsd.objectives.preserved import LOSS, Preserved
from lmsd.rng import Rng, fold
from lmsd.sampling import Sampler, Settings
from lmsd.types import Batch, Loss, Players, Turn

Keep: TypeAlias = Literal["replay", "l2", "ewc", "rank1"]
_UNTRAINED = (
    "objective=continual keeps what a generator has learned, and this one has learned nothing: give its "
    "weights, init_from=RUN@ema"
)


class Continual(Preserved):
    """A method on new images, and what keeps the old ones; see the module.

    method: what learns; keep: K; prompts: of what is to be kept; sampler, settings: how θ* draws own images;
    prior: the law of times and the loss behind F and μ; own: how many own images; weight: λ. Raises UserError
    without prompts.
    """

    def __init__(
        self,
        method: Objective,
        *,
        prompts: Sequence[str],
        sampler: Sampler,
        settings: Settings,
        prior: Denoising,
        keep: Keep = "replay",
        own: Count = 256,
        weight: Measure = 1.0,
    ) -> None:
        one_of("continual", "keep", keep, Keep)
        super().__init__(
            method, prompts=prompts, sampler=sampler, settings=settings, prior=prior, own=own, weight=weight
        )
        self.keep = keep
        self._importance: list[Tensor] | None = None

    @property
    def cast(self) -> Cast:
        """The method's, and θ*, which draws and answers."""
        return {**self.method.cast, "base": Part(trained=False, like="generator", needs=_UNTRAINED)}

    def _loss(self, turn: Turn, players: Players, own: Batch, rng: Rng) -> Loss:
        first, generator, base = turn.loss(), generator_of(players), generator_of(players, "base")
        if self.keep == "replay":
            kept = self.replayed(generator, base, own, rng)
        else:
            kept = self.near(generator, base, int(rng.seed))
        return Loss(first.value + self.weight * kept, {**first.logs, "kept": kept.detach()})

    def replayed(self, generator: Generator, base: Generator, own: Batch, rng: Rng) -> Tensor:
        """E ‖x̂_θ(x_t) − x̂_θ*(x_t)‖²/D on own images."""
        t = self.prior.times(rng, generator.process)
        x_t = generator.process.noise(own.x, t, standard_normal(rng, own.x, "eps"))
        z = latent(generator, rng, own.x)
        with torch.no_grad():
            target = base(x_t, t, base.condition(own), z)
        return mean_square(generator(x_t, t, generator.condition(own), z) - target).mean()

    def near(self, generator: Generator, base: Generator, seed: int) -> Tensor:
        """K of the weights: l2, ewc or rank1."""
        pairs = zip(generator.parameters(), base.parameters(), strict=True)
        moved = [new - old.detach() for new, old in pairs if new.requires_grad]
        if self.keep == "l2":
            return 0.5 * _total(each.square().sum() for each in moved)
        if self._importance is None:
            names = [name for name, p in generator.named_parameters() if p.requires_grad]
            self._importance = self.importance(base, names, seed)
        both = zip(self._importance, moved, strict=True)
        if self.keep == "ewc":
            return 0.5 * _total((weight * each.square()).sum() for weight, each in both)
        return 0.5 * _total((weight * each).sum() for weight, each in both).square()

    def importance(self, base: Generator, names: Sequence[str], seed: int) -> list[Tensor]:
        """F (ewc) or μ (rank1) of these parameters of θ*, each in their shape."""
        assert self._images is not None
        own = [p for name, p in base.named_parameters() if name in set(names)]
        sums = [torch.zeros_like(p) for p in own]
        for place in range(self.own):
            grads = self._gradient(base, own, place, seed)
            for total, grad in zip(sums, grads, strict=True):
                total += grad.square() if self.keep == "ewc" else grad
        if self.keep == "ewc":
            size = sum(total.numel() for total in sums)
            scale = _total(total.sum() for total in sums) / size
        else:
            scale = _total(total.square().sum() for total in sums).sqrt()
        return [total / scale.clamp(min=torch.finfo(scale.dtype).tiny) for total in sums]

    @torch.enable_grad()
    def _gradient(
        self, base: Generator, own: list[torch.nn.Parameter], place: int, seed: int
    ) -> list[Tensor]:
        """The gradient of one own image's loss at θ*."""
        assert self._images is not None
        position = torch.tensor([place], device=self._images.device)
        text = [self.prompts[place % len(self.prompts)]]
        batch = Batch(self._images[place : place + 1], position, text=text)
        for parameter in own:
            parameter.requires_grad_(True)
        try:
            loss = self.prior.loss(base, batch, Rng(int(fold(seed, LOSS).item()), position)).value
            grads = torch.autograd.grad(loss, own, allow_unused=True)
        finally:
            for parameter in own:
                parameter.requires_grad_(False)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(own, grads, strict=True)]


def _total(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
