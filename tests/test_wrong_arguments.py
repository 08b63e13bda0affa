"""Every public function of metrics, process, sampling and rewards, and of evaluation what computes.

Called with None, a word, another shape, nothing, NaN, a negative or huge number in the place of an argument,
it works, or says in a sentence what it was given: never what torch or numpy raised.
"""

import importlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsd import metrics, process, rewards, sampling
from lmsd.arguments import ArgumentError, brief, explained
from lmsd.errors import UserError
from lmsd.metrics import sliced
from lmsd.rng import Rng
from lmsd.types import Batch

sys.path.insert(0, str(Path(__file__).parent / "objectives"))
from tiny_players import tiny_batch, tiny_players

Case = tuple[Callable[..., Any], dict[str, Any]]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


X, Y = drawn(40, 4), drawn(40, 4).flip(0)
GROUPS = metrics.jackknife_groups(40)
MEAN, COV = metrics.gaussian_statistics(X)
VALUES = [1.0 + 0.01 * index for index in range(21)]
SCORE = metrics.jackknifed(VALUES)
HALVES = metrics.matched_halves([0, 1] * 20, 0)
PAIRED = torch.zeros(40, dtype=torch.int64)
for _index, (_one, _other) in enumerate(zip(*HALVES, strict=True)):
    PAIRED[_one] = PAIRED[_other] = _index % 20
