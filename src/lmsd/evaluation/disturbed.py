"""Disturbances of a generator's inputs, each with one strength r; r = 0 disturbs nothing.

noise     x_t + δ at a knot,  ‖δ‖ = r √D σ_t, random                       x_t of held-out images
attack    the same norm, δ raises ‖x̂_0(x_t + δ) − x_0‖² (projected gradient ascent, Madry et al. 2018)
start     x_T ← √(1 − r²) x_T + r σ_T n: noise again, so it shows what noise decides, and no error
code      c + r ‖c‖/√d n: the text's code (arXiv 2405.20494, CEP)
typing    r letters of a caption are replaced, doubled, dropped or swapped with the next one
order     r pairs of neighboring words change places
"""

import torch
from torch import Tensor

from lmsd.process.gaussian import Process
from lmsd.rng import Rng
from lmsd.types import Cond, Denoise

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ASCENTS = 5
"""Steps of the attack."""


def length_of(x: Tensor) -> Tensor:
    """‖x‖ of each sample, [B, 1, ...]."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return length.view(-1, *[1] * (x.ndim - 1))


def toward(direction: Tensor, norm: Tensor | float) -> Tensor:
    """The direction of each sample at a given norm; a zero direction stays zero."""
    return norm * direction / length_of(direction).clamp(min=torch.finfo(direction.dtype).tiny)


def radius(process: Process, t: Tensor, like: Tensor, strength: float) -> Tensor:
    """The norm r √D σ_t, [B, 1, ...]."""
    _, sigma = process.alpha_sigma(t, like)
    norm: Tensor = sigma * (strength * float(like[0].numel()) ** 0.5)
    return norm


def noise(x_t: Tensor, rng: Rng, norm: Tensor) -> Tensor:
    """x_t + δ with a random δ of that norm."""
    return x_t + toward(rng.normal(x_t.shape[1:], "disturb.noise").to(x_t), norm)


@torch.enable_grad()
def attack(denoise: Denoise, x_t: Tensor, t: Tensor, x_0: Tensor, rng: Rng, norm: Tensor) -> Tensor:
    """x_t + δ with a δ of at most that norm that makes x̂_0 worse; it begins at a small random one."""
    delta = toward(rng.normal(x_t.shape[1:], "disturb.attack").to(x_t), norm / ASCENTS)
    for _ in range(ASCENTS):
        delta = delta.detach().requires_grad_()
        error = (denoise(x_t + delta, t) - x_0).square().sum()
        (slope,) = torch.autograd.grad(error, delta)
        delta = delta.detach() + toward(slope, 2.5 * norm / ASCENTS)
        long = length_of(delta)
        delta = delta * torch.where(long > norm, norm / long.clamp(min=torch.finfo(long.dtype).tiny), 1.0)
    return x_t + delta.detach()


def start(x: Tensor, rng: Rng, scale: float, strength: float) -> Tensor:
    """√(1 − r²) x_T + r σ_T n; scale: σ_T."""
    other = scale * rng.normal(x.shape[1:], "disturb.start").to(x)
    return x * float((1 - strength**2) ** 0.5) + other * strength


def code(cond: Cond, rng: Rng, strength: float) -> Cond:
    """The code with noise of r times its own length, on every token and on what is pooled."""

    def moved(value: Tensor | None, tag: str) -> Tensor | None:
        if value is None:
            return None
        n = rng.normal(value.shape[1:], tag).to(value)
        size: Tensor = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
        shift: Tensor = size * n * (strength / float(value.shape[-1]) ** 0.5)
        return value + shift

    tokens, pooled = moved(cond.tokens, "disturb.tokens"), moved(cond.pooled, "disturb.pooled")
    return Cond(tokens=tokens, mask=cond.mask, pooled=pooled, label=cond.label, image=cond.image)


def typing(caption: str, draw: list[float], errors: int) -> str:
    """A caption with typing errors within its words; draw: three numbers in [0, 1) for each error."""
    letters = list(caption)
    for number in range(errors):
        where, kind, which = draw[3 * number : 3 * number + 3]
        places = [place for place, letter in enumerate(letters) if letter.isalpha()]
        if not places:
            break
        place = places[int(where * len(places))]
        letter = letters[place]
        follower = letters[place + 1] if place + 1 < len(letters) else ""
        if kind < 0.25:
            letters[place] = LETTERS[int(which * len(LETTERS))]
        elif kind < 0.5:
            letters.insert(place, letter)
        elif kind < 0.75 or not follower.isalpha():
            letters.pop(place)
        else:
            letters[place], letters[place + 1] = follower, letter
    return "".join(letters)


def order(caption: str, draw: list[float], swaps: int) -> str:
    """A caption in which neighboring words have changed places; draw: a number in [0, 1) for each swap."""
    words = caption.split()
    for u in draw[:swaps] if len(words) > 1 else ():
        place = int(u * (len(words) - 1))
        words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)
