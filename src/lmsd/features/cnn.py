"""lmsd-cnn: the small classifier whose features a data set is scored with, trained on its own train split.

    x [-1,1] → patches → conv stages down to 4×4 → mean and max over space → f [n,64] → SiLU → logits

Batch norm (running statistics once trained) and a one-cycle rate make a few passes enough; the features stand
before the last nonlinearity, so none of them is dead, and are divided by one number so that their mean
variance over the train split is 1: FD is then in units of "one feature's variance", comparable in size
between data sets.

What it learns: the class index where samples have one, else every telling word of the caption at once (a
logistic score for each). Its name carries its weights: `lmsd-cnn@ab12`. The recipe is kept beside them.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.features.base import ImageSet, Speechless, captions_of, in_range
from lmsd.features.training import CHUNK, Augment, Training, augmented, budget, fit, loaded
from lmsd.files import replacing, write_text
from lmsd.types import Progress, scale

FEATURES = 64

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Recipe:
    """All that is needed to train the same weights again, and what they reached.

    target: what was learned (views: without labels, see `ssl`); classes: the words, or "0", "1", ... for
    class indices; data: the train split's hash; accuracy: share of held-out images with every answer right
    (None where no held-out set was given, or nothing was asked); width: of the net's first stage.
    """

    channels: int
    image_size: int
    target: Literal["label", "words", "views"]
    classes: tuple[str, ...]
    training: Training
    train_images: int
    data: str
    torch: str
    accuracy: float | None = None
    width: int = 32

    def as_json(self) -> dict[str, object]:
        """The recipe as one flat object, as it lies beside the weights."""
        own = asdict(self)
        return {**own.pop("training"), **own}

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> "Recipe":
        """The recipe of such an object."""
        training = Training(**{each.name: card[each.name] for each in fields(Training)})
        own = {name: value for name, value in card.items() if name not in vars(training)}
        return cls(**{**own, "classes": tuple(own["classes"])}, training=training)


class _Stage(nn.Sequential):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = _Stage(width, width)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch


class LMSDCNN(nn.Module):
    """The classifier (module formula); stages halve a grid of at most 16×16 down to 4×4, widths 32, 64, 128.

    channels: of the images; image_size: H = W ≥ 8, a multiple of H/16 where H > 16; classes: number of
    logits (0: no classifier, the features' SiLU in their place); width: of the first stage.
    """

    scale: Tensor

    def __init__(self, channels: int, image_size: int, classes: int, width: int = 32) -> None:
        super().__init__()
        patch = max(1, image_size // 16)
        if image_size < 8 or image_size % patch:
            raise UserError(f"lmsd-cnn takes images of 8 to 31 pixels or a multiple of 16, not {image_size}")
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch)] if patch > 1 else []
        size, before = image_size // patch, channels * patch**2
        layers.append(_Stage(before, width))
        while size >= 8:
            layers += [nn.MaxPool2d(2), _Stage(width, 2 * width), _Residual(2 * width)]
            size, width = size // 2, 2 * width
        self.trunk = nn.Sequential(*layers)
        self.features = nn.Linear(2 * width, FEATURES)
        self.head = nn.Linear(FEATURES, classes) if classes else nn.Identity()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,C,H,W] in [-1,1] → (features [n,64], logits [n,classes])."""
        h: Tensor = self.trunk(x)
        f: Tensor = self.features(torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1))
        return f / self.scale, self.head(F.silu(f))


