"""Score distillation of single views that are told what they do not show: Perp-Neg (arXiv:2304.04968).

Words for sides alone leave a face on the back, since most pictures of a dog show its face. Here the text of a view lies
between those of its two nearest sides, and the others are negative prompts, of which only the part perpendicular to
the wish counts. The rule itself is in `perp_neg`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import UserError
from maquette.guidance.base import Draws, GuidanceLoss, Noised, distill
from maquette.guidance.perp_neg import ViewWeights, guide_perpendicular, view_weights
from maquette.guidance.score import from_dreamfusion
from maquette.guidance.view_text import SingleViewGuidance, ViewTextConfig, ViewTextGuidance, predict_views, rows_of
from maquette.images import Prompt
from maquette.priors.base import Condition, Prior
from maquette.wording import VIEWS

OVERHEAD = ViewWeights({"overhead": 1.0}, {"front": 0.0, "side": 0.0})
"""From above plain guidance serves."""


@dataclass(frozen=True)
class PerpNegConfig:
    """Settings of the guidance; the defaults are those of SDS on Stable Diffusion."""

    guidance_scale: float = from_dreamfusion(100.0)
    """Classifier-free guidance."""
    strength: float = 1.0
    """Factor on the weights of the negative prompts; 0 leaves the interpolated words alone."""
    overhead: float = 60.0
    """Degrees of elevation above which a view is overhead."""
    sample_posterior: bool = True
    """Encode renders to a sample of the autoencoder's posterior, not its mean."""

    def __post_init__(self) -> None:
        if self.guidance_scale < 0 or self.strength < 0:
            raise UserError(
                f"guidance_scale and strength are at least 0, got {self.guidance_scale} and {self.strength}"
            )


class PerpNegGuidance(SingleViewGuidance[PerpNegConfig]):
    """sigma_t^2 (eps_pred - eps), with eps_pred guided towards a view's own words and perpendicularly away from those
    of other sides; four evaluations a view.
    """

    def __init__(self, prior: Prior, prompt: Prompt, config: PerpNegConfig = PerpNegConfig()) -> None:
        super().__init__(prior, prompt, config)
        words = ViewTextGuidance(prior, prompt, ViewTextConfig())
        self.sides = dict(zip(VIEWS, words.conditions, strict=True))

    def on_latents(self, latents: Float[Tensor, "b v c h w"], cameras: Cameras | None, draws: Draws) -> GuidanceLoss:
        """The same for latents and given random numbers."""
        if cameras is None:
            raise ValueError("which sides a view does not show depends on its camera; pass the views' cameras")
        mixes = self.mixes(cameras)
        wish, negatives, weights = self.conditions(mixes)
        conditions = {"text": wish, "null": self.prior.unconditional(wish), "not": negatives[0], "nor": negatives[1]}

        def along(noised: Noised) -> Tensor:
            eps = {name: e.flatten(0, 1) for name, e in predict_views(self.prior, noised, conditions).items()}
            guided = guide_perpendicular(
                eps_cond=eps["text"],
                eps_uncond=eps["null"],
                eps_neg=torch.stack([eps["not"], eps["nor"]]),
                weights=weights.to(eps["text"]),
                guidance_scale=self.config.guidance_scale,
            )
            return noised.sigma_t.square() * (guided.reshape(noised.eps.shape) - noised.eps)

        return distill(latents, cameras, self.prior.noise_schedule, draws, along)

    def mixes(self, cameras: Cameras) -> list[ViewWeights]:
        """The words of every view, scene after scene."""
        flat = cameras.flatten()
        angles = zip(flat.azimuth.tolist(), flat.elevation.tolist(), strict=True)
        return [OVERHEAD if up > self.config.overhead else view_weights(azimuth) for azimuth, up in angles]

    def conditions(self, mixes: list[ViewWeights]) -> tuple[Condition, list[Condition], Float[Tensor, "2 n"]]:
        """(the wish, the two negatives, the weights of these), a row a view."""
        rows = [torch.stack([v * self.sides[word].text for word, v in mix.positive.items()]).sum(0) for mix in mixes]
        first = self.sides[VIEWS[0]].expand(len(mixes))
        wish = replace(first, text=torch.cat(rows))
        known = list(self.sides.values())
        chosen = [[VIEWS.index(word) for word in mix.negative] for mix in mixes]
        negatives = [rows_of(known, torch.tensor([pair[k] for pair in chosen])) for k in range(2)]
        weights = [[self.config.strength * value for value in mix.negative.values()] for mix in mixes]
        return wish, negatives, torch.tensor(weights).T
