"""Gradients that travel while the backward pass goes on.

    g ← (1/W) Σ_r g_r            the gradient of the mean over the global batch: ranks have equal shares of it

A player's parameters are cut into buckets: a large one is a bucket by itself and is reduced where it lies,
small ones share a copy. A bucket leaves as soon as all of its gradients are there and those before it have
left, so every rank sends the same buckets in the same order, whatever it has used. What is missing when the
backward pass ends (a parameter that this rank did not use) is sent as zeros then. With the last bucket go
flags, which say who had a gradient: a parameter that no rank used keeps `grad = None`.

The order is the one in which rank 0's gradients were ready, sent to all after a player's first turn, and
again after a turn in which some rank had other gradients than when it was sent, as in another phase of a
method; one number beside the flags says so. Until then it is that of the parameters, backwards.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmsd.engine.parts import is_sharded
from lmsd.ranks import world_size

LARGE = 1 << 18
"""Numbers from which a gradient is a bucket by itself."""
SHARED = 1 << 20
"""Numbers that small gradients fill a bucket up to."""
COPIED = 32 << 20
"""Bytes of copies that are on their way at most, but for one: beyond them the oldest is waited for."""


@dataclass
class Order:
    """In which order a player's gradients leave.

    parameters: all that are reduced; places: their numbers, in the order of leaving; present: which had a
    gradient on this rank in the turn that the order is from, None before; ready, had: the order and presence
    in the last turn; told: above 0 after a turn in which the order did not hold on some rank.
    """

    parameters: list[nn.Parameter]
    places: list[int]
    present: tuple[bool, ...] | None = None
    ready: list[int] = field(default_factory=list)
    had: tuple[bool, ...] = ()
    told: Tensor | None = None

    def buckets(self) -> list[list[int]]:
        """The buckets: numbers of parameters of one dtype."""
        found: list[list[int]] = []
        size, dtype = 0, None
        for place in self.places:
            parameter = self.parameters[place]
            size += parameter.numel()
            if not found or size > SHARED or parameter.dtype != dtype or parameter.numel() >= LARGE:
                found.append([])
                size = SHARED if parameter.numel() >= LARGE else parameter.numel()
            dtype = parameter.dtype
            found[-1].append(place)
        return found


class Passage:
    """One turn's gradients on their way: in which buckets, what of each is missing, and what has left."""

    def __init__(self, order: Order) -> None:
        self.order, self.buckets = order, order.buckets()
        self.missing = [len(bucket) for bucket in self.buckets]
        self.where = {place: number for number, bucket in enumerate(self.buckets) for place in bucket}
        self.numbers = {id(parameter): number for number, parameter in enumerate(order.parameters)}
        self.left = self.copied = 0
        self.waits: list[tuple[Any, Tensor, list[Tensor]]] = []
        last = self.buckets[-1]
        self.flagged = len(last) > 1 or order.parameters[last[0]].numel() < LARGE  # the flags go in its copy

    def size(self, bucket: int) -> int:
        """Numbers in a bucket."""
        return sum(self.order.parameters[place].numel() for place in self.buckets[bucket])


