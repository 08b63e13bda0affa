"""Full fine-tuning: weights themselves move, all of them or those of some modules."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from lmsd.errors import UserError
from lmsd.models.frozen import thaw
from lmsd.models.generator import Generator
from lmsd.tuning.base import Tuning, matching


class Full(Tuning):
    """The weights of modules by pattern; by default all, and then checkpoints hold all of the net.

    modules: of the net, as ends of dotted names like attn1.* and to_q, null for all of it; text: of the text
    encoders, likewise, [*] for all. With either of them checkpoints hold what moves, and the base's digest.
    """

    def __init__(self, modules: Sequence[str] | None = None, *, text: Sequence[str] = ()) -> None:
        if modules is not None and not modules and not text:
            raise UserError("tuning: modules=[] and text=[] would let nothing move: name some")
        self.modules, self.text = modules, tuple(text)
        self.nothing = modules is None and not text

    def apply(self, generator: Generator) -> None:
        """Only the parameters of modules that match require a gradient."""
        chosen = (["*"] if self.modules is None else self.modules), self.text
        for part, patterns in zip((generator.net, generator.conditioner), chosen, strict=True):
            module = thaw(cast(nn.Module, part)).requires_grad_(False)
            for name in matching(module, patterns, kinds=(nn.Module,)):
                module.get_submodule(name).requires_grad_(True)