NET = tiny_players()["generator"].float()
ASKED = tiny_batch(4)
ASKED = Batch(ASKED.x.float(), ASKED.position, text=ASKED.text)
COND, RNG = NET.condition(ASKED), Rng(0, ASKED.position)
CHAIN = process.Cosine()
NOISING = process.Process(CHAIN)
T, S = torch.full((4,), 500.0), torch.full((4,), 250.0)
TAU, FOUR = sampling.Tau(1.0), sampling.Settings(4)
MADE = sampling.Generation(NET, TAU, FOUR)
IMAGES = drawn(4, 3, 8, 8).clamp(-1, 1)
SCENES = Batch(ASKED.x, ASKED.position, text=["a large red circle on the left"] * 4)
CASES: dict[str, Case] = {
    "clip_scores": (metrics.clip_scores, {"images": X, "texts": Y}),
    "r_precision": (metrics.r_precision, {"images": X, "texts": Y, "candidates": 5, "seed": 0}),
    "as_features": (metrics.as_features, {"x": X, "name": "features"}),
    "gaussian_statistics": (metrics.gaussian_statistics, {"x": X}),
    "frechet_distance": (metrics.frechet_distance, {"x": X, "y": Y}),
    "frechet_infinity": (metrics.frechet_infinity, {"x": X, "y": Y, "seed": 0}),
    "frechet_by_rows": (metrics.frechet_by_rows, {"fakes": [Y], "real": X, "groups": GROUPS}),
    "frechet_without": (metrics.frechet_without, {"x": X, "y": Y, "groups_x": GROUPS, "groups_y": GROUPS}),
    "frechet_from_statistics": (
        metrics.frechet_from_statistics,
        {"mean_x": MEAN, "cov_x": COV, "mean_y": MEAN, "cov_y": COV},
    ),
    "jackknifed": (metrics.jackknifed, {"found": VALUES, "seeds": [VALUES]}),
    "infinity": (metrics.infinity, {"found": VALUES, "seeds": [VALUES]}),
    "without_groups": (metrics.without_groups, {"x": X, "groups": GROUPS}),
    "means_of": (metrics.means_of, {"found": [VALUES, VALUES]}),
    "firsts": (metrics.firsts, {"found": [VALUES, VALUES]}),
    "inception_scores": (metrics.inception_scores, {"logits": X, "splits": 4}),
    "inception_score_by_seed": (metrics.inception_score_by_seed, {"arrays": [X, Y], "splits": 4}),
    "inception_score": (metrics.inception_score, {"logits": X, "splits": 4}),
    "jackknife_groups": (metrics.jackknife_groups, {"rows": 40, "groups": 20, "seed": 0}),
    "jackknife": (metrics.jackknife, {"value": 1.0, "without": VALUES, "level": 0.9, "scale": "linear"}),
    "jackknife_half_width": (metrics.jackknife_half_width, {"without": VALUES, "level": 0.9}),
    "wilson": (metrics.wilson, {"hits": 3, "trials": 9, "level": 0.9}),
    "clustered_share": (metrics.clustered_share, {"hits": (drawn(3, 9) > 0).float(), "level": 0.9}),
    "thirds": (metrics.thirds, {"rows": 40, "seed": 0}),
    "divided": (metrics.divided, {"value": 1.0, "parts": VALUES, "level": 0.9}),
    "divided_share": (
        metrics.divided_share,
        {"share": 0.5, "parts": [0.4, 0.5, 0.6], "rows": 40, "level": 0.9},
    ),
    "stretched": (metrics.stretched, {"share": 0.5, "parts": [0.4, 0.5, 0.6]}),
    "mean_interval": (metrics.mean_interval, {"values": drawn(2, 9), "level": 0.9}),
    "prompts_score": (metrics.prompts_score, {"values": drawn(2, 9), "share": False}),
    "batch_means": (metrics.batch_means, {"value": 1.0, "batches": VALUES, "level": 0.9}),
    "extrapolated": (metrics.extrapolated, {"value": 1.0, "without": VALUES, "level": 0.9}),
    "compare": (metrics.compare, {"one": SCORE, "other": SCORE}),
    "polynomial": (metrics.polynomial, {"x": X, "y": Y}),
    "gaussian": (metrics.gaussian, {"x": X, "y": Y}),
    "kernel_distance": (
        metrics.kernel_distance,
        {"x": X, "y": Y, "kernel": metrics.polynomial, "level": 0.9},
    ),
    "clip_mmd": (metrics.clip_mmd, {"x": X, "y": Y}),
    "unit_rows": (metrics.unit_rows, {"x": X, "name": "features"}),
    "kernel_distance_by_rows": (
        metrics.kernel_distance_by_rows,
        {"fakes": [Y], "real": X, "groups": GROUPS, "kernel": metrics.polynomial},
    ),
    "manifold": (metrics.manifold, {"generated": X, "real": Y, "k": 3}),
    "manifolds": (metrics.manifolds, {"generated": X, "real": Y, "k": 3}),
    "manifold_by_rows": (metrics.manifold_by_rows, {"fakes": [X], "real": Y, "k": 3}),
    "matched_halves": (metrics.matched_halves, {"labels": [0, 1] * 20, "seed": 0}),
    "matched_rows": (metrics.matched_rows, {"labels": [0, 1] * 4, "among": [0, 1] * 20, "seed": 0}),
    "nearest": (metrics.nearest, {"x": X, "to": Y, "k": 1}),
    "memorization": (
        metrics.memorization,
        {"generated": [X], "train": drawn(60, 4), "held_out": Y, "pairs": 4},
    ),
    "sliced.whitening": (sliced.whitening, {"train": X}),
    "sliced.sliced_wasserstein": (
        sliced.sliced_wasserstein,
        {"x": X, "y": Y, "projections": 8, "seed": 0},
    ),
    "sliced.sliced_ratio": (
        sliced.sliced_ratio,
        {
            "fakes": [Y],
            "real": X,
            "halves": HALVES,
            "groups": PAIRED,
            "white": sliced.whitening(X),
            "projections": 8,
        },
    ),
    "Settings": (sampling.Settings, {"steps": 4, "guidance": 1.0, "interval": (0.0, 1.0), "bound": "codec"}),
    "Tau": (sampling.Tau, {"tau": 1.0}),
    "Policy": (sampling.Policy, {"tau": 1.0, "last_std": 0.0, "ode": False}),
    "Transition": (sampling.Transition, {"keep": 0.5, "push": 0.5, "std": 0.1}),
    "log_prob": (sampling.log_prob, {"x_s": ASKED.x, "mean": ASKED.x, "std": 1.0}),
    "path_kl": (sampling.path_kl, {"mean": ASKED.x, "reference": ASKED.x, "std": 1.0}),
    "levels": (sampling.levels, {"schedule": CHAIN, "steps": 4}),
    "spread": (sampling.spread, {"schedule": CHAIN, "steps": 4}),
    "knots": (sampling.knots, {"process": NET.process, "steps": 4, "x": ASKED.x}),
    "bound_of": (sampling.bound_of, {"bound": "codec", "generator": NET}),
    "first_knot": (sampling.first_knot, {"strength": 0.5, "steps": 4}),
    "begin": (
        sampling.begin,
        {"generator": NET, "settings": FOUR, "rng": RNG, "shape": NET.shape, "dtype": torch.float32},
    ),
    "guided": (sampling.guided, {"generator": NET, "cond": COND, "null": None, "scale": 1.0, "z": None}),
    "denoisers": (
        sampling.denoisers,
        {"generator": NET, "cond": COND, "null": None, "settings": FOUR},
    ),
    "sample": (
        sampling.sample,
        {
            "generator": NET,
            "cond": COND,
            "null": None,
            "sampler": TAU,
            "settings": FOUR,
            "rng": RNG,
            "shape": NET.shape,
        },
    ),
    "edit": (
        sampling.edit,
        {
            "generator": NET,
            "image": ASKED.x,
            "cond": COND,
            "null": None,
            "sampler": TAU,
            "settings": FOUR,
            "rng": RNG,
            "strength": 0.5,
            "mask": None,
        },
    ),
    "Generation": (sampling.Generation, {"generator": NET, "sampler": TAU, "settings": FOUR}),
    "Generation()": (MADE, {"batch": ASKED, "rng": RNG}),
    "Generation.edit": (MADE.edit, {"batch": ASKED, "rng": RNG, "strength": 0.5, "mask": None}),
    "Process": (process.Process, {"schedule": CHAIN}),
    "Process.noise": (NOISING.noise, {"x0": ASKED.x, "t": T, "eps": ASKED.x}),
    "Process.pair": (NOISING.pair, {"x0": ASKED.x, "s": S, "t": T, "rng": RNG}),
    "Process.posterior": (NOISING.posterior, {"x0": ASKED.x, "x_t": ASKED.x, "s": S, "t": T}),
    "Process.to_x0": (NOISING.to_x0, {"pred": ASKED.x, "kind": "v", "x_t": ASKED.x, "t": T}),
    "Process.target": (NOISING.target, {"kind": "v", "x0": ASKED.x, "eps": ASKED.x, "t": T}),
    "Schedule()": (CHAIN, {"t": T}),
    "Schedule.knots": (CHAIN.knots, {"steps": 4, "device": torch.device("cpu")}),
    "Cosine": (process.Cosine, {"steps": 1000}),
    "Linear": (process.Linear, {"steps": 1000}),
    "ScaledLinear": (process.ScaledLinear, {"steps": 1000}),
    "Article": (process.Article, {"steps": 4}),
    "Shifted": (process.Shifted, {"shift": 3.0}),
    "Spaced": (process.Spaced, {"rule": "trailing"}),
    "Grid": (process.Grid, {"steps": 4}),
    "Grid()": (process.Grid(4), {"rng": RNG, "process": NOISING}),
    "Jumps": (process.Jumps, {"steps": 4, "last": 0.5}),
    "Jumps()": (process.Jumps(4), {"rng": RNG, "process": NOISING}),
    "LogitNormal": (process.LogitNormal, {"mean": 0.0, "std": 1.0}),
    "LogitNormal()": (process.LogitNormal(), {"rng": RNG, "process": NOISING}),
    "LogNormal": (process.LogNormal, {"mean": 0.0, "std": 1.0}),
    "Levels": (process.Levels, {"levels": [2.0, 1.0]}),
    "ShiftedUniform": (process.ShiftedUniform, {"shift": 3.0}),
    "MixedJumps": (process.MixedJumps, {"steps": [4, 16], "last": 0.5}),
    "Uniform()": (process.Uniform(), {"rng": RNG, "process": NOISING}),
    "judge": (rewards.judge, {"reward": rewards.Sharpness(), "images": IMAGES, "batch": ASKED}),
    "Sharpness()": (rewards.Sharpness(), {"images": IMAGES, "batch": ASKED}),
    "JPEGSize": (rewards.JPEGSize, {"quality": 50}),
    "JPEGSize()": (rewards.JPEGSize(), {"images": IMAGES, "batch": ASKED}),
    "SceneWords()": (rewards.SceneWords(), {"images": drawn(4, 3, 32, 32).clamp(-1, 1), "batch": SCENES}),
    "Function": (rewards.Function, {"function": len}),
    "WeightedSum": (
        rewards.WeightedSum,
        {"terms": {"sharp": rewards.Sharpness()}, "weights": {"sharp": 1.0}},
    ),
    "captions_of": (rewards.captions_of, {"batch": ASKED}),
    "fit_temperature": (rewards.fit_temperature, {"gap": drawn(9), "bounds": (0.05, 20.0)}),
}


