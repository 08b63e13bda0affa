"""Training methods: each a script of turns, one file each."""

from lmsd.objectives.advantages import Normalizer
from lmsd.objectives.adversarial import Adversarial
from lmsd.objectives.anchor import Anchor, Anchored
from lmsd.objectives.article import Article
from lmsd.objectives.augmentation import Augment
from lmsd.objectives.base import Objective
from lmsd.objectives.cafm import CAFM
from lmsd.objectives.denoising import Denoising
from lmsd.objectives.distill import Distill, Heads
from lmsd.objectives.dpo import DPO
from lmsd.objectives.draft import DRaFT
from lmsd.objectives.fd_loss import FDLoss
from lmsd.objectives.matching import Matching
from lmsd.objectives.meanflow import MeanFlow
from lmsd.objectives.mismatch import Mismatch
from lmsd.objectives.nft import NFT, Contrast, OldPolicy
from lmsd.objectives.penalty import Penalty
from lmsd.objectives.phases import Phase, Phases
from lmsd.objectives.policy import PolicyGradient, Reference, Update, Windows
from lmsd.objectives.post_training import PostTraining
from lmsd.objectives.ratio import Tilt
from lmsd.objectives.rewarded import Refresh
from lmsd.objectives.warm import warm_start

__all__ = [
    "CAFM",
    "DPO",
    "NFT",
    "Adversarial",
    "Anchor",
    "Anchored",
    "Article",
    "Augment",
    "Contrast",
    "DRaFT",
    "Denoising",
    "Distill",
    "FDLoss",
    "Heads",
    "Matching",
    "MeanFlow",
    "Mismatch",
    "Normalizer",
    "Objective",
    "OldPolicy",
    "Penalty",
    "Phase",
    "Phases",
    "PolicyGradient",
    "PostTraining",
    "Reference",
    "Refresh",
    "Tilt",
    "Update",
    "Windows",
    "warm_start",
]
