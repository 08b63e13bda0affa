"""Randomness as a function, not as a state.

Every number is a hash of (seed, sample position, turn, tag, index):

    key = mix(seed, position, turn, crc32(tag))          one 64-bit key per sample of the batch
    u_i = mix(mix(key + i·φ) ⊕ key')                     SplitMix64's finalizer (Steele et al. 2014), twice

so times, noise, latents, caption drop and augmentation are the same for every world size, micro-batch and
restart. Two rounds of the finalizer keep the streams of different keys apart; one round, a walk on a common
orbit, would not. 64-bit integer products wrap around in two's complement, as the hash requires.
"""

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

_PHI = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_LOW_24 = 0xFFFFFF
_ALL_64 = 0xFFFFFFFFFFFFFFFF


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, which torch has only as an arithmetic one."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, elementwise; a bijection."""
    x = (x ^ _shift(x, 30)).mul_(_MIX_1)
    x = x.bitwise_xor_(_shift(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift(x, 31))


def _signed(x: int) -> int:
    """The int64 whose bits are the lowest 64 of x."""
    x &= _ALL_64
    return x - (1 << 64) if x >> 63 else x


def _fold_int(key: int, word: int) -> int:
    """One step of `fold` in plain Python, for what a whole batch shares: no tensor, no kernel launch."""
    x = (key * 31 + word + _PHI) & _ALL_64
    x = ((x ^ (x >> 30)) * _MIX_1) & _ALL_64
    x = ((x ^ (x >> 27)) * _MIX_2) & _ALL_64
    return _signed(x ^ (x >> 31))


def _folded(*words: Tensor | int) -> Tensor | int:
    key: Tensor | int = 0
    for word in words:
        if isinstance(key, Tensor):
            key = mix64(key * 31 + word + _PHI)
        elif isinstance(word, Tensor):
            key = mix64(word + _signed(key * 31 + _PHI))
        else:
            key = _fold_int(key, word)
    return key


def fold(*words: Tensor | int) -> Tensor:
    """Hash several words (int64 tensors that broadcast, or ints) into one int64 key."""
    return torch.as_tensor(_folded(*words), dtype=torch.int64)


class Rng:
    """Counter-based random numbers for one batch.

    seed: the run's, or int64 [B], each sample's own; position: int64 [B], the samples' places in the stream,
    on the device of the results; turn: the update (or sampling step) of the batch that draws.
    """

    def __init__(self, seed: int | Tensor, position: Tensor, *, turn: int = 0) -> None:
        self.seed = seed
        self.position = position
        self.turn = turn

    def __len__(self) -> int:
        return len(self.position)

    def at(self, turn: int) -> "Rng":
        """The numbers of another turn for the same samples."""
        return Rng(self.seed, self.position, turn=turn)

    def bits(self, count: int, tag: str) -> Tensor:
        """Hash words, int64 [B,count], all 64 bits random."""
        common = _folded(self.seed, self.turn, zlib.crc32(tag.encode()))
        key = fold(common, self.position)[:, None]
        index = torch.arange(1, count + 1, device=key.device) * _PHI
        return mix64(mix64(key + index) ^ mix64(key))

    def uniform(self, shape: Sequence[int], tag: str) -> Tensor:
        """Uniform numbers in [0, 1), float32 [B, *shape], multiples of 2⁻²⁴."""
        words = self.bits(math.prod(shape), tag)
        return _shift(words, 40).float().mul_(2.0**-24).view(len(self), *shape)

    def normal(self, shape: Sequence[int], tag: str) -> Tensor:
        """Standard normal numbers, float32 [B, *shape], two per word (Box and Muller 1958)."""
        count = math.prod(shape)
        words = self.bits((count + 1) // 2, tag)
        radius = (_shift(words, 40).float().add_(0.5).mul_(2.0**-24)).log_().mul_(-2.0).sqrt_()
        angle = (words & _LOW_24).float().mul_(2.0 * math.pi * 2.0**-24)
        pair = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return pair[:, :count].reshape(len(self), *shape)

    def integer(self, low: int, high: int, shape: Sequence[int], tag: str) -> Tensor:
        """Integers in [low, high), int64 [B, *shape]; the bias is below (high − low)·2⁻⁶³."""
        words = _shift(self.bits(math.prod(shape), tag), 1)
        return (words % (high - low) + low).view(len(self), *shape)
