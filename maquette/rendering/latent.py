"""A field that renders a prior's latents instead of colours (Latent-NeRF, arXiv:2211.07600).

The density is that of a volume scene; beside its colour the field has one value for each channel of the latents, and
so has the background. A pixel of the rendering is a pixel of the latents: nothing is encoded while it learns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.rendering.archive import restore_scene, write_scene
from maquette.rendering.base import Rendering, Shot
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.rendering.volume import composite, sum_by_ray
from maquette.run.fingerprints import fingerprint


@dataclass(frozen=True)
class LatentConfig:
    """A field of latents."""

    volume: VolumeConfig = VolumeConfig()
    """Its density, and how it is rendered."""
    channels: int = 4
    """Channels of the prior's latents."""
    hidden: int = 64
    """Width of the layer between features and latents."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.hidden < 1:
            raise UserError(f"a field of latents needs channels, hidden >= 1, got {self.channels} and {self.hidden}")


class LatentScene(nn.Module):
    """A volume whose renderings have `latents`; implements `Scene`. Latents depend on the place alone, not on light."""

    def __init__(self, config: LatentConfig = LatentConfig(), seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.volume = VolumeScene(config.volume, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.head = nn.Sequential(
                nn.Linear(self.volume.field.encoding.num_features, config.hidden, bias=False),
                nn.ReLU(),
                nn.Linear(config.hidden, config.channels, bias=False),
            )
        self.behind = nn.Parameter(torch.zeros(config.channels))

    def render(self, shot: Shot, generator: torch.Generator | None = None) -> Rendering:
        """Pictures of the volume, with the latents of the same pixels."""
        rendering = self.volume.render(shot, generator)
        samples = rendering.samples
        assert samples is not None, "a volume keeps its samples"
        values = self.head(self.volume.field.encoding(samples.positions))
        summed = sum_by_ray(samples.weights[:, None] * values, samples.ray_index, samples.num_rays)
        shape = (*rendering.opacity.shape[:-1], self.config.channels)
        latents = composite(summed.reshape(shape), rendering.opacity, self.behind.expand(shape))
        return replace(rendering, latents=latents)

    def update(self, step: int, total: int, generator: torch.Generator) -> None:
        """As the volume's."""
        self.volume.update(step, total, generator)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The volume's, with the head among the networks and the latents behind the object in the background."""
        groups = self.volume.parameter_groups()
        groups["networks"] = [*groups["networks"], *self.head.parameters()]
        groups["background"] = [*groups.get("background", []), self.behind]
        return groups

    def total_variation(self) -> Float[Tensor, ""]:
        """Roughness of the encoding's planes."""
        return self.volume.total_variation()

    def fingerprint(self) -> str:
        """A hash of configuration and tensors."""
        return fingerprint((type(self).__name__, self.config, dict(self.state_dict())))

    def save(self, folder: Path | str) -> None:
        """Write configuration, parameters and occupancy into a folder."""
        write_scene(folder, self.config, self.state_dict())

    @classmethod
    def load(cls, folder: Path | str) -> LatentScene:
        """The scene that `save` wrote, on the CPU."""
        return restore_scene(folder, LatentConfig, cls)
