"""Generators from diffusers folders: `generator=pipeline generator.path=FOLDER`.

    folder → net, process with its knots, prediction, conditioner, codec → Generator

Every number is read from the folder; which encoders, states and inputs its family has stands in
`models.layouts`. The net learns where a method has it learn; text encoders and autoencoder are frozen, and no
part of checkpoints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lmsd.errors import Guidance, UserError, one_of
from lmsd.models.autoencoder import FolderCodec
from lmsd.models.backbones import Backbone
from lmsd.models.conditioner import Conditioner
from lmsd.models.folder import PRECISIONS, Folder
from lmsd.models.frozen import fingerprint
from lmsd.models.generator import Generator
from lmsd.models.layouts import LAYOUTS
from lmsd.models.layouts.base import Codes, Encoder, Facts, Layout
from lmsd.models.scheduler import Scheduled, scheduled
from lmsd.models.words import Speller
from lmsd.process import Process
from lmsd.types import Batch, Cond, Sizes, at_least_float32

Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]


class PipelineNet(Backbone):
    """A pretrained net behind the call of all nets; `model` is the plain diffusers object."""

    model: Any
    like: Tensor

    def __init__(self, model: nn.Module, layout: Layout, text: "PipelineText") -> None:
        sizes = Sizes(layout.channels, layout.facts.side, text.token_dim, text.pooled_dim)
        super().__init__(sizes, layout.taps(model))
        self.model, self.layout = model, layout
        # Where adapters are, the first parameter is one of theirs, in a precision of its own.
        self.register_buffer("like", torch.empty(0, dtype=next(model.parameters()).dtype), persistent=False)

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the net predicts, in the precision of its weights."""
        dtype = self.like.dtype
        told = cond.map(lambda value: value.to(dtype) if value.is_floating_point() else value)
        inputs = self.layout.inputs(x.to(dtype), time, told)
        return self.layout.output(self.model(**inputs, return_dict=False)[0])

    def features(self, output: Any) -> Tensor:
        """What of a block's output belongs to the image."""
        stream = self.layout.stream
        return at_least_float32(super().features(output if stream is None else output[stream]))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the model's blocks."""
        self.model.enable_gradient_checkpointing()


