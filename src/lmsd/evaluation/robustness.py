"""How easily a generator is disturbed: curves over the strength of what disturbs it (`evaluation.disturbed`).

error     ‖x̂_0(x_t + δ) − x_0‖²/D at a knot, δ random or an attack of the same norm
right     share of images that show what was asked for, of the chain that goes on from the disturbed input
moved     ‖φ(x') − φ(x)‖ in features, of images whose noise alone was changed, over that of unrelated noise
drift     at every knot, FD (or KID) between x̂_0 on the model's own x_t and x̂_0 on noised held-out images:
          what the model meets in sampling and what it met in training

Guidance, steps and noise are fixed, and prompts are judged by what the undisturbed caption asks for: typing
errors and another order of the words ask for the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.evaluation import disturbed
from lmsd.evaluation.charts import Curve, draw
from lmsd.evaluation.evaluator import Evaluator, quantized
from lmsd.evaluation.measures import measures
from lmsd.files import write_text
from lmsd.metrics import prompts_score
from lmsd.models.generator import Generator
from lmsd.rng import Rng
from lmsd.sampling import Generation
from lmsd.sampling.guidance import begin, denoisers, walk
from lmsd.sampling.sampler import Level
from lmsd.types import Batch, Cond

RADII = (0.0, 0.05, 0.1, 0.2, 0.4)
STARTS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
CODES = (0.0, 0.25, 0.5, 1.0, 2.0)
ERRORS = (0.0, 1.0, 2.0, 4.0)
_STREAM = 31_607  # a turn of random numbers beside those of sampling
_CHUNK = 250
NAME = "robustness/curves.json"  # not among the records of scores


@dataclass(frozen=True)
class Sweep:
    """One curve: values with 95 % intervals over strengths."""

    kind: str
    what: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def area(self) -> float:
        """∫ y dx over the range of x, divided by it."""
        x, y = torch.tensor(self.x), torch.tensor(self.y)
        return float(torch.trapezoid(y, x) / (x[-1] - x[0]))


@dataclass(frozen=True)
class Subject:
    """A generator as it is sampled, on held-out rows: images and what they ask for.

    right: (images, captions and classes) → bool [n], None where nobody can tell; features: (images) → [n,d].
    """

    generate: Generation
    x_0: Tensor
    batch: Batch
    right: Callable[[Tensor, Batch], Tensor | None]
    features: Callable[[Tensor], Tensor]
    seed: int = 0

    @property
    def net(self) -> Generator:
        """The generator."""
        return self.generate.generator

    @property
    def rng(self) -> Rng:
        """The numbers of ordinary sampling."""
        return Rng(self.seed, self.batch.position)

    @property
    def own(self) -> Rng:
        """The numbers of the disturbances."""
        return self.rng.at(_STREAM)

    def conds(self, batch: Batch | None = None) -> tuple[Cond, Cond | None]:
        """The condition, and the null condition where guidance needs one."""
        batch = batch or self.batch
        everything = torch.ones(len(batch), dtype=torch.bool, device=batch.x.device)
        guided = self.generate.settings.guided
        return self.net.condition(batch), self.net.condition(batch, everything) if guided else None

    @torch.no_grad()
    def finished(self, x: Tensor, cond: Cond, null: Cond | None, *, start: int = 0) -> Tensor:
        """Images of the chain from x at knot `start`, on 256 levels."""
        settings, sampler = self.generate.settings, self.generate.sampler
        for step in walk(
            self.net, cond, null, x, sampler=sampler, settings=settings, rng=self.rng, start=start
        ):
            x = step.x_s
        return quantized(self.net.decode(x.float()).cpu())

    def noise(self) -> Tensor:
        """x_T."""
        return begin(self.net, self.generate.settings, self.rng, self.net.shape, torch.float32)


def subject(scorer: Evaluator, generate: Generation, *, n: int, seed: int) -> Subject:
    """The first n rows of a scorer. Raises UserError for a generator that is shown images."""
    net = generate.generator
    if net.sees != "nothing":
        raise UserError("robustness=true disturbs noise and captions; this run is shown images: leave it out")
    count = min(n, scorer.n)
    batch = scorer.prompts(slice(0, count)).to(net.device)
    images = scorer.held_out.images(scorer.rows[:count]).to(net.device)
    encoded = net.encode(replace(batch, x=images))

    def right(images: Tensor, batch: Batch) -> Tensor | None:
        if scorer.checker is not None and batch.text is not None:
            return torch.as_tensor(scorer.checker(images, batch.text)).bool()
        labels = None if batch.label is None else batch.label.cpu()
        return scorer.extractor.right(scorer.extractor(images)[1], labels, batch.text)

    return Subject(
        generate, encoded.x, replace(encoded, x=batch.x), right, lambda x: scorer.extractor(x)[0], seed
    )


def robustness(one: Subject, *, knot: int | None = None) -> list[Sweep]:
    """All curves; knot: where x_t is disturbed, None: the middle one."""
    net = one.net
    training = net.training
    net.eval()
    try:
        steps = one.generate.settings.steps
        place = steps // 2 if knot is None else knot
        if not 0 <= place < steps:
            raise UserError(f"knot={place}: the chain of steps={steps} has knots 0 to {steps - 1}")
        found = [*at_knot(one, place), *of_start(one), *of_code(one), *of_captions(one), *drift(one)]
    finally:
        net.train(training)
    return found


def at_knot(one: Subject, knot: int) -> list[Sweep]:
    """Noise and attacks of the same norm on x_t of held-out images: errors of x̂_0, and of the images."""
    net, process = one.net, one.net.process
    level = process.schedule.grid(one.generate.settings.steps)[knot]
    t = torch.full((len(one.batch),), level, device=one.x_0.device)
    x_t = process.noise(one.x_0, t, one.own.normal(one.x_0.shape[1:], "disturb.eps").to(one.x_0))
    cond, null = one.conds()
    cond, null = cond.detach(), null if null is None else null.detach()
    at = Level(level, *(float(value[0]) for value in process.schedule.coefficients(t[:1])))
    denoise = denoisers(net, cond, null, one.generate.settings)(at, one.rng.at(knot))
    moving = [parameter for parameter in net.parameters() if parameter.requires_grad]
    errors: dict[str, list[Tensor]] = {"noise": [], "attack": []}
    rights: dict[str, list[Tensor | None]] = {"noise": [], "attack": []}
    for strength in RADII:
        norm = disturbed.radius(process, t, x_t, strength)
        for parameter in moving:
            parameter.requires_grad_(False)
        seen = {
            "noise": disturbed.noise(x_t, one.own, norm),
            "attack": disturbed.attack(denoise, x_t, t, one.x_0, one.own, norm),
        }
        for parameter in moving:
            parameter.requires_grad_(True)
        for kind, x in seen.items():
            with torch.no_grad():
                errors[kind].append((denoise(x, t) - one.x_0).square().flatten(1).mean(1).cpu())
            rights[kind].append(one.right(one.finished(x, cond, null, start=knot), one.batch))
    found = [_sweep(kind, f"error of x̂₀ at knot {knot}", RADII, values) for kind, values in errors.items()]
    return found + _rights({f"{kind} on x_t at knot {knot}": of for kind, of in rights.items()}, RADII)


@torch.no_grad()
def of_start(one: Subject) -> list[Sweep]:
    """How far images move when their noise does; 1 is as far as with other noise altogether."""
    (cond, null), x = one.conds(), one.noise()
    scale = float(x.std()) if len(x) > 1 else 1.0
    made = [one.features(one.finished(disturbed.start(x, one.own, scale, r), cond, null)) for r in STARTS]
    far = [torch.linalg.vector_norm(features - made[0], dim=1) for features in made]
    whole = far[-1].mean().clamp(min=torch.finfo(far[-1].dtype).tiny)
    return [_sweep("start", "distance in features, other noise: 1", STARTS, [each / whole for each in far])]


@torch.no_grad()
def of_code(one: Subject) -> list[Sweep]:
    """Noise on the text's code, or on that of the class."""
    cond, null = one.conds()
    if cond.tokens is None and cond.pooled is None:
        return []
    rights = [
        one.right(one.finished(one.noise(), disturbed.code(cond, one.own, r), null), one.batch) for r in CODES
    ]
    return _rights({"noise on the code": rights}, CODES)


