"""Which parameters of a pretrained generator may move, and how what moved is stored."""

from lmsd.tuning.base import Tuning, is_tuned, tuned
from lmsd.tuning.full import Full
from lmsd.tuning.lora import LoRA, bare
from lmsd.tuning.textual_inversion import TextualInversion

__all__ = ["Full", "LoRA", "TextualInversion", "Tuning", "bare", "is_tuned", "tuned"]
