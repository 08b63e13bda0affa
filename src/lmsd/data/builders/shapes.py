"""Captioned scenes of one shape each, and the exact reader that turns a picture back into words.

A scene has words (shape, color, size, position) and what the caption leaves open (background, shift, scale).
In coordinates p of the unit square, y down, a shape of radius r at c covers a pixel by its signed distance d:

    A(p) = clip(1/2 − d((p − c)/r) · r · S, 0, 1)              S: pixels along a side
    x(p) = (1 − A) · background + A · color

Reading inverts it. With the background b from the border and the color k of the palette that explains most of
x − b, least squares gives A = ⟨x − b, k − b⟩/‖k − b‖². The moments of its largest connected part give, for
every shape, radius and center

    r = √(ΣA / (a S²)),   c = Σ p A / ΣA − r o                 a, o: area and centroid of the shape at r = 1

and the shape is the one whose rendering fits A with the smallest Σ(A − A')².
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lmsd.errors import UserError

Shape: TypeAlias = Literal["circle", "square", "triangle", "cross", "ring"]
Color: TypeAlias = Literal["red", "green", "blue", "yellow", "purple", "cyan"]
Size: TypeAlias = Literal["small", "large"]
Position: TypeAlias = Literal["left", "right", "top", "bottom", "center"]
Background: TypeAlias = Literal["black", "gray", "white"]
Floats: TypeAlias = NDArray[np.floating[Any]]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLORS: tuple[Color, ...] = get_args(Color)
SIZES: tuple[Size, ...] = get_args(Size)
POSITIONS: tuple[Position, ...] = get_args(Position)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
WORDS = ("shape", "color", "size", "position")
"""What a caption says of a scene, and so what `check` judges."""
_NAMES: dict[str, tuple[str, ...]] = dict(zip(WORDS, (SHAPES, COLORS, SIZES, POSITIONS), strict=True))

SMALLEST = 16
"""Smallest side in pixels at which every scene reads back exactly."""
SHIFT = 0.03
"""Largest shift of a center from its word's place, in sides of the image."""
SCALE = 0.05
"""Largest relative departure of a radius from its word's."""

_PALETTE = np.array(
    [[225, 45, 40], [40, 165, 65], [45, 85, 225], [240, 200, 40], [155, 60, 195], [40, 195, 215]], np.float32
)
_GROUND = np.array([[18, 18, 22], [120, 120, 124], [240, 240, 236]], np.float32)
GROUND_OF: dict[str, Floats] = dict(zip(BACKGROUNDS, _GROUND, strict=True))
"""The color of every background, in levels 0..255."""
_RADIUS = np.array([0.155, 0.26], np.float32)
_PLACE = np.array([[0.3, 0.5], [0.7, 0.5], [0.5, 0.3], [0.5, 0.7], [0.5, 0.5]], np.float32)
_PHRASE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
_CAPTION = re.compile(
    rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) ({'|'.join(_PHRASE.values())})"
)
_HALF_SQUARE, _ARM, _HOLE = 0.88, 0.32, 0.55
_TOP, _BASE = -0.95, 0.85
_EDGE = float(np.hypot(1.0, _BASE - _TOP))
_AREA = np.array(
    [np.pi, 4 * _HALF_SQUARE**2, _BASE - _TOP, 8 * _ARM - 4 * _ARM**2, np.pi * (1 - _HOLE**2)], np.float32
)
_CENTROID = np.array([0.0, 0.0, (_TOP + 2 * _BASE) / 3, 0.0, 0.0], np.float32)

LEAST_FIT = 0.6
"""A shape counts as present from this fit on (see `Reading`)."""
FARTHEST_COLOR = 90.0
"""A color counts as named within this Euclidean distance (levels of 255) of its palette entry."""


@dataclass(frozen=True)
class Scene:
    """One shape on a plain background; the first four fields are the caption's."""

    shape: Shape
    color: Color
    size: Size
    position: Position
    background: Background = "black"
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    def caption(self) -> str:
        """The sentence, e.g. "a large red circle on the left"."""
        return f"a {self.size} {self.color} {self.shape} {_PHRASE[self.position]}"

    @property
    def label(self) -> int:
        """Class index of (shape, color), in [0, 30)."""
        return SHAPES.index(self.shape) * len(COLORS) + COLORS.index(self.color)


def class_names() -> list[str]:
    """The names of the 30 labels in order, "red circle" first."""
    return [f"{color} {shape}" for shape in SHAPES for color in COLORS]


def random_scene(rng: np.random.Generator, holdout: Sequence[str] = ()) -> Scene:
    """A scene with independent uniform attributes, shift and scale; no "color shape" pair of `holdout`."""
    while True:
        shape, color = SHAPES[rng.integers(len(SHAPES))], COLORS[rng.integers(len(COLORS))]
        if f"{color} {shape}" not in holdout:
            break
    dx, dy = rng.uniform(-SHIFT, SHIFT, 2)
    return Scene(
        shape,
        color,
        SIZES[rng.integers(len(SIZES))],
        POSITIONS[rng.integers(len(POSITIONS))],
        BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        (float(dx), float(dy)),
        float(rng.uniform(1 - SCALE, 1 + SCALE)),
    )