def elsewhere(module: str, **given: Any) -> Case:
    """A function of `lmsd.evaluation`."""
    place, _, name = module.rpartition(".")
    return vars(importlib.import_module(f"lmsd.evaluation.{place}"))[name], given


CASES |= {
    "evaluation.to_picture": elsewhere("grid.to_picture", image=IMAGES[0], tile=96),
    "evaluation.sample_grid": elsewhere("grid.sample_grid", images=list(IMAGES), captions=["a"] * 4),
    "evaluation.drawn": elsewhere("measures.drawn", total=40, n=20),
    "evaluation.alike": elsewhere("measures.alike", labels=torch.arange(4), captions=None, n=4),
    "evaluation.class_scores": elsewhere("measures.class_scores", fakes=[X], real=Y, splits=4),
    "evaluation.alignment": elsewhere(
        "measures.alignment", fakes=[drawn(128, 4)], real=drawn(128, 4), texts=drawn(128, 4), seed=0
    ),
    "evaluation.rows_by_slice": elsewhere("slices.rows_by_slice", labels=[0, 1] * 20, captions=None),
}
TYPES = {"Bound", "Generate", "DenoiseAt", "State", "Features", "Kernel", "Method", "GROUPS", "FALSE_ALARM"}
RECORDS = {"Knot", "Level", "Step", "Normal", "Interval", "Score", "Comparison", "Manifold", "Memorization"}
RECORDS |= {"NeighborRatio", "Verdict", "Model"}  # what functions return
PROTOCOLS = {"Sampler", "Schedule", "Discrete", "Times", "Reward", "RewardError"}
PLAIN = {
    "DPMSolverPP2M",
    "Heun",
    "PLMS",
    "Direct",
    "EDM",
    "Flow",
    "Uniform",
    "Sharpness",
}  # no arguments but numbers
ELSEWHERE = {"walk", "load", "HTTPService", "Aesthetic", "TextAlignment", "ClassifierLogProb", "SceneWords"}
"""`walk` is the loop of sample and edit; the others open files, and their tests are beside theirs."""
ELSEWHERE |= {"DiscriminatorReward"}


