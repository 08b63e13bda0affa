"""What to write instead: the nearest names to a mistyped one, and the new name of a renamed option."""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from lmsd.cli.config.older import ANSWERED
from lmsd.errors import UserError

THEIRS = """
lr: learning_rate
images: max_epochs epochs max_steps num_steps train_steps
devices: gpus num_gpus device cuda gpu
resume: ckpt_path
init_from: checkpoint pretrained weights load_from finetune
precision: amp fp16 bf16 dtype
data.shards: dataset data_dir data_path dataset_path train_data dir root folder files url urls
image_size: resolution img_size imgsz
objective: loss method algorithm trainer_type
net: model backbone architecture unet
optim.ema: ema_decay ema_rate
micro_batches: gradient_accumulation_steps grad_accum accumulation accumulate_grad_batches
num_workers: workers dataloader_workers
optim.clip.generator: max_grad_norm grad_clip clip_grad gradient_clip_val
checkpoint_every: save_every save_steps save_interval checkpointing_steps
evaluate.every: val_every eval_every validation_steps eval_steps
log_every: log_interval logging_steps
seed: random_seed manual_seed generator_seed
guidance: cfg scale guidance_weight w guidance_scale cfg_scale
steps: ddim_steps sampling_steps inference_steps nfe num_inference_steps
prompts: text caption captions_file prompt
logger: wandb tensorboard tb
n: n_samples num_samples num_images count
image: input input_image init_image source_image
strength: denoise denoising_strength noise_strength
monitor: metric metrics
run_dir: output_dir out_dir exp_dir save_dir
out: output outfile output_path save_to o
"""
WORDS = {
    theirs: ours
    for line in THEIRS.split("\n")[1:-1]
    for ours, names in [line.split(": ")]
    for theirs in names.split()
}
"""Names that other tools use for our options."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A clause such as "; did you mean optim.generator.lr, optim.discriminator.lr?", or nothing."""
    names = list(dict.fromkeys(names))
    leaf = name.rsplit(".", 1)[-1]
    ends = {other.rsplit(".", 1)[-1] for other in names}
    if leaf not in ends and WORDS.get(leaf, "").rsplit(".", 1)[-1] in ends:
        name = leaf = WORDS[leaf]
        if name in names:
            return f"; did you mean {name}?"
    found = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    found += [other for other in names if other.rsplit(".", 1)[-1] == leaf and other not in found]
    if not found:
        leaves = {other.rsplit(".", 1)[-1]: other for other in names}
        found = [leaves[key] for key in difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.6)]
    return f"; did you mean {', '.join(found[:3])}?" if found else ""


def renamed(key: str, value: object = None, rows: Mapping[str, str] = ANSWERED) -> UserError | None:
    """The error for a renamed option or choice; None for any other."""
    parts = key.split(".")
    for old, told in rows.items():
        (new, _, remark), (option, equals, choice) = told.partition(";"), old.partition("=")
        wanted = option.split(".")
        if len(parts) < len(wanted) or not all(map(fnmatchcase, parts, wanted)):
            continue
        if not equals or str(value) == choice:
            typed = f"{key}={value}" if equals else key
            way = new if equals else f"{'.'.join([new, *parts[len(wanted) :]])}=..."
            more = f" ({remark.strip()})" if remark else ""
            return UserError(f"{typed} has another name now: write {way}{more}")
    return None
