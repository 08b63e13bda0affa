"""Configurations written by older versions: renamed options, and the migration of stored trees.

Options of objectives moved with the parts that now have classes of their own (penalty, anchor, sampling
settings).
"""

from collections.abc import Callable, Mapping
from typing import Any

RENAMED: dict[str, str] = {
    "data.source": "source",
    "data.max_bad": "rollback.max_bad",
}
"""Old name to new, of an option with everything below it (objective.warm) or a choice (sampler=few_step).

A part may be `*`. The new name may be followed by a remark after a semicolon: "objective.bound; codec, a
number or null". Whatever renaming alone cannot migrate in a stored configuration is one of CHANGES.
"""

COURSE = {
    "jumps": "game.jumps",
    "pairing": "game.pairing",
    "loss": "game.loss",
    "penalty": "game.penalty.kind",
    "gamma": "game.penalty.gamma",
    "sigma": "game.penalty.sigma",
    "r1": "game.penalty.r1",
    "r2": "game.penalty.r2",
    "lazy": "game.penalty.lazy",
    "anchor": "game.anchor.kind",
    "anchor_weight": "game.anchor.weight",
    "kappa": "game.anchor.kappa",
    "d_steps": "game.d_steps",
    "mismatch": "game.mismatch.weight",
    "clamp": "game.bound",
    "drop": "game.caption_dropout",
    "diversity_every": "game.diversity_every",
    "hold_text": "freeze_text",
    "warm.drop": "warm.caption_dropout",
}
DENOISING = {"drop": "caption_dropout"}
SETTINGS = {name: f"settings.{name}" for name in ("steps", "guidance", "interval")}
SETTINGS["clamp"] = "settings.bound"
POLICY = {f"policy.{old}": new for old, new in SETTINGS.items()}
SCORES = {
    "normalize": "advantages.normalize",
    "bound": "advantages.bound",
    "memory": "advantages.history",
    "least": "advantages.min_history",
}
GRADIENT = {
    **POLICY,
    **SCORES,
    "surrogate": "update.surrogate",
    "clip": "update.clip",
    "units": "update.units",
    "epochs": "update.epochs",
    "parts": "update.minibatches_per_epoch",
    "kl": "reference.weight",
    "kl_form": "reference.form",
    "budget": "reference.budget",
    "window": "windows.size",
    "stride": "windows.stride",
    "every": "windows.every",
}
PULL = {"pull": "reference_weight"}
CONTRAST = {name: f"contrast.{name}" for name in ("beta", "weighting", "updates", "reference_weight")}
FOLLOWS = {"decay": "old.decay", "ramp": "old.ramp"}
NFT = {**SETTINGS, **SCORES, **CONTRAST, **FOLLOWS, "pull": "contrast.reference_weight"}

_PARTS = "lmsd.objectives"
_GAME = {
    "": f"{_PARTS}.warm.warm_start",
    "game": f"{_PARTS}.adversarial.Adversarial",
    "game.penalty": f"{_PARTS}.penalty.Penalty",
    "game.anchor": f"{_PARTS}.anchor.Anchor",
    "game.mismatch": f"{_PARTS}.mismatch.Mismatch",
}
_DRAWN = {"settings": "lmsd.sampling.Settings"}
_SCORED = {**_DRAWN, "advantages": f"{_PARTS}.advantages.Normalizer"}
_GRADIENT = {
    "": f"{_PARTS}.policy.PolicyGradient",
    **_SCORED,
    "update": f"{_PARTS}.policy.Update",
    "reference": f"{_PARTS}.policy.Reference",
    "windows": f"{_PARTS}.policy.Windows",
}
_COMPARED = {"contrast": f"{_PARTS}.nft.Contrast", "old": f"{_PARTS}.nft.OldPolicy"}
OBJECTIVES: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    f"{_PARTS}.adversarial.Adversarial": (COURSE, _GAME),
    f"{_PARTS}.denoising.Denoising": (DENOISING, {}),
    f"{_PARTS}.ddpo.DDPO": (GRADIENT, _GRADIENT),
    f"{_PARTS}.grpo.GRPO": (GRADIENT, _GRADIENT),
    f"{_PARTS}.draft.DRaFT": ({**POLICY, **PULL}, {"": f"{_PARTS}.draft.DRaFT", **_DRAWN}),
    f"{_PARTS}.dpo.DPO": (SETTINGS, {"": f"{_PARTS}.dpo.DPO", **_DRAWN}),
    f"{_PARTS}.nft.NFT": (NFT, {"": f"{_PARTS}.nft.NFT", **_SCORED, **_COMPARED}),
}
"""By the former target: old option names to new ones, and the targets of the new nodes."""

