"""GRPO for diffusion: advantages relative to the other samples of the same caption.

    Flow-GRPO    Liu et al. 2025: normalize = global, KL to the reference
    DanceGRPO    Xue et al. 2025: normalize = group, no KL
    MixGRPO      Li et al. 2025: policy.ode, window = 4, which moves along the chain

With normalize = center, kl = β, kl_form = path and a policy of τ = 1 from α_T = 0 the optimum is known,
p_ref(x₀|c) exp(r(x₀)/β)/Z: rewards and β are in the same nats.
"""

from lmsd.errors import UserError
from lmsd.objectives.advantages import Normalization
from lmsd.objectives.policy import KLForm, PolicyGradient, Units
from lmsd.objectives.rewarded import Refresh
from lmsd.rewards import Reward
from lmsd.sampling import Policy


class GRPO(PolicyGradient):
    """Policy gradient with group-relative advantages; options as in `PolicyGradient`.

    Raises UserError for groups of less than two.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        *,
        group: int = 16,
        normalize: Normalization = "global",
        clip: float | None = 1.0,
        kl: float = 0.01,
        kl_form: KLForm = "path",
        units: Units = "nats",
        bound: float | None = 5.0,
        epochs: int = 1,
        parts: int = 1,
        budget: float | None = None,
        window: int | None = None,
        stride: int = 1,
        every: int = 1,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        if group < 2 or normalize == "prompt":
            raise UserError(
                f"grpo: group={group} must be 2 or more, normalize={normalize} one of center, group, global"
            )
        super().__init__(
            policy, reward, group=group, normalize=normalize, clip=clip, kl=kl, kl_form=kl_form, units=units,
            bound=bound, epochs=epochs, parts=parts, budget=budget, window=window, stride=stride, every=every,
            refresh=refresh, patience=patience,
        )  # fmt: skip
