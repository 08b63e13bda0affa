"""Ranges and choices, and what must go together."""

import pytest

from lmsd.cli.config.compose import load
from lmsd.cli.config.limits import check_limits
from lmsd.cli.config.schema import root
from lmsd.cli.verbs.train import check_tasks
from lmsd.errors import UserError

DEFAULTS = root({"evaluate": {}, "optim": {}}).complete()
PLAIN = {option.key: (option.kind, option.value) for option in root(DEFAULTS).leaves()}


@pytest.mark.parametrize("key", PLAIN)
def test_an_option_takes_its_default_and_refuses_a_wrong_value(key: str) -> None:
    """Of the options that no constructor takes: settings.Train and what it names."""
    kind, default = PLAIN[key]
    assert root(DEFAULTS).at(key).kind == kind
    assert kind.fits(default)
    assert kind
    assert not kind.fits([[]])
    with pytest.raises(UserError, match=f"^{key}="):
        load([f"{key}=[[]]"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("batch_size=-4", "batch_size=-4 is not a whole number of at least 1"),
        ("devices=3", "batch_size=64 (global) does not divide by 3 devices x 1 micro-batches"),
        ("micro_batches=0", "micro_batches=0 is not"),
        ("precision=fp32", "is not one of 32-true, bf16-mixed"),
        ("accelerator=gpus", "did you mean gpu?"),
        ("evaluate.interval=[1]", "a list of 2 numbers"),
        ("evaluate.interval=[0.5,0.2]", "is no [low, high]: give two times, the lower one first"),
        ("evaluate.seeds=[0,-1]", "a list of whole numbers of at least 0"),
        ("optim.ema=[a]", "optim.ema=['a'] is not"),
        ("conditioner=clip", "conditioner.path has no value of its own: give conditioner.path="),
    ],
)
def test_a_value_out_of_range_is_named(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        check_limits(load([word]))
    assert said in str(error.value)


SRUN = {"SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "words", "fits"),
    [
        ({}, ["devices=2"], True),
        ({**SRUN, "SLURM_NTASKS": "1"}, [], True),
        ({**SRUN, "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}, ["devices=2", "num_nodes=2"], True),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, ["devices=2"], True),
        ({**SRUN, "SLURM_NTASKS": "2", "TORCHELASTIC_RUN_ID": "a"}, ["devices=8", "num_nodes=2"], True),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, [], True),  # asked for as cores, without srun
        ({**SRUN, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}, ["devices=2"], False),  # on two nodes
        ({**SRUN, "SLURM_NTASKS": "2"}, ["devices=2"], False),  # --ntasks=2: the nodes have no fixed number
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, ["devices=2"], False),  # without srun
        ({**SRUN, "SLURM_NTASKS": "1"}, ["devices=2"], False),
        ({**SRUN, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, [], False),
    ],
)
def test_slurms_tasks_are_the_ranks(environment: dict[str, str], words: list[str], fits: bool) -> None:
    config = load(words)
    if fits:
        check_tasks(config, environment)
    else:
        with pytest.raises(
            UserError, match=r"ask for --nodes=1 --ntasks-per-node=\d, and start them by srun"
        ):
            check_tasks(config, environment)


def test_tasks_of_an_interactive_job_are_not_ranks_by_themselves() -> None:
    """salloc --ntasks-per-node=2, then srun lmsd train: the step has the name of the allocation."""
    step = {"SLURM_JOB_NAME": "interactive", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    config = load(["devices=2"])
    with pytest.raises(UserError, match="start them by srun --job-name=train"):
        check_tasks(config, {**step, "SLURM_NTASKS": "2"})
    check_tasks(config, {**step, "SLURM_NTASKS": "2", "TORCHELASTIC_RUN_ID": "a"})
    check_tasks(config, {"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "2"})  # in salloc's own shell
