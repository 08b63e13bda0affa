"""Generators whose parts are programs in files, run by onnxruntime, torch.export or AOTInductor.

    denoiser    x_t, t, [pooled, tokens, mask, label], [z]  → x̂₀, before any clamping
    condition   ids, mask | label  → [tokens], [pooled]
    decoder     z  → images in [-1,1]; none for pixels

Process, tokenizer and sampler are ours, the nets are not: a generator like any other, without gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.models.codec import Codec, Shape
from lmsd.models.conditioner import CaptionConditioner, Conditioner, padded
from lmsd.models.generator import Generator, Precondition
from lmsd.models.layouts.base import kept_by
from lmsd.models.tokenizer import encode_caption, kept_of, unknown_words
from lmsd.process import Process
from lmsd.process.schedules import Schedule
from lmsd.types import Batch, Cond, Prediction, Sizes

Runtime: TypeAlias = Literal["onnx", "torch_export", "aoti"]
Run: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Inputs in order, leading dimension B each → outputs."""
AT_ONCE = 32
"""Rows of one call: more than 63 are refused by what torch.export knows of some nets."""


@dataclass(frozen=True)
class Program:
    """One file and what goes in and comes out, by name and in order."""

    run: Run
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @torch.no_grad()
    def __call__(self, given: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The outputs for the inputs that it takes, some rows at a time."""
        rows = [given[name] for name in self.inputs]
        if any(value is None for value in rows):
            raise UserError(f"the exported net takes {', '.join(self.inputs)}, and one of them is missing")
        # Compiled programs read memory as it lay when they were traced: an expanded t would be garbage.
        split = (value.contiguous().split(AT_ONCE) for value in rows)  # type: ignore[union-attr]
        parts = [self.run(some) for some in zip(*split, strict=True)]
        return {
            name: torch.cat(found) for name, found in zip(self.outputs, zip(*parts, strict=True), strict=True)
        }


def program(runtime: Runtime, folder: Path, told: Mapping[str, Any]) -> Program:
    """A program of a folder; told: its file, inputs and outputs.

    Raises UserError where the runtime is not installed, or cannot read the file.
    """
    open_ = {"onnx": _onnx, "torch_export": _torch_export, "aoti": _aoti}[runtime]
    return Program(open_(folder / told["file"]), tuple(told["inputs"]), tuple(told["outputs"]))


def _onnx(path: Path) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path} needs onnxruntime: pip install 'lmsd[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [found.name for found in session.get_inputs()]

    def run(rows: Sequence[Tensor]) -> list[Tensor]:
        given = {name: row.contiguous().numpy() for name, row in zip(names, rows, strict=True)}
        return [torch.from_numpy(found) for found in session.run(None, given)]

    return run


def _torch_export(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda rows: _listed(module(*rows))


def _aoti(path: Path) -> Run:
    try:
        module = torch._inductor.aoti_load_package(str(path))
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be loaded here ({str(error).splitlines()[0]}): a package is tied to the torch "
            "version and the kind of CPU that it was compiled for; export the run on this machine"
        ) from error
    return lambda rows: _listed(module(*rows))


def _listed(found: Any) -> list[Tensor]:
    return [found] if torch.is_tensor(found) else list(found)


class _Told(nn.Module):
    """Stands where the net was: its sizes, and no weights."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.channels, self.image_size = sizes.channels, sizes.image_size
        self.token_dim, self.pooled_dim, self.z_dim = sizes.token_dim, sizes.pooled_dim, sizes.z_dim
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)  # by which one asks for the device

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        raise NotImplementedError("the exported denoiser gives x0 alone")


