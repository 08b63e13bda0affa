"""Training methods: each a script of turns, one file each."""

from lmsd.objectives.advantages import Normalizer as Normalizer
from lmsd.objectives.adversarial import Adversarial as Adversarial
from lmsd.objectives.anchor import Anchor as Anchor
from lmsd.objectives.anchor import Anchored as Anchored
from lmsd.objectives.article import Article as Article
from lmsd.objectives.base import Clock as Clock
from lmsd.objectives.base import Objective as Objective
from lmsd.objectives.denoising import Denoising as Denoising
from lmsd.objectives.dpo import DPO as DPO
from lmsd.objectives.draft import DRaFT as DRaFT
from lmsd.objectives.mismatch import Mismatch as Mismatch
from lmsd.objectives.nft import NFT as NFT
from lmsd.objectives.nft import Contrast as Contrast
from lmsd.objectives.nft import OldPolicy as OldPolicy
from lmsd.objectives.penalty import Penalty as Penalty
from lmsd.objectives.phases import Phase as Phase
from lmsd.objectives.phases import Phases as Phases
from lmsd.objectives.policy import PolicyGradient as PolicyGradient
from lmsd.objectives.policy import Reference as Reference
from lmsd.objectives.policy import Update as Update
from lmsd.objectives.policy import Windows as Windows
from lmsd.objectives.rewarded import Refresh as Refresh
from lmsd.objectives.warm import warm_start as warm_start