def misread(scene: Scene, rng: np.random.Generator, holdout: Sequence[str] = ()) -> Scene:
    """The scene with one of the caption's words replaced by another; no "color shape" pair of `holdout`."""
    while True:
        word = WORDS[rng.integers(len(WORDS))]
        others: list[Any] = [name for name in _NAMES[word] if name != vars(scene)[word]]
        told = replace(scene, **{word: others[rng.integers(len(others))]})
        if f"{told.color} {told.shape}" not in holdout:
            return told


def parse_caption(text: str) -> Scene:
    """The scene a caption describes, what it leaves open at its default; UserError for any other text."""
    found = _CAPTION.fullmatch(" ".join(text.lower().strip(" .").split()))
    if found is None:
        raise UserError(
            f"cannot read {text!r} as a scene; write it like "
            f"{Scene('circle', 'red', 'large', 'left').caption()!r}"
        )
    size, color, shape, phrase = found.groups()
    position = next(name for name, words in _PHRASE.items() if words == phrase)
    return Scene(shape, color, size, position)  # type: ignore[arg-type]  # the pattern admits these words only


def _distance(shape: Shape, u: Floats, v: Floats) -> Floats:
    """Signed distance (negative inside; exact near edges) from points (u, v) to the shape at r = 1."""
    a, b = np.abs(u), np.abs(v)
    distance: Floats
    if shape in ("circle", "ring"):
        radius = np.hypot(u, v)
        distance = radius - 1 if shape == "circle" else np.maximum(radius - 1, _HOLE - radius)
    elif shape == "square":
        distance = np.maximum(a, b) - _HALF_SQUARE
    elif shape == "cross":
        distance = np.minimum(np.maximum(a - 1, b - _ARM), np.maximum(a - _ARM, b - 1))
    else:
        slope = ((_BASE - _TOP) * a - (v - _TOP)) / _EDGE
        distance = np.maximum(slope, v - _BASE)
    return distance


def coverage(shape: Shape, center: Floats, radius: Floats, size: int) -> Floats:
    """A [B, size, size] in [0, 1] of one shape; centers [B, 2] (x, y) and radii [B] in sides of the image."""
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size
    r = np.maximum(radius, 1e-3)[:, None, None]
    u = (pixels[None, None, :] - center[:, 0, None, None]) / r
    v = (pixels[None, :, None] - center[:, 1, None, None]) / r
    u, v = np.broadcast_arrays(u, v)
    cover: Floats = np.clip(0.5 - _distance(shape, u, v) * (r * size), 0, 1).astype(np.float32)
    return cover


def render(scene: Scene, size: int) -> NDArray[np.uint8]:
    """The scene as an antialiased picture uint8 [size, size, 3]; size ≥ 16, or shapes run together."""
    if size < SMALLEST:
        raise UserError(f"shapes cannot be told apart at {size}x{size}; take image_size={SMALLEST} or more")
    center = _PLACE[POSITIONS.index(scene.position)] + np.array(scene.shift, np.float32)
    radius = _RADIUS[SIZES.index(scene.size)] * np.float32(scene.scale)
    a = coverage(scene.shape, center[None], np.array([radius], np.float32), size)[0][..., None]
    ground, color = _GROUND[BACKGROUNDS.index(scene.background)], _PALETTE[COLORS.index(scene.color)]
    pixels: NDArray[np.uint8] = np.round((1 - a) * ground + a * color).astype(np.uint8)
    return pixels


@dataclass(frozen=True)
class Reading:
    """What a batch of pictures shows: words, the background's index [B], and where.

    words: of `WORDS`, indices [B] into their vocabularies, −1 where nothing fits; fit [B] in [0, 1]:
    intersection over union of the best rendering and the object, over 1 + 2 × the area of all else that
    stands out, as a part of the object's; center [B, 2] (x, y), radius [B] in sides of the image.
    """

    words: dict[str, NDArray[np.int64]]
    background: NDArray[np.int64]
    fit: Floats
    center: Floats
    radius: Floats


def as_levels(images: Tensor | NDArray[np.uint8] | Floats) -> Floats:
    """Any batch as float32 [B, H, W, 3] in levels 0..255: uint8 [B,H,W,3], or float [B,3,H,W] in [−1, 1]."""
    array = images.detach().float().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3:
        return array.astype(np.float32)
    if array.ndim != 4 or array.shape[1] != 3 or array.shape[2] != array.shape[3]:
        raise ValueError(f"scenes are uint8 [B,H,W,3] or float [B,3,H,H] in [-1,1], not {array.shape}")
    levels: Floats = np.clip((array.transpose(0, 2, 3, 1).astype(np.float32) + 1) * 127.5, 0, 255)
    return levels


