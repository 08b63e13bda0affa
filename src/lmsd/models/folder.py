"""A diffusers folder on disk: what it says it is, and its components, whole or refused in one sentence.

    model_index.json                      the pipeline's class, its components' classes, its options
    COMPONENT/config.json                 numbers of a net (scheduler/scheduler_config.json of a scheduler)
    COMPONENT/*.safetensors               weights: whole, in shards with an index, or of a variant (.fp16.)

Only safetensors are read, and only from disk: nothing is unpickled and nothing is fetched.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lmsd.errors import UserError

PRECISIONS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CONFIGURED: ContextVar[bool] = ContextVar("configured", default=False)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@contextmanager
def configured() -> Iterator[None]:
    """Within it, components are made of their config.json alone: the weights need not be there, nor words."""
    token = _CONFIGURED.set(True)
    try:
        yield
    finally:
        _CONFIGURED.reset(token)


class Folder:
    """A pipeline's folder.

    variant: of the weights ("fp16"), None: the plain ones, or those of the one variant that there is. Raises
    UserError where the path is no such folder.
    """

    def __init__(self, path: str | Path, variant: str | None = None) -> None:
        self.path, self.variant = Path(path), variant
        if self.path.is_file():
            raise self.error(
                "it is one file, and folders are read: diffusers makes one, PIPELINE.from_single_file(FILE)"
                ".save_pretrained(FOLDER)"
            )
        if not self.path.is_dir():
            raise self.error("there is no such folder")
        if not (self.path / "model_index.json").is_file():
            raise self.error("it holds no model_index.json, as every diffusers folder does")
        self.index = self._json(self.path / "model_index.json")
        self.kind = str(self.index.get("_class_name"))

    def error(self, said: str) -> UserError:
        """The sentence on what is wrong in this folder."""
        return UserError(f"pipeline {self.path}: {said}")

    def _json(self, file: Path) -> Mapping[str, Any]:
        return json_of(file, self.error, name=str(file.relative_to(self.path)))

    def config(self, component: str) -> Mapping[str, Any]:
        """The numbers of a component."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return self._json(self.path / component / name)

    def holds(self, component: str) -> bool:
        """Whether the pipeline has a component; one that it leaves empty it has not."""
        return bool((self.index.get(component) or [None])[0])

    def check(self, component: str, classes: Sequence[str]) -> str:
        """The class of a component, one of `classes`; else, or without its folder, UserError."""
        if not self.holds(component):
            raise self.error(f"model_index.json names no {component}, and a {self.kind} needs one")
        kind = str(self.index[component][1])
        if kind not in classes:
            raise self.error(f"its {component} is a {kind}, and only {' or '.join(classes)} is read there")
        if not (self.path / component).is_dir():
            raise self.error(f"the folder {component}/ is missing: the download is not complete")
        return kind

    def model(self, component: str, classes: Sequence[str], dtype: torch.dtype) -> Any:
        """A component's net in eval mode, every weight found in its files."""
        kind = self.check(component, classes)
        return component_of(self.path / component, kind, dtype, variant=self.variant, refuse=self.error)

    def tokenizer(self, component: str) -> Any:
        """A tokenizer of its own folder."""
        if _CONFIGURED.get() and not (self.path / component).is_dir():
            return _splitter()
        if not (self.path / component).is_dir():
            raise self.error(f"the folder {component}/ is missing: the download is not complete")
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(self.path / component), local_files_only=True)
        except Exception as error:  # whatever a damaged file makes its reader raise
            said = " ".join(str(error).split())[:160]
            raise self.error(f"{component}/ cannot be loaded: {said}") from error

    @cached_property
    def about(self) -> Mapping[str, str]:
        """The model's name and the names of its license files, for records."""
        name = str(self.index.get("_name_or_path") or self.path.resolve().name)
        files = [
            p.name for p in sorted(self.path.iterdir()) if p.stem.upper().startswith(("LICENSE", "LICENCE"))
        ]
        return {"model": name, "pipeline": self.kind, "license": ", ".join(files) or "no license file"}


