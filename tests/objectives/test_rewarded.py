"""Groups, statistics over batches that are split, judges that keep up."""

import copy

import pytest
import torch
from tiny_methods import drawn, grpo
from tiny_players import TinyClock, split, tiny_batch, tiny_players

from lmsd.errors import UserError
from lmsd.objectives import Refresh
from lmsd.objectives.advantages import Normalizer, Round, Table, prompt_keys
from lmsd.objectives.base import trained
from lmsd.objectives.rewarded import diversity
from lmsd.rewards import DiscriminatorReward, Function
from lmsd.rng import Rng
from lmsd.types import Batch

BRIGHT = Function(lambda images, captions: images.flatten(1).mean(1))


def table(rewards, *, size, valid=None, key=None):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    n = len(rewards)
    return Table(
        position=torch.arange(n),
        key=torch.zeros(n, dtype=torch.int64) if key is None else torch.tensor(key),
        reward=rewards,
        valid=torch.ones(n, dtype=torch.bool) if valid is None else torch.tensor(valid),
        kl=torch.zeros(n, 1).double(),
        size=size,
    )


def test_rules_by_hand():
    rows = table([1.0, 3.0, 10.0, 20.0], size=2)
    assert Normalizer("center")(rows).tolist() == [-2.0, 2.0, -10.0, 10.0]  # less the mean of the others
    torch.testing.assert_close(
        Normalizer("group")(rows), torch.tensor([-1.0, 1.0, -1.0, 1.0]).double(), rtol=1e-3, atol=0
    )
    spread = rows.reward.std(correction=0)
    want = torch.tensor([-1.0, 1.0, -5.0, 5.0]).double() / spread
    torch.testing.assert_close(Normalizer("global")(rows), want, rtol=1e-3, atol=0)
    assert Normalizer("global", bound=0.1)(rows).abs().max() == pytest.approx(0.1)


def test_a_group_with_a_failure_has_weight_zero_and_leaves_the_statistics_alone():
    rows = table([1.0, 3.0, 0.0, 1e9], size=2, valid=[True, True, False, True])
    assert rows.weight.tolist() == [1.0, 1.0, 0.0, 0.0]
    for rule in ("center", "group", "global", "prompt"):
        whole = Normalizer(rule)(rows)
        alone = Normalizer(rule)(table([1.0, 3.0], size=2))
        torch.testing.assert_close(whole, torch.cat([alone, torch.zeros(2).double()]))
    logs = rows.logs()
    assert float(logs["reward"]) == 2.0
    assert float(logs["reward_failed"]) == 0.25
    assert float(logs["groups_without_spread"]) == 0.0
    nothing = table([1.0, 1.0, 2.0, 3.0, 0.0, 0.0], size=2, valid=[True] * 4 + [False] * 2)
    assert float(nothing.logs()["groups_without_spread"]) == 0.5  # of the two that have scores


def test_a_prompts_own_past_is_its_baseline_from_enough_rewards_on():
    rule = Normalizer("prompt", history=4, min_history=4, bound=None)
    first = rule(table([1.0, 2.0, 11.0, 12.0], size=1, key=[7, 7, 8, 8]))
    whole = torch.tensor([1.0, 2.0, 11.0, 12.0]).double()
    torch.testing.assert_close(first, (whole - whole.mean()) / (whole.std(correction=0) + 1e-4))
    saved = Normalizer("prompt", history=4, min_history=4, bound=None)
    saved.load_state_dict(rule.state_dict())
    rows = table([3.0, 4.0, 13.0, 14.0], size=1, key=[7, 7, 8, 8])
    second = rule(rows)
    past = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    want = (past[2:] - past.mean()) / (past.std(correction=0) + 1e-4)
    torch.testing.assert_close(second, torch.cat([want, want]))
    assert torch.equal(saved(rows), second)
    rule(table([5.0], size=1, key=[7]))
    assert rule.seen[7] == [2.0, 3.0, 4.0, 5.0]


