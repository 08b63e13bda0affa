"""What a person asks of a run while it trains: sample, evaluate, save, stop; all ranks do it after one batch.

    RUN/asked.json    {"id": "5f0c...", "what": "save"}                       written whole, taken by the run
    RUN/answer.json   {"id": "5f0c...", "what": "save", "images": 12800, "said": "..."}

Rank 0 looks for a file after every batch and broadcasts what it found over a CPU group of its own, in the
background,

    w_n = what rank 0 found after batch n,   done by all after batch n + 1 (a single process: after batch n),

so that no batch waits. Nothing that is asked changes training: noise is a function of the position, and early
stopping hears of no score but those that were due. A request that is there when training begins is an earlier
session's; it and one that cannot be read are taken away with a line.
"""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lmsd.checkpoints import checkpoint_name
from lmsd.engine.callbacks import Evaluate, engine_of
from lmsd.engine.module import Engine
from lmsd.engine.players import PlayersStrategy
from lmsd.errors import redact
from lmsd.files import write_text
from lmsd.ranks import world_size
from lmsd.stops import CODES, BrokenOff

What: TypeAlias = Literal["sample", "evaluate", "save", "stop"]
WORDS: tuple[str, ...] = get_args(What)
ASKED, ANSWER = "asked.json", "answer.json"
INTERRUPTED = min(CODES.values())
"""The exit code of a run that is asked to stop: Ctrl-C's, after which no scheduler queues it again."""

Sample: TypeAlias = Callable[[Engine], None]


def ask(folder: Path, what: What, identity: str) -> Path:
    """Leave a request in a run's folder; its path."""
    path = folder / ASKED
    write_text(path, json.dumps({"id": identity, "what": what}) + "\n")
    return path


def answered(folder: Path, identity: str) -> dict[str, Any] | None:
    """The answer to a request, or None so far."""
    try:
        found = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        return dict(found) if found["id"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Asked(Callback):
    """Does what `lmsd ask` asks of a run, between `Interrupt` and `Checkpoint`; sample: draws the grid."""

    def __init__(self, sample: Sample | None = None) -> None:
        self.sample = sample
        self._taken: dict[str, str] = {}
        self._group: Any = None
        self._work: Any = None
        self._code = torch.zeros((), dtype=torch.int64)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take away what an earlier session was asked."""
        if world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        if trainer.is_global_zero and (_folder(trainer) / ASKED).exists():
            _ignored(_folder(trainer), "it was asked before this session began")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Do what all ranks know of, and look for the next request."""
        if world_size() == 1:
            self._do(trainer, engine_of(pl_module), self._look(trainer))
            return
        code = self._read()
        due = torch.tensor(self._look(trainer) if trainer.is_global_zero and not code else 0)
        self._code, self._work = due, dist.broadcast(due, src=0, group=self._group, async_op=True)
        self._do(trainer, engine_of(pl_module), code)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer what came too late."""
        if world_size() > 1:
            self._read()
        if trainer.is_global_zero and (self._taken or self._look(trainer)):
            self._answer(trainer, engine_of(pl_module), "the run has ended")

    def _read(self) -> int:
        """What rank 0 found after the batch before."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._code)

    def _look(self, trainer: Trainer) -> int:
        """Take a request off the folder: 0, or the place of its word from 1 on."""
        path = _folder(trainer) / ASKED
        if not path.exists():
            return 0
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self._taken = {name: str(found[name]) for name in ("id", "what")}
            code = 1 + WORDS.index(self._taken["what"])
            path.unlink()
        except (OSError, ValueError, KeyError, TypeError):
            self._taken = {}
            _ignored(path.parent, f"it is none of {', '.join(WORDS)}, written whole")
            return 0
        return code

    def _do(self, trainer: Trainer, engine: Engine, code: int) -> None:
        if not code:
            return
        what, said = WORDS[code - 1], ""
        if what == "save":
            engine.run.asked.save = True
            said = f"saved in {checkpoint_name(engine.clock.images)}, once it is written"
        elif what == "stop":
            engine.run.asked.code = max(engine.run.asked.code, INTERRUPTED)
            engine.run.asked.stop = trainer.should_stop = True
            said = "ends now, saved"
        else:
            said = self._shown(trainer, engine, what)
        if trainer.is_global_zero:
            self._answer(trainer, engine, said)

    def _shown(self, trainer: Trainer, engine: Engine, what: str) -> str:
        """Draw or score on all ranks, as `Evaluate` does, and leave all that training depends on alone."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        scorers = [cast(Evaluate, each) for each in callbacks if issubclass(type(each), Evaluate)]
        if not scorers or self.sample is None:
            return "it has no held-out images to do that with (evaluate.n=0)"
        engine.run.asked.evaluating = True
        try:
            with _gathered(trainer):
                if what == "sample":
                    self.sample(engine)
                    return "drawn in samples/"
                found = {name: float(value) for name, value in scorers[0].function(engine).items()}
            for logger in trainer.loggers:
                logger.log_metrics(found, step=engine.clock.images)
            return f"{len(found)} scores, in eval/val/"
        except BrokenOff:
            return "broken off: the run was asked to end"
        except OSError as error:
            return f"not written: {redact(str(error))}"
        finally:
            engine.run.asked.evaluating = False

    def _answer(self, trainer: Trainer, engine: Engine, said: str) -> None:
        taken, self._taken = self._taken, {}
        content = {**taken, "images": engine.clock.images, "said": said}
        print(
            f"lmsd: asked to {taken.get('what')} at {engine.clock.images:,} images: {said}", file=sys.stderr
        )
        with suppress(OSError):  # a full disk costs the answer
            write_text(_folder(trainer) / ANSWER, json.dumps(content) + "\n")


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _gathered(trainer: Trainer) -> AbstractContextManager[None]:
    """A context in which every rank has all weights."""
    match trainer.strategy:
        case PlayersStrategy() as several:
            return several.gathered()
    return nullcontext()


def _ignored(folder: Path, why: str) -> None:
    path = folder / ASKED
    print(f"lmsd: {path} is ignored: {why}", file=sys.stderr, flush=True)
    with suppress(OSError):
        path.unlink()