class ProgramGenerator(Generator):
    """A generator whose denoiser and decoder are programs."""

    denoiser: Program
    decoder: Program | None

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Cond,
        z: Tensor | None = None,
        *,
        output: Literal["x0", "native"] = "x0",
    ) -> Tensor:
        """x̂₀; what the net predicts is not to be had. Raises UserError for output="native"."""
        if output == "native":
            raise UserError("an exported model gives x0 alone: open the run itself for what the net predicts")
        return self.denoiser({"x_t": x_t.float(), "t": t.float(), "z": z, **vars(cond)})["x0"]

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1,1], by the decoder where there is one."""
        return super().decode(x) if self.decoder is None else self.decoder({"z": x})["images"]


class ProgramText(CaptionConditioner):
    """A text encoder that is a program, with an own tokenizer's text or a folder of a pretrained one.

    tokens, pooled: their widths; length: tokens a caption.
    """

    encoder: Program

    def __init__(self, *, tokens: int, pooled: int, length: int, tokenizer: str, pretrained: bool) -> None:
        super().__init__()
        self.token_dim, self.pooled_dim, self.length = tokens, pooled, length
        self.tokenizer, self.pretrained = tokenizer, _pretrained(tokenizer) if pretrained else None

    def ids(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Those of the tokenizer."""
        if self.pretrained is None:
            return padded(
                [encode_caption(self.tokenizer, text, self.length) for text in captions], self.length
            )
        rows = self.pretrained(
            captions, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return rows["input_ids"], rows["attention_mask"].bool()

    def states(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the program."""
        found = self.encoder({"ids": ids, "mask": mask})
        return found["tokens"], found["pooled"]

    def kept(self, caption: str) -> str:
        """What is read of a caption."""
        if self.pretrained is None:
            return kept_of(self.tokenizer, caption, self.length)
        return kept_by(self.pretrained, caption, self.length)

    def unknown(self, captions: Sequence[str]) -> list[str]:
        """The words that have no entry in an own vocabulary."""
        return unknown_words(self.tokenizer, captions) if self.pretrained is None else []

    def get_extra_state(self) -> dict[str, str]:
        """An own tokenizer's text."""
        return {"tokenizer": "" if self.pretrained is not None else self.tokenizer}


def _pretrained(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True)


class ProgramLabels(Conditioner):
    """A table of labels that is a program.

    classes: how many, the null label apart; pooled: width of the condition.
    """

    reads = "label"
    encoder: Program

    def __init__(self, *, classes: int, pooled: int) -> None:
        super().__init__()
        self.classes, self.pooled_dim = classes, pooled

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Cond:
        """Look the labels up."""
        if batch.label is None:
            raise UserError("condition: these data have no labels (KEY.cls)")
        label = batch.label if drop is None else torch.where(drop, self.classes, batch.label)
        return Cond(pooled=self.encoder({"label": label})["pooled"], label=label)


class ProgramCodec(Codec):
    """The codec of an exported model whose autoencoder is its decoder alone.

    image: (C, H, W) of the images; bound: on every latent, None: unknown.
    """

    def __init__(self, *, image: Sequence[int], bound: float | None) -> None:
        super().__init__()
        self.image, self.bound = (image[0], image[1], image[2]), bound

    def encode(self, x: Tensor) -> Tensor:
        """Not to be had: UserError."""
        raise UserError(
            "an exported model decodes only: edit with the run itself, or with format=safetensors"
        )

    def decode(self, z: Tensor) -> Tensor:
        """Done by the generator."""
        return z

    def shape_of(self, image: Shape) -> Shape:
        """Not to be had: UserError."""
        raise UserError("an exported model decodes only")

    def image_shape_of(self, shape: Shape) -> Shape:
        """Those of the images."""
        return self.image


def from_programs(
    runtime: Runtime,
    programs: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
    *,
    schedule: Schedule,
    conditioner: Conditioner | None = None,
    codec: Codec | None = None,
    prediction: Prediction = "v",
    precondition: Precondition = "none",
    sigma_data: float = 0.5,
    folder: Path,
) -> ProgramGenerator:
    """The generator of an exported folder.

    runtime: what runs the programs; programs: file, inputs and outputs of each; sizes: of what is denoised
    and of the condition; conditioner, codec: with what is no net of theirs. Raises UserError for files that
    cannot be read.
    """
    made = ProgramGenerator(
        _Told(Sizes(**sizes)),
        Process(schedule),
        prediction=prediction,
        conditioner=conditioner,
        codec=codec,
        z_dim=sizes["z_dim"],
        precondition=precondition,
        sigma_data=sigma_data,
    )
    found = {name: program(runtime, folder, programs[name]) for name in programs if name != "loop"}
    made.denoiser, made.decoder = found["denoiser"], found.get("decoder")
    match made.conditioner:
        case ProgramText() | ProgramLabels() as reader:
            reader.encoder = found["condition"]
    return made
