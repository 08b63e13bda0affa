"""The one way in which Lightning reads and writes checkpoints here."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from lmsd.engine.checkpoint import read, remove, save


class AtomicCheckpointIO(CheckpointIO):
    """`lmsd.engine.checkpoint` behind Lightning's interface; every path of Lightning's goes through it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write atomically, with a manifest."""
        save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read, falling back to an intact one; always with weights_only=True, on the CPU."""
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the manifest, then the file."""
        remove(Path(path))