class Reducer:
    """Averages one player's gradients over the ranks; does nothing in a single process.

    elements, calls: how many numbers have been sent so far, in how many calls; early: how many of them before
    their backward pass had ended; most: bytes of copies that were on their way at one time. Sharded
    parameters (`engine.sharding`) are left out: their backward pass reduces.
    """

    def __init__(self) -> None:
        self.elements = self.calls = self.early = self.most = 0
        self._orders: dict[int, Order] = {}
        self._passage: Passage | None = None

    @contextmanager
    def sending(self, parameters: Sequence[nn.Parameter], *, last: bool = True) -> Iterator[None]:
        """Surround the backward pass of a turn's last micro-batch, in which gradients leave as they come."""
        own = [parameter for parameter in parameters if not is_sharded(parameter)]
        if world_size() == 1 or not last or not own:
            yield
            return
        passage = self._passage = self._begin(own)

        def come(parameter: Tensor) -> None:
            self._come(passage, passage.numbers[id(parameter)])

        hooks = [parameter.register_post_accumulate_grad_hook(come) for parameter in own]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.early += sum(map(passage.size, range(passage.left)))

    @torch.no_grad()
    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every `grad` by its mean over the ranks, once what is missing has left, too."""
        own = [parameter for parameter in parameters if not is_sharded(parameter)]
        if world_size() == 1 or not own:
            return
        passage, self._passage = self._passage or self._begin(own), None
        order = passage.order
        order.had = tuple(parameter.grad is not None for parameter in own)
        for parameter in own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flags = torch.tensor([*order.had, order.had != order.present]).to(own[order.places[-1]])
        while passage.left < len(passage.buckets):
            last = passage.left == len(passage.buckets) - 1
            self._leave(passage, flags if last and passage.flagged else None)
        if not passage.flagged:
            self._send(passage, flags, [])
        while passage.waits:
            self._arrive(passage)
        order.told = flags[-1]
        # Reading the flags waits for the device, so it is done only if this rank lacks a gradient.
        used = [] if all(order.had) else flags.gt(0).tolist()
        for parameter, needed in zip(own, used, strict=False):
            parameter.grad = parameter.grad if needed else None

    def _begin(self, own: list[nn.Parameter]) -> Passage:
        """A turn of these parameters, in the order that holds."""
        order = self._orders.get(id(own[0]))
        if order is None or len(order.parameters) != len(own):
            order = self._orders[id(own[0])] = Order(own, list(range(len(own)))[::-1])
        elif order.told is not None and order.told.item() > 0:
            came = dict.fromkeys([*order.ready, *order.places])  # what never came goes last
            places = torch.tensor(list(came), device=own[0].device)
            dist.broadcast(places, src=0)
            order.places, order.present = places.tolist(), order.had
        order.ready = []
        return Passage(order)

    @torch.no_grad()
    def _come(self, passage: Passage, number: int) -> None:
        """A gradient is there: let complete buckets leave; one that carries the flags waits for them."""
        passage.order.ready.append(number)
        bucket = passage.where[number]
        passage.missing[bucket] -= 1
        if passage.missing[bucket] < 0:
            raise RuntimeError("a gradient changes after it was sent: a parameter is reached twice")
        free = len(passage.buckets) - passage.flagged
        while passage.left < free and not passage.missing[passage.left]:
            self._leave(passage)

    def _leave(self, passage: Passage, flags: Tensor | None = None) -> None:
        """Send the next bucket, and the flags after the last."""
        places = passage.buckets[passage.left]
        passage.left += 1
        parameters = [passage.order.parameters[place] for place in places]
        grads = [_laid_out(parameter) for parameter in parameters]
        alone = _in_line(grads[0]) if len(grads) == 1 and grads[0].numel() >= LARGE else None
        if alone is not None:
            self._send(passage, alone, [])
        else:
            grads += [] if flags is None else [flags]
            self._send(passage, torch.cat([grad.reshape(-1) for grad in grads]), grads)

    def _send(self, passage: Passage, sent: Tensor, copies: list[Tensor]) -> None:
        """Begin to add up over the ranks; copies: what `sent` is a copy of, none if it is no copy."""
        self.calls += 1
        self.elements += sent.numel()
        passage.waits.append((dist.all_reduce(sent, async_op=True), sent, copies))
        passage.copied += sent.nbytes if copies else 0
        self.most = max(self.most, passage.copied)
        while passage.copied > COPIED:
            self._arrive(passage)

    def _arrive(self, passage: Passage) -> None:
        """Wait for what left first, and put the means where they belong."""
        work, sent, copies = passage.waits.pop(0)
        work.wait()
        sent.div_(world_size())
        if not copies:
            return
        passage.copied -= sent.nbytes
        for copy, part in zip(copies, sent.split([copy.numel() for copy in copies]), strict=True):
            copy.copy_(part.view(copy.shape))


def _laid_out(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient in the parameter's own layout, which is the same on every rank."""
    assert parameter.grad is not None
    if parameter.grad.stride() != parameter.stride():
        parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
    return parameter.grad


def _in_line(grad: Tensor) -> Tensor | None:
    """All of its numbers in a row, without a copy; None where that cannot be."""
    if grad.is_contiguous():
        return grad.view(-1)
    if grad.ndim == 4 and grad.is_contiguous(memory_format=torch.channels_last):
        return grad.permute(0, 2, 3, 1).view(-1)
    return None
