"""DDPO: denoising diffusion policy optimization (Black et al. 2024).

    DDPO_SF    ∇ = E[ r ∇ log p_θ(x₀, ..., x_T) ]        surrogate = reinforce, one update a batch
    DDPO_IS    importance sampling, clipped as in PPO    surrogate = clip, several updates

Advantages are rewards normalized by the mean and deviation of the prompt's own last rewards.
"""

from lmsd.errors import UserError
from lmsd.objectives.advantages import Normalization
from lmsd.objectives.policy import KLForm, PolicyGradient, Surrogate, Units
from lmsd.objectives.rewarded import Refresh
from lmsd.rewards import Reward
from lmsd.sampling import Policy


class DDPO(PolicyGradient):
    """Policy gradient with per-prompt statistics; groups of one caption are not needed (group = 1).

    All options as in `PolicyGradient`. Raises UserError for REINFORCE with several updates on one batch,
    which would be off its policy.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        *,
        group: int = 1,
        normalize: Normalization = "prompt",
        surrogate: Surrogate = "clip",
        clip: float | None = 1.0,
        kl: float = 0.0,
        kl_form: KLForm = "path",
        units: Units = "nats",
        bound: float | None = 5.0,
        memory: int = 32,
        least: int = 16,
        epochs: int = 1,
        parts: int = 1,
        budget: float | None = None,
        window: int | None = None,
        stride: int = 1,
        every: int = 1,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        if surrogate == "reinforce" and epochs * parts > 1:
            raise UserError(
                f"ddpo: reinforce takes one update a batch, not {epochs * parts}: set epochs=1 and parts=1, "
                "or surrogate=clip"
            )
        super().__init__(
            policy, reward, group=group, normalize=normalize, surrogate=surrogate, clip=clip, kl=kl,
            kl_form=kl_form, units=units, bound=bound, memory=memory, least=least, epochs=epochs, parts=parts,
            budget=budget, window=window, stride=stride, every=every, refresh=refresh, patience=patience,
        )  # fmt: skip
