"""A diffusers folder on disk: what it says it is, and its components, whole or refused in one sentence.

    model_index.json                      the pipeline's class, its components' classes, its options
    COMPONENT/config.json                 numbers of a net (scheduler/scheduler_config.json of a scheduler)
    COMPONENT/*.safetensors               weights: whole, in shards with an index, or of a variant (.fp16.)

Only safetensors are read, and only from disk: nothing is unpickled and nothing is fetched.
"""

import json
from collections.abc import Mapping, Sequence
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
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


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
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise self.error(f"{file.relative_to(self.path)} is not there or cannot be read") from error

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
        loader = _classes()[self.check(component, classes)]
        folder = self.path / component
        options: dict[str, Any] = {"variant": self._variant(folder), "local_files_only": True}
        name = "torch_dtype" if loader.__module__.startswith("diffusers") else "dtype"
        try:
            model, told = loader.from_pretrained(
                str(folder), use_safetensors=True, output_loading_info=True, **{name: dtype}, **options
            )
        except Exception as error:  # whatever a damaged file makes its reader raise
            said = " ".join(str(error).split())[:160]
            raise self.error(f"{component}/ cannot be loaded: {type(error).__name__}: {said}") from error
        if strange := misfit(told):
            raise self.error(f"the weights in {component}/ do not fit its config.json, see {strange}")
        broken = next((n for n, p in model.named_parameters() if not bool(p.isfinite().all())), None)
        if broken:
            raise self.error(f"{component}/ holds numbers that are not finite, in {broken}")
        return model.eval()

    def _variant(self, folder: Path) -> str | None:
        """The variant to load of a component; UserError where its files are not all there."""
        weights = sorted(folder.glob("*.safetensors"))
        plain = sorted(folder.glob("*.safetensors.index.json")) if self.variant is None else []
        for index in plain:
            shards = set(self._json(index).get("weight_map", {}).values())
            lacking = sorted(name for name in shards if not (folder / name).is_file())
            if lacking:
                raise self.error(f"{folder.name}/ lacks {lacking[0]}: the download is not complete")
        if not weights:
            pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
            if pickled:
                raise self.error(
                    f"{folder.name}/ holds pickled weights only ({pickled[0]}), which can run code: get the "
                    "safetensors"
                )
            raise self.error(f"{folder.name}/ holds no safetensors: the download is not complete")
        found = {_variant_of(path.name) for path in weights}
        if self.variant is not None and self.variant not in found:
            raise self.error(f"{folder.name}/ has no weights of variant={self.variant}")
        if self.variant is not None or None in found:
            return self.variant
        if len(found) > 1:
            raise self.error(f"{folder.name}/ has variants only, {', '.join(map(str, found))}: give variant=")
        return found.pop()

    def tokenizer(self, component: str) -> Any:
        """A tokenizer of its own folder."""
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