@torch.no_grad()
def of_captions(one: Subject) -> list[Sweep]:
    """Typing errors and another order of the words, judged by the caption as it was."""
    if one.batch.text is None or one.net.conditioner.reads != "text":
        return []
    draws = one.own.uniform((3 * int(ERRORS[-1]),), "disturb.text").tolist()
    rights: dict[str, list[Tensor | None]] = {"typing errors": [], "words that changed places": []}
    for strength in ERRORS:
        pairs = list(zip(one.batch.text, draws, strict=True))
        texts = {
            "typing errors": [disturbed.typing(text, u, int(strength)) for text, u in pairs],
            "words that changed places": [disturbed.order(text, u, int(strength)) for text, u in pairs],
        }
        for kind, text in texts.items():
            cond, null = one.conds(replace(one.batch, text=text))
            rights[kind].append(one.right(one.finished(one.noise(), cond, null), one.batch))
    return _rights(rights, ERRORS)


@torch.no_grad()
def drift(one: Subject) -> list[Sweep]:
    """Distance between x̂_0 on the model's own x_t and on noised held-out images, at every inner knot."""
    settings, process = one.generate.settings, one.net.process
    (cond, null), grid = one.conds(), process.schedule.grid(settings.steps)
    labels = [0] * len(one.batch) if one.batch.label is None else one.batch.label.tolist()
    denoise_at = denoisers(one.net, cond, null, settings)
    x, found, eps = one.noise(), list[tuple[float, float, float, float]](), one.own
    path = walk(one.net, cond, null, x, sampler=one.generate.sampler, settings=settings, rng=one.rng)
    for knot, step in enumerate(path, start=1):
        if knot == len(grid) - 1:
            break
        t = torch.full((len(one.batch),), grid[knot], device=x.device)
        at = Level(grid[knot], *(float(value[0]) for value in process.schedule.coefficients(t[:1])))
        noised = process.noise(one.x_0, t, eps.normal(one.x_0.shape[1:], f"disturb.{knot}").to(one.x_0))
        denoise = denoise_at(at, one.rng.at(knot))
        pair = [one.features(quantized(one.net.decode(denoise(y, t)).cpu())) for y in (step.x_s, noised)]
        scores = measures([pair[0]], pair[1], one.batch.text or labels).scores
        score = scores.get("fd", scores.get("kid_paired"))
        if score is not None:
            found.append((float(knot), score.interval.value, score.interval.low, score.interval.high))
    if len(found) < 2:
        return []
    what = "x̂₀ on own x_t against noised images, by knot"
    return [Sweep("drift", what, *map(tuple, zip(*found, strict=True)))]


