"""What a run trains on."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from lmsd.engine.module import Engine
from lmsd.errors import UserError

Precision: TypeAlias = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Hardware:
    """What a run trains on, and how its ranks share the work.

    devices: processes on each of num_nodes machines; accelerator: cpu, gpu (cuda, mps), or auto; precision:
    32-true, or bf16-mixed; fsdp: shard the generator over the ranks (`engine.sharding`).

    Raises UserError for a precision that two players cannot train in.
    """

    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    precision: Precision = "32-true"
    fsdp: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UserError(
                f"precision={self.precision}: two players' losses need two loss scales in float16; use "
                "bf16-mixed, or 32-true where the device has no bfloat16"
            )

    @property
    def ranks(self) -> int:
        """Processes on all machines together."""
        return self.devices * self.num_nodes

    def check(self, engine: Engine) -> None:
        """Refuse what these processes cannot train. Raises UserError."""
        if self.fsdp:
            from lmsd.engine.sharding import require_shardable

            require_shardable(engine, self.ranks)


ALONE = Hardware()
"""One process on this machine, in float32."""