def test_the_table_names_every_public_function() -> None:
    public = {name for module in (metrics, process, sampling, rewards) for name in module.__all__}
    left = public - set(CASES) - TYPES - RECORDS - PROTOCOLS - PLAIN - ELSEWHERE
    assert left == set()


def hostile(value: Any) -> Iterator[Any]:
    """What somebody may give in the place of a value."""
    yield from (None, "abc", object())
    match value:
        case torch.Tensor():
            yield from (value[:0], value.reshape(-1)[0], value.reshape(-1), value[:1], -value)
            yield from (torch.cat([value, value], -1), value.tolist(), value.numpy())
            if value.is_floating_point():
                yield from (torch.full_like(value, math.nan), torch.full_like(value, math.inf), value.long())
        case bool():
            yield 3
        case int() | float():
            yield from (-1, 0, math.nan, math.inf, 0.5, [value])
        case list() | tuple():
            yield from (type(value)(), type(value)(value[:1]), 3, type(value)([None] * len(value)))
        case Batch():
            yield from (
                replace(value, text=None),
                Batch(value.x[:1], value.position[:1], text=value.text[:1]),
            )


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_argument_is_told_in_a_sentence(name: str) -> None:
    function, given = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(**given)
        for argument, value in given.items():
            for wrong in hostile(value):
                assert told(partial(function, **{**given, argument: wrong})), (argument, wrong)


def told(call: Callable[[], object]) -> bool:
    """Whether a call works, or says in one line why not."""
    try:
        call()
    except (UserError, ArgumentError) as error:
        return 10 < len(str(error)) < 900 and "\n" not in str(error)
    return True


def test_the_sentence_names_the_function_and_what_it_was_given() -> None:
    with pytest.raises(ArgumentError) as told:
        metrics.frechet_by_rows([Y], None, GROUPS)  # type: ignore[arg-type]
    assert str(told.value) == (
        "frechet_by_rows cannot work with fakes=[Tensor [40, 4]], real=None, groups=Tensor [40]: 'NoneType' "
        "object has no attribute 'double'"
    )
    assert isinstance(told.value.__cause__, AttributeError)


def test_a_call_that_python_refuses_and_what_is_known_stay_as_they_are() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        metrics.frechet_distance(X)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"level=2 of an interval is a probability between 0 and 1"):
        metrics.wilson(3, 9, level=2)

    @explained
    def full(x: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        full(1)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((2, 3)), "ndarray [2, 3]"),
        (list(range(9)), "a list of 9"),
        ([None, "a"], "[None, 'a']"),
        ("x" * 99, "'" + "x" * 39),
        (CHAIN, "a Cosine"),
    ],
)
def test_arguments_are_told_of_briefly(value: object, said: str) -> None:
    assert brief(value) == said


def test_what_is_computed_costs_one_call_more() -> None:
    """Wrapping shows in the stack alone: names, docs and signatures are those of the function."""
    assert metrics.frechet_distance.__name__ == "frechet_distance"
    assert list(inspect.signature(metrics.frechet_distance).parameters) == ["x", "y"]


def test_a_reward_judges_finite_images_one_a_sample() -> None:
    broken = IMAGES.clone()
    broken[1] = math.nan
    with pytest.warns(UserWarning, match="scores, or saw images, that are not finite"):
        verdict = rewards.judge(rewards.JPEGSize(), broken, ASKED)
    assert verdict.valid.tolist() == [True, False, True, True]
    with pytest.raises(UserError, match=r"images \[B,...\], one a sample, not \[3, 3, 8, 8\] of 4"):
        rewards.judge(rewards.Sharpness(), IMAGES[:3], ASKED)
