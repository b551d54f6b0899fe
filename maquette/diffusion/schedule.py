"""The forward process of a diffusion model, and the algebra between its three descriptions of the noise.

With alpha_t = sqrt(alphas_cumprod[t]) and sigma_t = sqrt(1 - alphas_cumprod[t]), a noised sample is

    x_t = alpha_t x0 + sigma_t eps,        v = alpha_t eps - sigma_t x0,

so any one of eps, x0 and v, together with x_t, gives the other two. Nothing here is learned and nothing is random.

`t` is an integer step in [0, T), of shape [], [B] or [B, V]; its axes are the leading axes of the latents it belongs
to, which have any further axes behind them ([B, V, C, h, w] nearly everywhere).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

Parametrisation = Literal["eps", "x0", "v"]
"""What a network was trained to predict; every published model that we load predicts eps or v."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """alphas_cumprod over T steps, kept in float64, with every conversion that samplers and guidance need.

    `predicts` says what the network belonging to this schedule puts out; `split` uses it. Raises ValueError unless
    alphas_cumprod is a float64 vector that never increases and stays within [0, 1].
    """

    alphas_cumprod: Float[Tensor, " T"]
    predicts: Parametrisation = "eps"

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if a.ndim != 1 or len(a) == 0 or a.dtype != torch.float64:
            raise ValueError(
                f"alphas_cumprod must be a float64 vector with one entry per step, got {a.dtype} of shape "
                f"{tuple(a.shape)}; build it with NoiseSchedule.scaled_linear() or convert it with .double()."
            )
        if not bool(((a >= 0) & (a <= 1)).all()) or bool((a.diff() > 0).any()):
            raise ValueError(
                "alphas_cumprod must lie in [0, 1] and never increase: it is the share of the clean sample that is "
                "left. Check that you passed cumulative products and not betas."
            )
        if self.predicts not in get_args(Parametrisation):
            raise ValueError(f"predicts must be one of {get_args(Parametrisation)}, got {self.predicts!r}.")

    @classmethod
    def from_betas(cls, betas: Float[Tensor, " T"], predicts: Parametrisation = "eps") -> NoiseSchedule:
        """The schedule whose step t multiplies the signal's variance by 1 - betas[t]."""
        return cls(torch.cumprod(1.0 - betas.double().cpu(), dim=0), predicts)

    @classmethod
    def scaled_linear(
        cls,
        num_steps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        predicts: Parametrisation = "eps",
    ) -> NoiseSchedule:
        """Stable Diffusion's schedule: sqrt(beta) grows linearly. The released configurations call it "linear"."""
        roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_steps, dtype=torch.float64)
        return cls.from_betas(roots.square(), predicts)

    @classmethod
    def cosine(
        cls, num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, predicts: Parametrisation = "eps"
    ) -> NoiseSchedule:
        """alphas_cumprod proportional to cos^2((t/T + s)/(1 + s) pi/2), Eq. 17 of arXiv:2102.09672.

        `max_beta` keeps the last step from destroying the sample altogether, so that x0 stays recoverable from eps.
        """
        u = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        f = torch.cos((u + offset) / (1 + offset) * math.pi / 2).square()
        return cls.from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta), predicts)

    @property
    def num_steps(self) -> int:
        """T, the number of steps that the model was trained with."""
        return len(self.alphas_cumprod)

    @property
    def betas(self) -> Float[Tensor, " T"]:
        """1 - alphas_cumprod[t] / alphas_cumprod[t-1], float64; the first is 1 - alphas_cumprod[0]."""
        a = self.alphas_cumprod
        return 1.0 - a / torch.cat([a.new_ones(1), a[:-1]])

    def alpha(self, t: Int[Tensor, "*lead"], like: Float[Tensor, "*shape"]) -> Float[Tensor, "*broadcast"]:
        """alpha_t = sqrt(alphas_cumprod[t]), on `like`'s device, in its dtype, shaped to broadcast against it."""
        return self._gather("alpha", t, like)

    def sigma(self, t: Int[Tensor, "*lead"], like: Float[Tensor, "*shape"]) -> Float[Tensor, "*broadcast"]:
        """sigma_t = sqrt(1 - alphas_cumprod[t]), on `like`'s device, in its dtype, shaped to broadcast against it."""
        return self._gather("sigma", t, like)

    def snr(self, t: Int[Tensor, "*lead"], like: Float[Tensor, "*shape"]) -> Float[Tensor, "*broadcast"]:
        """The signal-to-noise ratio (alpha_t / sigma_t)^2, shaped like `alpha`: what training weights are made of."""
        return self._gather("snr", t, like)

    def add_noise(
        self, x0: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], t: Int[Tensor, "*lead"]
    ) -> Float[Tensor, "*shape"]:
        """x_t = alpha_t x0 + sigma_t eps."""
        return self.alpha(t, x0) * x0 + self.sigma(t, x0) * eps

    def x0_from_eps(
        self, x_t: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], t: Int[Tensor, "*lead"]
    ) -> Float[Tensor, "*shape"]:
        """x0 = (x_t - sigma_t eps) / alpha_t. An error of eps comes out multiplied by sigma_t / alpha_t."""
        return (x_t - self.sigma(t, x_t) * eps) / self.alpha(t, x_t)

    def eps_from_x0(
        self, x_t: Float[Tensor, "*shape"], x0: Float[Tensor, "*shape"], t: Int[Tensor, "*lead"]
    ) -> Float[Tensor, "*shape"]:
        """eps = (x_t - alpha_t x0) / sigma_t. An error of x0 comes out multiplied by alpha_t / sigma_t."""
        return (x_t - self.alpha(t, x_t) * x0) / self.sigma(t, x_t)

    def x0_from_v(
        self, x_t: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"], t: Int[Tensor, "*lead"]
    ) -> Float[Tensor, "*shape"]:
        """x0 = alpha_t x_t - sigma_t v."""
        return self.alpha(t, x_t) * x_t - self.sigma(t, x_t) * v

    def eps_from_v(
        self, x_t: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"], t: Int[Tensor, "*lead"]
    ) -> Float[Tensor, "*shape"]:
        """eps = sigma_t x_t + alpha_t v."""
        return self.sigma(t, x_t) * x_t + self.alpha(t, x_t) * v

    def v_from(
        self, x0: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], t: Int[Tensor, "*lead"]
    ) -> Float[Tensor, "*shape"]:
        """v = alpha_t eps - sigma_t x0, the target of a network that predicts v."""
        return self.alpha(t, x0) * eps - self.sigma(t, x0) * x0

    def split(
        self, output: Float[Tensor, "*shape"], x_t: Float[Tensor, "*shape"], t: Int[Tensor, "*lead"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """(eps, x0) from the raw output of a network that predicts `self.predicts`."""
        if self.predicts == "eps":
            return output, self.x0_from_eps(x_t, output, t)
        if self.predicts == "x0":
            return self.eps_from_x0(x_t, output, t), output
        return self.eps_from_v(x_t, output, t), self.x0_from_v(x_t, output, t)

    def target(
        self, x0: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], t: Int[Tensor, "*lead"]
    ) -> Float[Tensor, "*shape"]:
        """What a network that predicts `self.predicts` should have put out for this x0, eps and t."""
        return {"eps": lambda: eps, "x0": lambda: x0, "v": lambda: self.v_from(x0, eps, t)}[self.predicts]()

    def _gather(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Entries t of one derived table, in `like`'s dtype, with trailing axes of length one up to `like.ndim`."""
        if t.ndim > like.ndim or any(n not in (1, m) for n, m in zip(t.shape, like.shape, strict=False)):
            raise ValueError(
                f"t has shape {tuple(t.shape)}, which are not the leading axes of latents of shape "
                f"{tuple(like.shape)}; pass one step for all, one per scene [B], or one per view [B, V]."
            )
        if t.device.type == "cpu" and bool((t < 0).any()):
            raise ValueError(f"t must be in [0, {self.num_steps}), got {int(t.min())}.")
        values = self._table(name, like)[t.to(like.device)]
        return values.reshape(t.shape + (1,) * (like.ndim - t.ndim))

    def _table(self, name: str, like: Tensor) -> Tensor:
        """A derived table of length T, computed in float64, then kept for each device and dtype it is asked for."""
        # Kept beside the fields, not among them: a cache is no part of what the schedule is (nor of its fingerprint).
        tables: dict[tuple[str, torch.device, torch.dtype], Tensor] = self.__dict__.setdefault("_tables", {})
        key = (name, like.device, like.dtype)
        if key not in tables:
            a = self.alphas_cumprod.cpu()
            value = {"alpha": a.sqrt(), "sigma": (1 - a).sqrt(), "snr": a / (1 - a)}[name]
            # The dtype first: MPS has no float64.
            tables[key] = value.to(like.dtype).to(like.device)
        return tables[key]
