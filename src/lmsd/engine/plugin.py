"""How Lightning reads and writes checkpoints here.

    synchronous     the state itself is written; training waits
    asynchronous    it is copied into a buffer, which a thread writes; both are kept from save to save.
                    Training waits for the copy, and for the previous save if that has not finished

A save that fails with an OSError (most often a full disk) does not end the run: earlier checkpoints stay, and
the next save tries again. The failure is reported at the next step.
"""

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from lmsd.checkpoints import read
from lmsd.engine.checkpoint import remove, save


class Snapshot:
    """Copies nested states into host memory that is allocated once and reused; shared tensors only once."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return sum(held.numel() * held.element_size() for held in self._held.values())

    @torch.no_grad()
    def __call__(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The current state, in buffers that are valid until the next call."""
        shared: dict[tuple[object, ...], Tensor] = {}
        copied: dict[str, Any] = self._copy(state, "", shared)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copied

    def _copy(self, value: Any, name: str, shared: dict[tuple[object, ...], Tensor]) -> Any:
        match value:
            case dict():
                return {key: self._copy(item, f"{name}.{key}", shared) for key, item in value.items()}
            case list() | tuple():
                return type(value)(self._copy(item, f"{name}.{n}", shared) for n, item in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if place not in shared or not value.numel():
            held = self._held.get(name)
            if held is None or (held.shape, held.dtype) != (value.shape, value.dtype):
                held = self._held[name] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            shared[place] = held.copy_(value, non_blocking=True)
        return shared[place]


class AtomicCheckpointIO(CheckpointIO):
    """`lmsd.engine.checkpoint` behind Lightning's interface; every path of Lightning's goes through it.

    asynchronous: write in a thread; after: called once a checkpoint is committed; failures: consecutive saves
    that raised an OSError.
    """

    def __init__(self, *, asynchronous: bool = False) -> None:
        self.asynchronous, self.failures = asynchronous, 0
        self.after: Callable[[], None] | None = None
        self._snapshot = Snapshot()
        self._pool = ThreadPoolExecutor(1, "checkpoint")  # one thread, kept; the interpreter waits for it
        self._saving: Future[None] | None = None
        self._error: BaseException | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write atomically, with a manifest, now or in the background."""
        self.wait()
        if not self.asynchronous:
            self._write(checkpoint, Path(path))
            return
        self._saving = self._pool.submit(self._write, self._snapshot(checkpoint), Path(path))

    def _write(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        committed = False
        try:
            save(checkpoint, path)
            self.failures, committed = 0, True
            if self.after is not None:
                self.after()
        except OSError as error:
            if committed:  # what could not be deleted is tried again after the next save
                warnings.warn(f"old checkpoints are not deleted: {error}", stacklevel=2)
            else:
                self.failures, self._error = self.failures + 1, error
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Report what went wrong in a save: warn of an OSError, raise any other."""
        error, self._error = self._error, None
        if isinstance(error, OSError):
            warnings.warn(
                f"checkpoint not written ({error}); training continues, and the next one is tried",
                stacklevel=2,
            )
        elif error is not None:
            raise error

    def wait(self) -> None:
        """Let the current save finish, and report how it went."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None
        self.check()

    def teardown(self) -> None:
        """Leave nothing half written."""
        self.wait()

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read, falling back to an intact one; always with weights_only=True, on the CPU."""
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the manifest, then the file."""
        remove(Path(path))
