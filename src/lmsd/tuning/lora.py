"""Low-rank adapters: LoRA (Hu et al. 2022), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024), by peft.

    W x  →  W x + s B A x              A [r,in] random, B [out,r] zero at the start, so that nothing changes
    s = α/r,  or  α/√r                 LoRA, rsLoRA
    W'   =  m (W + s B A)/‖W + s B A‖   DoRA, a magnitude m for each row of the output

W is frozen. Adapters are in float32 or better whatever the precision of W.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from torch import nn

from lmsd.errors import Count, Measure, UserError
from lmsd.models.frozen import freeze, thaw, twin
from lmsd.models.generator import Generator
from lmsd.tuning.base import Tuning, matching, tuned_parts

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of diffusers' attention."""
KINDS = (nn.Linear, nn.Conv2d)
OWN = "default"
"""The name of the adapter that learns, in peft."""


class LoRA(Tuning):
    """Adapters on linear layers and convolutions by pattern.

    rank: r; alpha: α, null for the rank, so that s = 1, or √r with rslora; modules: of the net, as ends of
    dotted names, null for the projections of its attention, or all linear layers and convolutions where there
    is none; text: of the text encoders, likewise, as q_proj and v_proj of CLIP or q and v of T5; rslora: s is
    α/√r; dora: with a magnitude for each output.
    """

    def __init__(
        self,
        rank: Count = 16,
        *,
        alpha: Measure | None = None,
        modules: Sequence[str] | None = None,
        text: Sequence[str] = (),
        rslora: bool = False,
        dora: bool = False,
    ) -> None:
        if alpha is not None and not alpha > 0:
            raise UserError(f"tuning: alpha={alpha} must be above 0")
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.modules, self.text, self.rslora, self.dora = modules, tuple(text), rslora, dora
        if modules is not None and not modules and not text:
            raise UserError("tuning: modules=[] and text=[] leave nothing to adapt: name some")

    @property
    def scaling(self) -> float:
        """The factor s."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def apply(self, generator: Generator) -> None:
        """Adapters in the net and, where they are asked for, in the text encoders."""
        net, text = cast(nn.Module, generator.net), generator.conditioner
        modules = self.modules
        if modules is None:
            modules = ATTENTION if _has_attention(net) else ["*"]
        self.adapt(net, matching(net, modules, kinds=KINDS))
        self.adapt(text, matching(text, self.text, kinds=KINDS))

    def adapt(self, root: nn.Module, names: Sequence[str]) -> None:
        """Put adapters into the modules of these names; nothing else in `root` requires a gradient.

        Convolutions in groups are left out: B A of low rank has no place for them.
        """
        thaw(root).requires_grad_(False)
        names = [name for name in names if vars(root.get_submodule(name)).get("groups", 1) == 1]
        if not names:
            return
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules="|".join(name.replace(".", r"\.") for name in names),
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        inject_adapter_in_model(config, root, adapter_name=OWN)


def _has_attention(net: nn.Module) -> bool:
    return any(name.endswith(".to_q") for name, _ in net.named_modules())


def adapters(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers with adapters, peft's LoraLayers, by dotted name."""
    for name, module in root.named_modules():
        if "lora_A" in dict(module.named_children()):
            yield name, module


def bare(generator: nn.Module) -> nn.Module:
    """A twin of a tuned generator with its adapters off: the base, which no checkpoint holds."""
    base = twin(generator)
    for _, layer in adapters(base):
        cast(Switched, layer).enable_adapters(False)
    for part in tuned_parts(cast(Generator, base)):
        freeze(part, saved=False)
    return base


class Switched(Protocol):
    """What a layer of peft's can do."""

    def enable_adapters(self, enabled: bool) -> None:
        """Use its adapters, or the layer below them alone."""
