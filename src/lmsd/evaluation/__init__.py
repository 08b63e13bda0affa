"""Held-out scores with n, seeds, intervals and floor; sample grids; the report of a run."""

from lmsd.evaluation.evaluate import Checker, Evaluator, evaluate
from lmsd.evaluation.features import FeatureExtractor
from lmsd.evaluation.scores import Scores

__all__ = [
    "Checker",
    "Evaluator",
    "FeatureExtractor",
    "Scores",
    "evaluate",
]