def test_a_round_is_the_same_however_it_is_split():
    batch = tiny_batch(8)
    reward = torch.rand(8, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([True] * 7 + [False])
    results = []
    for order in ([slice(0, 8)], [slice(4, 8), slice(0, 4)]):
        found = Round(0, 2)
        for rows in order:
            part = Batch(batch.x[rows], batch.position[rows], text=batch.text[rows])
            found.add(part, reward[rows], valid[rows])
        rows, result = found.settle(Normalizer("global"))
        assert torch.equal(rows.position, batch.position)
        results.append(result)
    assert torch.equal(*results)


def test_prompts_have_numbers_of_their_own():
    text = prompt_keys(Batch(torch.zeros(3, 1), torch.arange(3), text=["a", "b", "a"]))
    assert text[0] == text[2] != text[1]
    label = prompt_keys(Batch(torch.zeros(2, 1), torch.arange(2), label=torch.tensor([1, 2])))
    assert label[0] != label[1]
    assert len(prompt_keys(Batch(torch.zeros(2, 1), torch.arange(2))).unique()) == 1
    assert int(text[0]) == int.from_bytes(  # the same in every process and on every machine
        __import__("hashlib").blake2b(b"a", digest_size=7).digest()
    )


def judged(**options):
    players = tiny_players(marginal=True)
    players["reference"] = copy.deepcopy(players["generator"]).requires_grad_(False)
    objective = grpo(
        drawn(2, last_std=0.1), DiscriminatorReward(), group=2, kl=0.1, refresh=Refresh(**options)
    )
    objective.held_out = tiny_batch(16, start=10**6)
    return objective, players


def played(objective, players, clock, batch):
    """Who plays, with an update of the generator each time, as the engine counts."""
    script = objective.turns(players, batch, clock, Rng(3, batch.position))
    roles = []
    while True:
        with torch.no_grad():
            turn = next(script, None)
        if turn is None:
            clock.images += len(batch)
            return roles
        turn.loss()
        roles.append(turn.player)
        clock.updates += turn.player == "generator"


def test_the_judge_keeps_up_every_so_many_updates():
    objective, players = judged(every=3, turns=2)
    clock = TinyClock()
    assert list(objective.cast) == ["discriminator", "generator", "reference"]
    assert trained(objective.cast) == ("discriminator", "generator")
    turns = [played(objective, players, clock, tiny_batch(4, start=4 * k)) for k in range(5)]
    often = ["discriminator", "discriminator", "generator"]
    assert turns == [often, ["generator"], ["generator"], often, ["generator"]]
    frozen = grpo(drawn(2), DiscriminatorReward(), group=2)
    assert list(frozen.cast) == ["discriminator", "generator", "reference"]
    assert trained(frozen.cast) == ("generator",)


def test_a_refresh_without_a_judge_is_refused():
    with pytest.raises(UserError, match="asks no discriminator that could be refreshed"):
        grpo(drawn(2), BRIGHT, group=2, refresh=Refresh())


@pytest.mark.parametrize("group", [1, 2, 4])
def test_diversity_is_the_distance_of_pairs(group):
    """Within groups; of the whole batch where groups are of one."""
    images = tiny_batch(8).x
    parts = images.flatten(1).split(group if group > 1 else 8)
    want = torch.stack([torch.pdist(part).square().mean() for part in parts]).mean() / images[0].numel()
    torch.testing.assert_close(diversity(images, group)["diversity"], want.sqrt())
    assert diversity(images[:1], 1) == {}


@pytest.mark.parametrize("renew", [True, False])
def test_a_refresh_calibrates_and_renews_the_reference(renew):
    objective, players = judged(every=2, turns=1, renew=renew)
    clock = TinyClock()
    played(objective, players, clock, tiny_batch(4))
    assert objective.reward.temperature != 1.0
    assert objective.reward.margin >= 0
    with torch.no_grad():
        players["generator"].net.outside.bias += 1.0
    before = [p.clone() for p in players["reference"].parameters()]
    for k in (1, 2):
        played(objective, players, clock, tiny_batch(4, start=4 * k))
    now, theirs = list(players["reference"].parameters()), list(players["generator"].parameters())
    assert all(torch.equal(a, b) for a, b in zip(now, theirs if renew else before, strict=True))


def test_a_judge_learns_to_tell_data_from_the_policys_own():
    objective, players = judged(every=1, turns=1)
    optimizer = torch.optim.Adam(players["discriminator"].parameters(), lr=1e-2)
    clock, gaps = TinyClock(), []
    for k in range(60):
        batch = tiny_batch(32, start=32 * k)
        batch = Batch(batch.x * 0.1 + 0.7, batch.position, text=batch.text)
        with torch.no_grad():
            turn = next(objective.turns(players, batch, clock, Rng(3, batch.position)))
        assert turn.player == "discriminator"
        loss = turn.loss()
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        gaps.append(float(loss.logs["logit_gap"]))
        clock.images += 32
        clock.updates += 1
    assert gaps[-1] > gaps[0] + 0.5
    assert loss.logs["d_accuracy"] > 0.9


def test_gradients_do_not_depend_on_the_split_of_the_batch():
    def grad(parts):
        players = tiny_players()
        objective = grpo(drawn(2, last_std=0.1), BRIGHT, group=2, kl=0.0)
        scripts = [
            objective.turns(players, part, TinyClock(), Rng(3, part.position))
            for part in split(tiny_batch(8), parts)
        ]
        with torch.no_grad():
            turns = [next(script) for script in scripts]
        for turn in turns:
            (turn.loss().value / parts).backward()
        return torch.cat([p.grad.flatten() for p in players["generator"].net.parameters()])

    torch.testing.assert_close(grad(4), grad(1), rtol=1e-9, atol=1e-12)
