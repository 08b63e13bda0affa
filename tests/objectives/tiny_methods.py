"""Methods that learn from rewards, from flat words: what part a word belongs to stands here once."""

from typing import NamedTuple

from lmsd.objectives import (
    DPO,
    NFT,
    Contrast,
    DRaFT,
    Normalizer,
    OldPolicy,
    PolicyGradient,
    Reference,
    Update,
    Windows,
)
from lmsd.sampling import Policy, Settings


class Drawn(NamedTuple):
    """A policy and the settings that it draws with."""

    policy: Policy
    settings: Settings

    def rollout(self, *players, **options):
        return self.policy.rollout(*players, settings=self.settings, **options)

    def means(self, *players, **options):
        return self.policy.means(*players, settings=self.settings, **options)

    def transitions(self, process, window=None):
        return self.policy.transitions(process, self.settings.steps, window)


def drawn(steps, *, guidance=1.0, interval=None, bound=None, **options):
    """Without a bound on what is predicted, unless told otherwise."""
    return Drawn(Policy(**options), Settings(steps, guidance=guidance, interval=interval, bound=bound))


ADVANTAGES = ("bound", "history", "min_history")
UPDATE = ("surrogate", "clip", "units", "epochs", "minibatches_per_epoch")
REFERENCE = {"kl": "weight", "form": "form", "budget": "budget"}
WINDOWS = {"window": "size", "stride": "stride", "every": "every"}


def ddpo(draws, reward, *, normalize="prompt", **options):
    """`objective=ddpo`'s words."""

    def taken(names):
        return {names[word]: options.pop(word) for word in names if word in options}

    return PolicyGradient(
        draws.policy,
        reward,
        settings=draws.settings,
        advantages=Normalizer(normalize, **taken({name: name for name in ADVANTAGES})),
        update=Update(**taken({name: name for name in UPDATE})),
        reference=Reference(**taken(REFERENCE)),
        windows=Windows(**taken(WINDOWS)),
        **options,
    )


def grpo(draws, reward, *, normalize="global", group=16, kl=0.01, **options):
    """`objective=grpo`'s words."""
    return ddpo(draws, reward, normalize=normalize, group=group, kl=kl, **options)


def draft(draws, reward, **options):
    """`objective=draft`'s words."""
    return DRaFT(draws.policy, reward, settings=draws.settings, **options)


def settings_of(options):
    """The settings among flat words, with the bound of pixels unless told otherwise."""
    words = {
        name: options.pop(name) for name in ("steps", "guidance", "interval", "bound") if name in options
    }
    return Settings(words.pop("steps", 4), **{"bound": 1.0, **words})


def nft(sampler, reward, *, normalize="global", largest=5.0, decay=0.5, ramp=0.001, **options):
    """`objective=nft`'s words; largest: A_max."""
    words = ("beta", "weighting", "updates", "reference_weight")
    return NFT(
        sampler,
        reward,
        contrast=Contrast(**{name: options.pop(name) for name in words if name in options}),
        advantages=Normalizer(normalize, bound=largest),
        old=OldPolicy(decay, ramp=ramp),
        settings=settings_of(options),
        **options,
    )


def dpo(times, **options):
    """`objective=dpo`'s words."""
    return DPO(times, settings=settings_of(options), **options)