def _nearest(values: Floats, anchors: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Index of and Euclidean distance to the nearest of `anchors` [K, D] for every row of `values` [B, D]."""
    distance = np.sqrt(((values[:, None] - anchors[None]) ** 2).sum(2))
    index = distance.argmin(1)
    return index, np.take_along_axis(distance, index[:, None], 1)[:, 0]


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 8-connected component of every mask in [B, H, W]."""
    near = np.zeros((3, 3, 3), bool)
    near[1] = True
    labels, count = ndimage.label(mask, structure=near)
    area = np.bincount(labels.ravel(), minlength=count + 1)
    area[0] = 0
    of_pixel = area[labels]
    winner = np.where(of_pixel == of_pixel.max((1, 2), keepdims=True), labels, 0).max((1, 2), keepdims=True)
    result: NDArray[np.bool_] = mask & (labels == winner)
    return result


def _cover(x: Floats) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Coverage A [B,H,W] of the one object, indices of background and color, the color's distance, the rest.

    The rest [B] is the area of all that stands out apart from the object, as a part of the object's.
    """
    edge = np.concatenate([x[:, 0], x[:, -1], x[:, 1:-1, 0], x[:, 1:-1, -1]], 1)
    ground = np.median(edge, axis=1).astype(np.float32)
    background, _ = _nearest(ground, _GROUND)
    d = (x - ground[:, None, None]).reshape(len(x), -1, 3)
    ray = _PALETTE[None] - ground[:, None]
    energy = np.maximum((ray**2).sum(2), 1.0)
    along = d @ (ray / energy[..., None]).transpose(0, 2, 1)
    a = np.clip(along, 0, 1)
    color = ((a * (2 * along - a)).sum(1) * energy).argmax(1)  # the color whose ray explains most of ‖x − b‖²
    a = np.take_along_axis(a, color[:, None, None], 2)[..., 0]
    inside, near = _object(a.reshape(x.shape[:3]))
    a = np.where(near, a, 0).astype(np.float32)
    seen = ground + (a[..., None] * d).sum(1) / np.maximum((a**2).sum(1), 1e-3)[:, None]
    away = (d**2).sum(2) > 0.36 * energy[np.arange(len(x)), color][:, None]
    rest = (away & ~near).sum(1) / np.maximum(inside.sum(1), 1)
    return a.reshape(x.shape[:3]), background, color, np.sqrt(((seen - _PALETTE[color]) ** 2).sum(1)), rest


def _object(a: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The largest connected part of coverages [B,H,W], and the same with the pixels around it, as [B,H·W]."""
    inside = _largest(a > 0.4)
    near = np.zeros((3, 3, 3), bool)
    near[1] = True
    around = ndimage.binary_dilation(inside, structure=near)
    return inside.reshape(len(a), -1), around.reshape(len(a), -1)


def _fit(a: Floats, shape: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Squared error, IoU, center and radius of one shape set to the moments of the coverages [B, S, S]."""
    size = a.shape[1]
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size
    mass = np.maximum(a.sum((1, 2)), 1e-3)
    radius = np.sqrt(mass / _AREA[shape]) / size
    center = np.stack([(a.sum(1) @ pixels) / mass, (a.sum(2) @ pixels) / mass - radius * _CENTROID[shape]], 1)
    guess = coverage(SHAPES[shape], center, radius, size)
    error = ((a - guess) ** 2).sum((1, 2)) / mass
    iou = np.minimum(a, guess).sum((1, 2)) / np.maximum(np.maximum(a, guess).sum((1, 2)), 1e-3)
    return error, iou, center, radius


def read_scenes(images: Tensor | NDArray[np.uint8] | Floats) -> Reading:
    """What every picture of a batch shows, from uint8 [B,H,W,3] or float [B,3,H,W] in [−1, 1]."""
    a, background, color, distance, rest = _cover(as_levels(images))
    fits = [_fit(a, shape) for shape in range(len(SHAPES))]
    best = np.stack([fit[0] for fit in fits]).argmin(0)
    rows = np.arange(len(a))
    iou, center, radius = (np.stack([fit[i] for fit in fits])[best, rows] for i in (1, 2, 3))
    fit = iou / (1 + 2 * rest)
    size, far = _nearest(np.log(np.maximum(radius, 1e-3))[:, None], np.log(_RADIUS)[:, None])
    position, off = _nearest(center, _PLACE)
    seen = fit >= LEAST_FIT
    return Reading(
        words={
            "shape": np.where(seen, best, -1),
            "color": np.where(seen & (distance <= FARTHEST_COLOR), color, -1),
            "size": np.where(seen & (far <= 0.5 * np.log(_RADIUS[1] / _RADIUS[0])), size, -1),
            "position": np.where(seen & (off <= 0.1), position, -1),
        },
        background=background,
        fit=fit,
        center=center,
        radius=radius,
    )


def check(
    images: Tensor | NDArray[np.uint8] | Floats, captions: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """Whether pictures show their captions: {"shape", "color", "size", "position", "all"} → bool [B].

    images as for `read_scenes`. A picture in which no shape is found is wrong in every word.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    found = read_scenes(images)
    asked = [parse_caption(text) for text in captions]
    right: dict[str, NDArray[np.bool_]] = {}
    for word, names in _NAMES.items():
        right[word] = found.words[word] == [names.index(vars(scene)[word]) for scene in asked]
    right["all"] = np.logical_and.reduce([right[word] for word in WORDS])
    return right