@dataclass(frozen=True)
class Extractor(Speechless):
    """A trained lmsd-cnn with its identity; call it on images for (features, logits)."""

    net: LMSDCNN
    recipe: Recipe
    sha256: str
    resize = None
    reference = False

    @property
    def kind(self) -> str:
        """`lmsd-cnn`, or `lmsd-ssl` where it learned without labels; its files are called after it."""
        return "lmsd-ssl" if self.recipe.target == "views" else "lmsd-cnn"

    @property
    def name(self) -> str:
        """`lmsd-cnn@ab12`: what every metric made with it is called after."""
        return f"{self.kind}@{self.sha256[:4]}"

    @property
    def exclusive(self) -> bool:
        """Whether every image has one class, which the logits tell."""
        return self.recipe.target == "label"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,C,H,W] (`in_range`) → (features [n,64], logits [n,classes]) on the CPU, 500 at a time."""
        images = in_range(images)
        expected = (self.recipe.channels, self.recipe.image_size, self.recipe.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(f"{self.name} was trained on images {expected}, not {tuple(images.shape[1:])}")
        device = self.net.scale.device
        parts = [self.net(part.to(device)) for part in images.split(CHUNK)]
        features, logits = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        return features, logits[:, : len(self.recipe.classes)]

    def right(self, logits: Tensor, labels: Tensor | None, captions: Sequence[str] | None) -> Tensor | None:
        """Whether each image shows what was asked for, bool [n]: the class, or every known word."""
        if self.recipe.target == "views":
            return None
        target = self.target(labels, captions)
        if self.recipe.target == "label":
            return logits.argmax(dim=1) == target
        return ((logits > 0) == (target > 0)).all(dim=1)

    def target(self, labels: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        """What the logits should say: class indices [n], or 0/1 for every word [n,classes]."""
        return _targets(self.recipe.target, self.recipe.classes, labels, captions)


def train_extractor(
    train: ImageSet,
    held_out: ImageSet | None = None,
    *,
    augment: Augment = "shift",
    images: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    seed: int = 0,
    width: int = 32,
    data: str = "",
    progress: Progress | None = None,
) -> Extractor:
    """Train lmsd-cnn with AdamW in one cycle of `images` images (None: by `budget`).

    augment: random shifts by H/8, with or without mirroring (not for digits or captions that say "left");
    seed: the only source of randomness (the caller's generators stay untouched); data: hash of the split, for
    the recipe. The train split is held in memory as uint8. Raises UserError where neither labels nor captions
    tell samples apart.
    """
    pixels, labels, captions = loaded(train)
    target, classes = _vocabulary(labels, captions)
    goal = _targets(target, classes, labels, captions)
    count = budget(len(pixels)) if images is None else images
    training = Training(count, min(batch_size, len(pixels)), learning_rate, augment, seed)
    recipe = replace(recipe_of(pixels, target, classes, training, data), width=width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LMSDCNN(recipe.channels, recipe.image_size, len(classes), width)
    cross = F.cross_entropy if target == "label" else F.binary_cross_entropy_with_logits

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        return cross(net(augmented(scale(pixels[rows]), augment, generator))[1], goal[rows])

    fit(net, training, len(pixels), loss, told="lmsd-cnn", progress=progress)
    extractor = finished(net, recipe, pixels)
    return extractor if held_out is None else _with_accuracy(extractor, held_out)


def recipe_of(
    pixels: Tensor,
    target: Literal["label", "words", "views"],
    classes: tuple[str, ...],
    training: Training,
    data: str,
) -> Recipe:
    """The recipe of a net that learns from pixels [n,C,H,W]."""
    n, channels, size, _ = pixels.shape
    return Recipe(channels, size, target, classes, training, n, data, torch.__version__)


def save_extractor(extractor: Extractor, folder: Path) -> Path:
    """Write `KIND.safetensors` and `KIND.json` (recipe, sha256) into `folder`; the weights' path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{extractor.kind}.safetensors"
    with replacing(path) as partial:
        partial.write_bytes(_weights(extractor.net))
    card = {"name": extractor.name, "sha256": extractor.sha256, "recipe": extractor.recipe.as_json()}
    write_text(path.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    return path


def load_extractor(path: str | Path, *, kind: str = "lmsd-cnn") -> Extractor:
    """The extractor that `save_extractor` wrote into `path` (its folder, or the .safetensors file itself)."""
    file = Path(path)
    file = file / f"{kind}.safetensors" if file.is_dir() else file
    if not file.is_file() or not file.with_suffix(".json").is_file():
        raise UserError(f"no {kind}.safetensors and .json at {path}: train one with `lmsd data features`")
    card, weights = json.loads(file.with_suffix(".json").read_text()), file.read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    if sha256 != card["sha256"]:
        raise UserError(
            f"{file} is damaged: its sha256 is {sha256[:8]}, its recipe says {card['sha256'][:8]}"
        )
    recipe = Recipe.from_json(card["recipe"])
    net = LMSDCNN(recipe.channels, recipe.image_size, len(recipe.classes), recipe.width)
    net.load_state_dict(load_tensors(weights))
    return Extractor(net.eval().requires_grad_(False), recipe, sha256)


def _vocabulary(
    labels: Tensor | None, captions: Sequence[str] | None
) -> tuple[Literal["label", "words"], tuple[str, ...]]:
    """What to learn: class indices, or at most 256 words that 0.5 % to 99.5 % of the captions hold."""
    if labels is not None and int(labels.min()) < int(labels.max()):
        return "label", tuple(str(index) for index in range(int(labels.max()) + 1))
    total = len(captions or ())
    counts = Counter(word for caption in captions or () for word in set(_WORD.findall(caption.lower())))
    telling = [item for item in counts.most_common() if max(0.005 * total, 2) <= item[1] <= 0.995 * total][
        :256
    ]
    if not telling:
        raise UserError(
            "lmsd-cnn has nothing to learn: the samples have no class and no captions that differ; lmsd-ssl "
            "needs neither (evaluate.extractor.kind=lmsd-ssl, or lmsd data features kind=ssl)"
        )
    return "words", tuple(sorted(word for word, _ in telling))


def _targets(
    target: str,
    classes: tuple[str, ...],
    labels: Tensor | None,
    captions: Sequence[str] | None,
) -> Tensor:
    """Class indices [n], or 0/1 for every word [n,classes]."""
    if target == "label":
        if labels is None:
            raise UserError("this lmsd-cnn was trained on class indices, and these samples have none")
        return labels
    if captions is None:
        raise UserError("this lmsd-cnn was trained on words of captions, and these samples have none")
    place = {word: column for column, word in enumerate(classes)}
    result = torch.zeros(len(captions), len(classes))
    for row, caption in enumerate(captions):
        result[row, [place[word] for word in _WORD.findall(caption.lower()) if word in place]] = 1.0
    return result


@torch.no_grad()
def finished(net: LMSDCNN, recipe: Recipe, pixels: Tensor) -> Extractor:
    """The net ready for use, its features' mean variance over (at most 10,000) training images set to 1."""
    net.eval().requires_grad_(False)
    parts = [net(scale(part))[0] for part in pixels[:10_000].split(CHUNK)]
    net.scale.copy_(torch.cat(parts).double().var(dim=0).mean().sqrt())
    return Extractor(net, recipe, hashlib.sha256(_weights(net)).hexdigest())


def _weights(net: LMSDCNN) -> bytes:
    return save_tensors({name: value.contiguous() for name, value in net.state_dict().items()})


def _with_accuracy(extractor: Extractor, held_out: ImageSet) -> Extractor:
    right = []
    for start in range(0, len(held_out), CHUNK):
        rows = range(start, min(start + CHUNK, len(held_out)))
        logits = extractor(held_out.images(rows))[1]
        told = extractor.right(logits, held_out.labels(rows), captions_of(held_out, rows))
        right += [] if told is None else [told]
    accuracy = float(torch.cat(right).double().mean())
    return replace(extractor, recipe=replace(extractor.recipe, accuracy=accuracy))