class PipelineText(Conditioner):
    """A pipeline's frozen text encoders; distinct captions are encoded once a batch.

    cpu: they stay on the CPU wherever the generator goes.
    """

    reads = "text"

    def __init__(self, encoders: Sequence[Encoder], layout: Layout, *, cpu: bool) -> None:
        super().__init__()
        self.layout, self.stays, self.length = layout, cpu, layout.length
        self.encoders = nn.ModuleList(encoders)
        self.fingerprint = fingerprint(self.encoders)
        codes = layout.codes(encoders, [""])
        self.token_dim, self.pooled_dim = codes.tokens.shape[-1], codes.pooled.shape[-1]

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Cond:
        """Condition on `batch.text`; on what stands for no caption where `drop` is True."""
        if batch.text is None:
            raise UserError(
                "condition: no captions in these data (KEY.txt, KEY.json), which a pipeline reads"
            )
        rows: dict[str, int] = {}
        index = torch.tensor([rows.setdefault(caption, len(rows)) for caption in batch.text])
        codes = self._codes(list(rows), null=False, like=batch.x)
        found = _picked(codes, index.to(batch.x.device))
        if drop is None:
            return found
        null = self._codes([""], null=True, like=batch.x)
        return _either(
            drop.to(batch.x.device), _picked(null, torch.zeros_like(index).to(batch.x.device)), found
        )

    def _codes(self, captions: Sequence[str], *, null: bool, like: Tensor) -> Codes:
        encoders: Any = list(self.encoders)
        with torch.autocast(like.device.type, enabled=False):
            found = self.layout.codes(encoders, captions, null=null)
        return Codes(
            at_least_float32(found.tokens).to(like.device),
            None if found.mask is None else found.mask.to(like.device),
            at_least_float32(found.pooled).to(like.device),
        )

    def spellers(self) -> Sequence[Speller]:
        """Its text encoders."""
        encoders: Any = list(self.encoders)
        found: Sequence[Encoder] = encoders
        return found

    def kept(self, caption: str) -> str:
        """The part of a caption that is read."""
        encoders: Any = list(self.encoders)
        return self.layout.kept(encoders, caption)

    def train(self, mode: bool = True) -> "PipelineText":
        """Stay in eval mode."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> "PipelineText":
        if not self.stays:
            super()._apply(fn, recurse)
        return self

    def get_extra_state(self) -> dict[str, str]:
        """The fingerprint of the encoders."""
        return {"fingerprint": self.fingerprint}

    def set_extra_state(self, state: Mapping[str, str]) -> None:
        """Refuse the checkpoint of other encoders."""
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                "pipeline: the checkpoint was trained with other text encoders than this folder's"
            )


def _picked(codes: Codes, index: Tensor) -> Cond:
    mask = None if codes.mask is None else codes.mask[index]
    return Cond(tokens=codes.tokens[index], mask=mask, pooled=codes.pooled[index])


def _either(first: Tensor, one: Cond, other: Cond) -> Cond:
    """Rows of `one` where `first` [B] is True, else of `other`."""

    def pick(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return None
        return torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b)

    return Cond(
        tokens=pick(one.tokens, other.tokens),
        mask=pick(one.mask, other.mask),
        pooled=pick(one.pooled, other.pooled),
    )


class PipelineCodec(FolderCodec):
    """A pipeline's frozen autoencoder, with its scale and shift.

    cpu: it stays on the CPU. Raises UserError for images that are not finite in half precision.
    """

    checked = False  # its latents are as the net of the folder knows them

    def __init__(self, folder: Folder, classes: Sequence[str], *, precision: Precision, cpu: bool) -> None:
        config = folder.config("vae")
        upcast = precision == "float16" and config.get("force_upcast", True)  # diffusers' default, too
        dtype = PRECISIONS["float32" if upcast else precision]
        model = folder.model("vae", classes, dtype)
        super().__init__(model, config, path=f"{folder.path}/vae", dtype=None)
        self.stays, self.dtype, self.folder = cpu, dtype, folder

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean of E(x), or E(x) itself where it is no distribution."""
        return super().raw(self._moved(x))[0].to(x), None

    def images(self, z: Tensor) -> Tensor:
        """D(z)."""
        found = super().images(self._moved(z))
        if self.dtype == torch.float16 and not bool(found.isfinite().all()):
            raise self.folder.error(
                "its autoencoder overflows in float16: take precision=bfloat16, or float32"
            )
        return found.to(z)

    def _moved(self, x: Tensor) -> Tensor:
        return x.to("cpu" if self.stays else x.device, self.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "PipelineCodec":
        if self.stays:  # but for what latents elsewhere are multiplied by
            self.scale, self.shift = fn(self.scale), fn(self.shift)
        else:
            super()._apply(fn, recurse)
        return self


class PipelineGenerator(Generator):
    """A generator as a folder has it.

    read: its process, with the sampler that the folder comes with and what is walked otherwise; about: the
    model's name and license.
    """

    def __init__(
        self,
        net: PipelineNet,
        read: Scheduled,
        *,
        conditioner: PipelineText,
        codec: PipelineCodec,
        about: Mapping[str, str],
    ) -> None:
        super().__init__(
            net,
            Process(read.schedule),
            prediction=read.prediction,
            conditioner=conditioner,
            codec=codec,
            precondition="none" if read.sigma_data is None else "edm",
            sigma_data=read.sigma_data or 0.5,
        )
        self.read, self.about = read, about


NOT_READ: Mapping[str, str] = {
    "SanaSprintPipeline": "its noise is on a circle (TrigFlow), of which we have no process",
    "Flux2Pipeline": "its text encoder is a large language model that we do not run",
    "QwenImagePipeline": "its text encoder is a large language model that we do not run",
    "ZImagePipeline": "its text encoder is a large language model that we do not run",
}


def from_pipeline(
    path: Path,
    *,
    channels: int = 3,
    image_size: int | None = None,
    precision: Precision = "float32",
    net_precision: Precision = "float32",
    on_cpu: Sequence[Literal["text", "codec"]] = (),
    variant: str | None = None,
    net_guidance: Guidance = 3.5,
    instruction: bool = True,
) -> PipelineGenerator:
    """The generator of a diffusers folder.

    path: the folder; channels, image_size: C and H = W of the images, None: the size that the net was made
    for; precision: of what never learns, text encoders and autoencoder; net_precision: of the net, float32
    where it learns; on_cpu: text, codec or both, which then stay on the CPU; variant: of the weights' files,
    as fp16; net_guidance: what nets that are told the guidance are told; instruction: captions get the
    instruction that the family's text encoder was given.

    Raises UserError where the folder is not whole, not one of the families that are read, or does not fit.
    """
    one_of("generator", "precision", precision, Precision)
    one_of("generator", "net_precision", net_precision, Precision)
    folder = Folder(path, variant)
    kind, held = family(folder)
    config = folder.config(kind.net)
    codec = PipelineCodec(folder, kind.codecs, precision=precision, cpu="codec" in on_cpu)
    size = image_size or _own_size(folder, config) * codec.factor
    _, side, _ = codec.shape_of((channels, size, size))
    layout = kind(Facts(config, folder.index, size, side, net_guidance, instruction))
    if layout.refused():
        raise folder.error(f"{layout.refused()}, and that is not read")
    read, dtype = _scheduled(folder, kind, tokens=layout.tokens), PRECISIONS[precision]
    encoders = [_encoder(folder, name, classes, dtype) for name, classes in held.items()]
    text = PipelineText(encoders, layout, cpu="text" in on_cpu)
    model = folder.model(kind.net, kind.nets, PRECISIONS[net_precision])
    net = PipelineNet(model, layout, text)
    return PipelineGenerator(net, read, conditioner=text, codec=codec, about=folder.about)


@dataclass(frozen=True)
class Usual:
    """How a folder is sampled by default, read without its weights.

    sampler: a node for `lmsd.spec.build`; about: the model's name, class and license.
    """

    sampler: Mapping[str, Any]
    steps: int
    guidance: float
    notes: tuple[str, ...]
    about: Mapping[str, str]


def usual(path: Path) -> Usual:
    """What a folder's scheduler and family say of sampling. Raises UserError for one that is not read."""
    folder = Folder(path)
    kind, _ = family(folder)
    read = _scheduled(folder, kind, tokens=1)
    steps, guidance = kind.usual(folder.config(kind.net))
    return Usual(read.sampler, steps, guidance, read.notes, folder.about)


def family(folder: Folder) -> tuple[type[Layout], Mapping[str, tuple[str, ...]]]:
    """The layout of a folder, and its text encoders with their classes; every component is there."""
    kind = LAYOUTS.get(folder.kind)
    if kind is None:
        why = NOT_READ.get(folder.kind, f"those that are: {', '.join(LAYOUTS)}")
        raise folder.error(f"a {folder.kind} is not read: {why}")
    held = {
        name: classes
        for name, classes in kind.encoders.items()
        if folder.holds(name) or name not in kind.optional
    }
    for name, classes in {kind.net: kind.nets, **held, "vae": kind.codecs}.items():
        folder.check(name, classes)
    return kind, held


def _encoder(folder: Folder, name: str, classes: Sequence[str], dtype: torch.dtype) -> Encoder:
    tokenizer = folder.tokenizer(name.replace("text_encoder", "tokenizer"))
    return Encoder(folder.model(name, classes, dtype), tokenizer)


def _own_size(folder: Folder, config: Mapping[str, Any]) -> int:
    size = config.get("sample_size", 128)  # what a family without one has in code
    if type(size) is not int:
        raise folder.error(f"its net was made for {size}, no square: give image_size=")
    return size


def _scheduled(folder: Folder, kind: type[Layout], *, tokens: int) -> Scheduled:
    try:
        return scheduled(folder.config("scheduler"), tokens=tokens, explicit=kind.explicit)
    except UserError as error:
        raise folder.error(str(error)) from error