def _sweep(
    kind: str, what: str, x: Sequence[float], values: Sequence[Tensor], *, share: bool = False
) -> Sweep:
    """A curve with the interval of each mean, over rows."""
    ends = [prompts_score(value[:, None].cpu(), share=share).interval for value in values]
    y, low, high = ([end.value for end in ends], [end.low for end in ends], [end.high for end in ends])
    return Sweep(kind, what, tuple(x), tuple(y), tuple(low), tuple(high))


def _rights(rights: dict[str, list[Tensor | None]], x: Sequence[float]) -> list[Sweep]:
    known = {kind: [each for each in of if each is not None] for kind, of in rights.items()}
    return [
        _sweep(kind, "right prompts", x, of, share=True) for kind, of in known.items() if len(of) == len(x)
    ]


def write(folder: Path, sweeps: Sequence[Sweep], setup: dict[str, object]) -> Path:
    """Write the curves into the folder of a split's records; the path."""
    curves = [{**asdict(each), "area": each.area} for each in sweeps]
    path = folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"setup": setup, "curves": curves}, indent=1) + "\n")
    return path


def told(sweeps: Sequence[Sweep]) -> str:
    """The curves as lines of text."""
    rows = ["robustness, 95 % intervals; area: mean over the strengths"]
    for each in sweeps:
        points = zip(each.x, each.y, each.low, each.high, strict=True)
        row = ", ".join(f"{x:g}: {y:.3g} [{low:.3g}, {high:.3g}]" for x, y, low, high in points)
        rows.append(f"  {each.what}, {each.kind}: {row}; area {each.area:.3g}")
    return "\n".join(rows)


def robust_charts(folder: Path) -> list[tuple[str, str]]:
    """(title, SVG) of the newest curves of a run's folder: those of one measure in one chart."""
    charts = []
    for path in sorted(folder.glob(f"eval/*/{NAME}")):
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds: dict[str, list[dict[str, object]]] = {}
        for curve in content["curves"]:
            kinds.setdefault(str(curve["what"]), []).append(curve)
        for what, curves in kinds.items():
            lines = [Curve(c["kind"], c["x"], c["y"], c["low"], c["high"]) for c in curves]  # type: ignore[arg-type]
            title = f"Disturbed ({path.parent.parent.name}, n={content['setup']['n']}): {what}"
            charts.append((title, draw(lines, anchor=title, over="")))
    return charts
