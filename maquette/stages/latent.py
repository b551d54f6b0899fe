"""Score distillation of a field of latents, and the way back to colours (Latent-NeRF, arXiv:2211.07600)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras, OrbitSampler
from maquette.guidance.base import draw
from maquette.guidance.view_text import ViewTextGuidance
from maquette.images import Views
from maquette.priors.base import Prior
from maquette.rendering.base import Rendering, Shot
from maquette.rendering.latent import LatentScene
from maquette.run import Stage
from maquette.stages.objectives import DistillationConfig, Metrics
from maquette.stages.regularizers import Ramp


@dataclass(frozen=True)
class LatentDistillation:
    """Rendered latents please a prior; nothing is encoded, and nothing is lit."""

    guidance: ViewTextGuidance
    """Who judges."""
    sampler: OrbitSampler
    """Where from."""
    config: DistillationConfig
    """Noise, number of scenes and regularisers; the resolution is that of the latents."""
    name: str = "distillation"
    """Name in the log."""

    @property
    def weight(self) -> Ramp:
        """Factor on the loss over the run."""
        return self.config.weight

    @property
    def every(self) -> int:
        """Steps between two turns."""
        return self.config.every

    def to(self, device: torch.device) -> LatentDistillation:
        """Itself: a guidance stays where its prior is."""
        return self

    def shot(self, step: int, total: int, generator: torch.Generator, device: torch.device) -> Shot:
        """Whole pictures of the latents' size."""
        _, height, width = self.guidance.prior.codec.latent_shape
        scenes = round(self.config.scenes.at(step, total))
        return Shot(self.sampler.sample(scenes, height, width, generator).to(device))

    def loss(
        self, rendering: Rendering, shot: Shot, step: int, total: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """The guidance's loss of the rendered latents, and the penalties on the rendering."""
        assert rendering.latents is not None, "this objective is for scenes that render latents"
        latents = rendering.latents.movedim(-1, -3)  # [S, V, C, h, w]
        draws = draw(self.guidance.prior, latents, self.config.noise_range.at(step, total), generator)
        guided = self.guidance.on_latents(latents, shot.cameras, draws)
        penalty, penalties = self.config.regularizers(rendering, step, total)
        metrics: Metrics = {"guidance": guided.loss.detach(), "opacity": rendering.opacity.detach().mean()}
        return guided.loss + penalty, {**metrics, **guided.metrics, **penalties}


@torch.no_grad()
def decode_views(scene: LatentScene, prior: Prior, cameras: Cameras, *, run: Stage) -> Views:
    """What the prior's codec makes of a field's latents, seen from cameras [V]; masks are the field's opacity."""
    size = prior.codec.image_size
    _, height, width = prior.codec.latent_shape
    images, masks = [], []
    for index in range(len(cameras)):
        camera = cameras[index : index + 1].to(run.device).with_size(height, width)
        rendering = scene.render(Shot(camera))
        assert rendering.latents is not None
        images.append(prior.codec.decode(rendering.latents.movedim(-1, -3)[:, None])[:, 0].float().cpu())
        mask = F.interpolate(rendering.masks(), (size, size), mode="bilinear", align_corners=False)
        masks.append(mask.clamp(0, 1).cpu())
    return Views(torch.cat(images), torch.cat(masks), cameras.to("cpu").with_size(size, size))
