"""A prior that knows the object: what a perfect multi-view prior would say, for finding out which part limits a result.

Whatever the noise, its clean image is the object as the camera sees it on the condition's background. Sampled views are
then true renders, and distillation pulls towards them; what is still wrong after that is not the prior's fault.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maquette.asset import Mesh
from maquette.cameras import Cameras
from maquette.diffusion.schedule import NoiseSchedule
from maquette.images import Prompt
from maquette.priors.base import Codec, Condition, Prediction, PredictsEach, UnconditionalKind
from maquette.rendering.raster import MeshRenderer
from maquette.run.fingerprints import fingerprint

KEPT = 64
"""Sets of renders that are kept: a sampler asks for the same ones at every step."""


class TruePrior(PredictsEach):
    """The `Prior` of one object, given in the scene's frame; latents and noise are those of another prior."""

    def __init__(self, mesh: Mesh, codec: Codec, noise_schedule: NoiseSchedule, num_views: int = 4) -> None:
        self.mesh, self.codec, self.noise_schedule = mesh, codec, noise_schedule
        self.num_views: int | None = num_views
        self._renderer = MeshRenderer(mesh)
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def condition(self, prompt: Prompt, background: Float[Tensor, "3"]) -> Condition:
        """The background; the prompt says nothing that the object does not."""
        return Condition(text=torch.zeros(1, 1, 1), background=background)

    def unconditional(self, condition: Condition, kind: UnconditionalKind = "zeros") -> Condition:
        """The same, so that no guidance scale changes anything."""
        return condition

    def predict_each(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        conditions: Mapping[str, Condition],
        cameras: Cameras | None = None,
    ) -> dict[str, Prediction]:
        """`predict` for several conditions. ValueError without cameras."""
        if cameras is None:
            raise ValueError("the object looks different from every side: TruePrior needs cameras")
        scenes, views = latents_t.shape[:2]
        rgba = self._seen(cameras).expand(scenes, views, -1, -1, -1).to(latents_t)
        found: dict[str, Prediction] = {}
        for name, condition in conditions.items():
            assert condition.background is not None, "made by `condition`"
            behind = condition.background.to(latents_t)[:, None, None]
            x0 = self.codec.encode(rgba[:, :, :3] * rgba[:, :, 3:] + (1 - rgba[:, :, 3:]) * behind)
            found[name] = Prediction(self.noise_schedule.eps_from_x0(latents_t, x0, t), x0)
        return found

    def card(self) -> dict[str, Any]:
        """What stands in for the card of weights."""
        return {"name": "truth", "licence": "CC0-1.0", "commercial": True, "control": "none"}

    def fingerprint(self) -> str:
        """Covers the object and the latents."""
        return fingerprint(("truth", self.mesh, self.codec.identity(), self.noise_schedule.alphas_cumprod))

    def _seen(self, cameras: Cameras) -> Float[Tensor, "*bv 4 s s"]:
        """Straight RGBA pictures of the codec's size."""
        size = self.codec.image_size
        key = cameras.c2w.cpu().numpy().tobytes() + cameras.fovy.cpu().numpy().tobytes()
        if key not in self._kept:
            flat = cameras.to("cpu").flatten().with_size(size, size)
            seen = self._renderer.render(flat, samples=4).rgba.movedim(-1, 1)
            self._kept[key] = seen.reshape(*cameras.batch_shape, 4, size, size)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
