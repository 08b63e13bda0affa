"""Options of a whole configuration that do not go together."""

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.schema import leaves
from lmsd.errors import UserError
from lmsd.ranks import shares


def check_limits(config: DictConfig) -> DictConfig:
    """Refuse options that do not go together, and a missing mandatory one; return the configuration."""
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} has no value of its own: give {key}=...")
    edm = config.schedule.get("_target_", "").endswith(".EDM")
    if config.generator.get("precondition") == "edm" and not edm:
        raise UserError(
            "generator.precondition=edm is for schedule=edm, where alpha = 1; take schedule=edm with it, or "
            "generator.precondition=none"
        )
    if config.generator.get("sees") == "source" and not config.data.get("images"):
        raise UserError(
            "generator.sees=source needs the pictures to see: data.images=[source], with objective=edit, or "
            "leave it out"
        )
    sighted = config.generator.get("sees", "nothing") != "nothing"
    if config.evaluate.get("image_guidance", 1.0) != 1.0 and not sighted:
        raise UserError(
            "evaluate.image_guidance is for a generator that sees an image (objective=edit): leave it out"
        )
    if config.devices == "auto":
        return config  # looked at once the devices are counted
    shares(config.batch_size, config.devices * config.num_nodes, config.micro_batches)
    guidance, interval = config.evaluate.guidance, config.evaluate.interval
    named = leaves(OmegaConf.to_container(config.objective)) if guidance != 1.0 else ()
    drops = "reward" in config.objective or any(value for key, value in named if key.endswith("_dropout"))
    if guidance != 1.0 and not drops:  # before rewards, it was trained elsewhere
        raise UserError(
            f"guidance={guidance:g} needs a generator that was trained without captions too, and this one "
            "was not (caption_dropout=0 in its objective): take guidance=1, or train with caption_dropout=0.1"
        )
    if interval is not None and interval[0] > interval[1]:
        said = "is no [low, high]: give two times, the lower one first"
        raise UserError(f"evaluate.interval={list(interval)} {said}")
    if interval is not None and guidance == 1.0:
        raise UserError(
            f"evaluate.interval={list(interval)} says where guidance acts, and evaluate.guidance=1 is none: "
            "give another guidance, or evaluate.interval=null"
        )
    return config