def component_of(
    folder: Path,
    kind: str,
    dtype: torch.dtype,
    *,
    variant: str | None = None,
    refuse: Callable[[str], UserError],
) -> Any:
    """The net of class `kind` in a component's folder, in eval mode, every weight found in its files.

    refuse: makes the error of a sentence. Raises it for weights that are missing, left over or not finite.
    """
    loader = class_of(kind)
    if _CONFIGURED.get():
        return _of_config(folder, loader, dtype, refuse)
    options: dict[str, Any] = {"variant": _variant(folder, variant, refuse), "local_files_only": True}
    name = "torch_dtype" if loader.__module__.startswith("diffusers") else "dtype"
    try:
        model, told = loader.from_pretrained(
            str(folder), use_safetensors=True, output_loading_info=True, **{name: dtype}, **options
        )
    except Exception as error:  # whatever a damaged file makes its reader raise
        said = " ".join(str(error).split())[:160]
        raise refuse(f"{folder.name}/ cannot be loaded: {type(error).__name__}: {said}") from error
    if strange := misfit(told):
        raise refuse(f"the weights in {folder.name}/ do not fit its config.json, see {strange}")
    return finite(model, folder.name, refuse).eval()


def _of_config(folder: Path, loader: Any, dtype: torch.dtype, refuse: Callable[[str], UserError]) -> Any:
    """A component with the weights that it is made with."""
    numbers = dict(json_of(folder / "config.json", refuse, name=f"{folder.name}/config.json"))
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if loader.__module__.startswith("diffusers"):
            return loader.from_config(numbers).eval()
        return loader(loader.config_class.from_dict(numbers)).eval()
    except Exception as error:  # whatever strange numbers make a constructor raise
        said = " ".join(str(error).split())[:160]
        raise refuse(f"{folder.name}/config.json cannot be built: {type(error).__name__}: {said}") from error
    finally:
        torch.set_default_dtype(usual)


def _splitter() -> Any:
    """A tokenizer without a vocabulary, for codes of which the shapes alone matter."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_max_length=77
    )


def class_of(kind: str) -> Any:
    """The class of a name that may stand in a folder."""
    return _classes()[kind]


def finite(model: Any, name: str, refuse: Callable[[str], UserError]) -> Any:
    """The model, all of whose numbers are finite."""
    broken = next((n for n, p in model.named_parameters() if not bool(p.isfinite().all())), None)
    if broken:
        raise refuse(f"{name}/ holds numbers that are not finite, in {broken}")
    return model


def _variant(folder: Path, wanted: str | None, refuse: Callable[[str], UserError]) -> str | None:
    """The variant to load of a component; an error where its files are not all there."""
    weights = sorted(folder.glob("*.safetensors"))
    for index in sorted(folder.glob("*.safetensors.index.json")) if wanted is None else []:
        shards = set(json_of(index, refuse).get("weight_map", {}).values())
        lacking = sorted(name for name in shards if not (folder / name).is_file())
        if lacking:
            raise refuse(f"{folder.name}/ lacks {lacking[0]}: the download is not complete")
    if not weights:
        pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
        if pickled:
            raise refuse(
                f"{folder.name}/ holds pickled weights only ({pickled[0]}), which can run code: get the "
                "safetensors"
            )
        raise refuse(f"{folder.name}/ holds no safetensors: the download is not complete")
    found = {_variant_of(path.name) for path in weights}
    if wanted is not None and wanted not in found:
        raise refuse(f"{folder.name}/ has no weights of variant={wanted}")
    if wanted is not None or None in found:
        return wanted
    if len(found) > 1:
        raise refuse(f"{folder.name}/ has variants only, {', '.join(map(str, found))}: give variant=")
    return found.pop()


def json_of(file: Path, refuse: Callable[[str], UserError], *, name: str = "") -> Mapping[str, Any]:
    """The object in a JSON file; name: how messages call it."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise refuse(f"{name or file.name} is not there or cannot be read") from error


def misfit(told: Mapping[str, Any]) -> str:
    """The first weight that a net lacks, or does not take in this shape, as its loader tells; or ""."""
    return next(iter([*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]), "")


def _variant_of(name: str) -> str | None:
    """The variant in a file's name: fp16 of model.fp16.safetensors, model.fp16-00001-of-00002.safetensors."""
    parts = name.removesuffix(".safetensors").split(".")
    return parts[1].partition("-")[0] if len(parts) > 1 else None


def _classes() -> Mapping[str, Any]:
    """The classes that components may have, by name."""
    from diffusers import (
        AutoencoderDC,
        AutoencoderKL,
        AutoencoderTiny,
        FluxTransformer2DModel,
        PixArtTransformer2DModel,
        SanaTransformer2DModel,
        SD3Transformer2DModel,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, Gemma2Model, T5EncoderModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    kinds: tuple[Any, ...] = (
        AutoencoderDC,
        AutoencoderKL,
        AutoencoderTiny,
        FluxTransformer2DModel,
        PixArtTransformer2DModel,
        SanaTransformer2DModel,
        SD3Transformer2DModel,
        UNet2DConditionModel,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        Gemma2Model,
        T5EncoderModel,
    )
    return {kind.__name__: kind for kind in kinds}
