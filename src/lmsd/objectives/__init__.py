"""Training methods: each a script of turns, one file each."""

from lmsd.objectives.adversarial import Adversarial as Adversarial
from lmsd.objectives.base import Clock as Clock
from lmsd.objectives.base import Objective as Objective
from lmsd.objectives.denoising import Denoising as Denoising
