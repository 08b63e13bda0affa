"""Rewards: (images, what was asked for) → scores, higher is better."""

from lmsd.rewards.base import Function, Reward, RewardError, Verdict, WeightedSum, captions_of, judge
from lmsd.rewards.classifier import ClassifierLogProb
from lmsd.rewards.discriminator import DiscriminatorReward, fit_temperature
from lmsd.rewards.pixels import JPEGSize, Sharpness
from lmsd.rewards.scenes import SceneWords
from lmsd.rewards.service import HTTPService
from lmsd.rewards.text import Aesthetic, TextAlignment

__all__ = [
    "Aesthetic",
    "ClassifierLogProb",
    "DiscriminatorReward",
    "Function",
    "HTTPService",
    "JPEGSize",
    "Reward",
    "RewardError",
    "SceneWords",
    "Sharpness",
    "TextAlignment",
    "Verdict",
    "WeightedSum",
    "captions_of",
    "fit_temperature",
    "judge",
]