STREAMED = ("first", "window", "flip", "color", "num_workers", "memory_gb", "on_error", "on_change")
CACHE = {"cache_dir": "folder", "cache_gb": "gigabytes"}
"""Of data: options that moved below train, and below cache with a new name."""

_STILL = ("jumps", "pairing", "loss", "penalty", "anchor", "mismatch", "d_steps", "diversity_every")
"""Options that the new game takes, too, without a warm start around it."""

ANSWERED: dict[str, str] = {
    **RENAMED,
    **{f"objective.{old}": f"objective.{new}" for old, new in {**NFT, **GRADIENT, **COURSE}.items()},
    "objective.clamp": "objective.game.bound; of objectives with a reward objective.settings.bound: codec, a "
    "number or null",
    **{f"objective.{old}": f"objective.{new}; of nft" for old, new in CONTRAST.items()},
    "objective.pull": "objective.reference_weight; of nft objective.contrast.reference_weight",
    "objective.drop": "objective.game.caption_dropout; of denoising objective.caption_dropout",
    **{f"data.{name}": f"data.train.{name}" for name in STREAMED},
    **{f"data.{old}": f"data.cache.{new}" for old, new in CACHE.items()},
    **{f"objective=lmsd_{name}": f"recipe=lmsd_{name}" for name in ("cifar10", "digits", "shapes")},
}
"""What a command may still say → the answer."""


def objective(tree: dict[str, Any]) -> None:
    """Migrate a stored objective of ours in place; any other, and a current one, stays as it is."""
    node = _node(tree, "objective")
    if node.get("_target_") not in OBJECTIVES:
        return
    names, targets = OBJECTIVES[node["_target_"]]
    if not any(_at(node, old) for old in names if old not in _STILL):
        return
    flat = {key: value for key, value in node.items() if key != "_target_"}
    found: dict[str, Any] = {} if targets else {"_target_": node["_target_"]}
    for path, target in targets.items():
        _put(found, f"{path}._target_".lstrip("."), target)
    for key, value in flat.items():
        _put(found, names.get(key, key), value)
    for old, new in names.items():
        parent, _, leaf = old.rpartition(".")
        if parent and leaf in _node(found, parent):
            _put(found, new, found[parent].pop(leaf))
    tree["objective"] = found


def shards(tree: dict[str, Any]) -> None:
    """Group the formerly flat options of data in place; a current node stays as it is."""
    node = _node(tree, "data")
    if node.get("_target_") != "lmsd.data.module.ShardDataModule":
        return
    train = {name: node.pop(name) for name in STREAMED if name in node}
    cache = {new: node.pop(old) for old, new in CACHE.items() if old in node}
    node["_target_"] = "lmsd.data.shardset.ShardSet"
    node["train"] = {"_target_": "lmsd.data.shardset.Streaming", **train}
    node["cache"] = {"_target_": "lmsd.data.storage.Storage", **cache}


def parts(tree: dict[str, Any]) -> None:
    """Add the targets of the generator and the guard, and the identity codec, in place where missing."""
    if "generator" in tree and _node(tree, "generator") is tree["generator"]:
        tree["generator"].setdefault("_target_", "lmsd.models.parts.from_parts")
        tree.setdefault("codec", {"_target_": "lmsd.models.codec.Identity"})
    if "rollback" in tree:
        _node(tree, "rollback").setdefault("_target_", "lmsd.engine.divergence.Guard")


CHANGES: list[Callable[[dict[str, Any]], None]] = [objective, parts, shards]
"""Further migrations of a stored configuration, applied in place and in this order after the renaming."""


def today(tree: dict[str, Any]) -> dict[str, Any]:
    """Migrate the plain tree of a stored configuration in place."""
    for old, told in RENAMED.items():
        *parents, leaf = old.split(".")
        if "=" not in old and "*" not in old and _at(tree, old):
            node = tree
            for part in parents:
                node = node[part]
            _put(tree, told.partition(";")[0].strip(), node.pop(leaf))
    for change in CHANGES:
        change(tree)
    return tree


def _node(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A node of a tree; an empty one if there is none."""
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _at(node: Mapping[str, Any], path: str) -> bool:
    """Whether a dotted name exists."""
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[leaf] = value
