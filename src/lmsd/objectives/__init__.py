"""Training methods: each a script of turns, one file each."""

from lmsd.objectives.adversarial import Adversarial as Adversarial
from lmsd.objectives.base import Clock as Clock
from lmsd.objectives.base import Objective as Objective
from lmsd.objectives.ddpo import DDPO as DDPO
from lmsd.objectives.denoising import Denoising as Denoising
from lmsd.objectives.dpo import DPO as DPO
from lmsd.objectives.draft import DRaFT as DRaFT
from lmsd.objectives.grpo import GRPO as GRPO
from lmsd.objectives.nft import NFT as NFT
from lmsd.objectives.rewarded import Refresh as Refresh
