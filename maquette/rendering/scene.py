"""The volume scene: a radiance field, a background, and the renderer's memory of where the field is not empty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.fields.background import BackgroundConfig, LearnedBackgroundConfig, build_background
from maquette.fields.base import FieldSample
from maquette.fields.material import shade
from maquette.fields.radiance import RadianceConfig, RadianceField
from maquette.rendering.archive import restore_scene, write_scene
from maquette.rendering.base import Rendering, Samples, Shot
from maquette.rendering.rays import Rays, cast_rays
from maquette.rendering.sampling import March, OccupancyConfig, OccupancyGrid, draw_offsets, march
from maquette.rendering.volume import composite, packed_weights, sum_by_ray
from maquette.run.fingerprints import fingerprint
from maquette.schedules import Constant, Linear, Piecewise, extremes

DIAGONAL = 2 * math.sqrt(3)
"""Length of the scene cube's diagonal."""
WORTHWHILE = 0.25
"""Share of samples expected in the dark from which on they are looked for."""


@dataclass(frozen=True)
class VolumeConfig:
    """A radiance field and how it is rendered."""

    field: RadianceConfig = RadianceConfig()
    """Density and albedo."""
    background: BackgroundConfig = LearnedBackgroundConfig()
    """What is behind."""
    occupancy: OccupancyConfig = OccupancyConfig()
    """The grid that skips empty space."""
    samples: Constant | Linear | Piecewise = Constant(192)
    """Samples along the diagonal of the scene cube; their distance is diagonal / samples."""
    levels: Constant | Linear | Piecewise = Constant(1.0)
    """Share of the encoding's levels in use, coarse ones first."""
    termination: float = 1e-4
    """Samples behind which less than this share of light passes are not evaluated in full; 0 evaluates all."""

    def __post_init__(self) -> None:
        if not extremes(self.samples)[0] > 0:
            raise UserError(f"VolumeConfig.samples is more than 0 throughout, got {self.samples}")
        if not 0 <= self.termination < 1:
            raise UserError(f"VolumeConfig.termination is a share of light in [0, 1), got {self.termination}")


class VolumeScene(nn.Module):
    """A field of density and colour in the cube [-1, 1]^3, volume rendered; implements `Scene`.

    `seed` fixes the initial parameters, without touching torch's global generator.
    """

    def __init__(self, config: VolumeConfig = VolumeConfig(), seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.field = RadianceField(config.field)
            self.background = build_background(config.background)
        self.occupancy = OccupancyGrid(config.occupancy)
        self.step_length = DIAGONAL / config.samples.at(0, 1)
        self.field.encoding.unlock(config.levels.at(0, 1))

    # Rendering

    def render(self, shot: Shot, generator: torch.Generator | None = None) -> Rendering:
        """Pictures of the scene; with a generator samples are jittered along their rays."""
        rays = cast_rays(shot.cameras, shot.pixels)
        flat = rays.flatten()
        found = march(flat, self.occupancy, self.step_length, draw_offsets(flat, generator))
        samples = self._evaluate(self._terminate(found, flat.num_rays), flat, shot)
        return composite_samples(samples, flat, shot, self.background).reshape(*rays.rays_d.shape[:-1])

    @torch.no_grad()
    def _terminate(self, found: March, num_rays: int) -> March:
        """Drop what hardly any light reaches, by a first look at the density alone."""
        if not self.config.termination or not len(found):
            return found
        # A look costs a quarter of what a sample costs in all. Where the remembered densities say that little would be
        # dropped, as in the fog that a field begins as, it is not worth it.
        remembered = self.occupancy.recall(found.positions) * self.step_length
        _, trans = packed_weights(remembered, found.ray_index, num_rays)
        if float((trans < self.config.termination).float().mean()) < WORTHWHILE:
            return found
        density = self.field.density(found.positions).squeeze(-1)
        _, trans = packed_weights(density * self.step_length, found.ray_index, num_rays)
        return found.select((trans > self.config.termination).nonzero().squeeze(1))

    def _evaluate(self, found: March, rays: Rays, shot: Shot) -> Samples:
        """Ask the field about the samples, light them, and weigh them."""
        want = {"density"}
        if shot.shading != "textureless":
            want.add("rgb")
        if shot.needs_normals:
            want |= {"normal", "gradient"}
        answer = self.field(found.positions, want=frozenset(want))
        assert answer.density is not None
        density = answer.density.squeeze(-1)
        weights, _ = packed_weights(density * self.step_length, found.ray_index, rays.num_rays)
        return Samples(
            ray_index=found.ray_index,
            t_mid=found.t_mid,
            delta=torch.full_like(found.t_mid, self.step_length),
            positions=found.positions,
            rays_d=rays.rays_d,
            density=density,
            weights=weights,
            rgb=light_samples(answer, found, rays, shot),
            normal=answer.normal,
            gradient=answer.gradient,
        )

    # Training

    def update(self, step: int, total: int, generator: torch.Generator) -> None:
        """Milestones of step `step` of `total`, and a look at the field for the occupancy grid when it is due.

        With `step == total`, after the last step, the grid is made anew with care: what is drawn from now on has no
        holes.
        """
        self.step_length = DIAGONAL / self.config.samples.at(step, total)
        self.field.encoding.unlock(self.config.levels.at(step, total))
        if step >= total:
            self.occupancy.sweep(self.step_length, self.field.density, generator)
            return
        self.occupancy.update(step, self.step_length, self.field.density, generator)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """'encoding', 'networks' and 'background'; groups without parameters are left out."""
        groups = {
            "encoding": list(self.field.encoding.parameters()),
            "networks": [*self.field.density_network.parameters(), *self.field.rgb_network.parameters()],
            "background": list(self.background.parameters()),
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def total_variation(self) -> Float[Tensor, ""]:
        """Roughness of the encoding's planes."""
        return self.field.encoding.total_variation()

    # Keeping

    def get_extra_state(self) -> Tensor:
        """The samples' distance, which milestones move, for `state_dict`."""
        return torch.tensor(self.step_length, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the samples' distance."""
        self.step_length = float(state)

    def fingerprint(self) -> str:
        """A hash of configuration and tensors."""
        return fingerprint((type(self).__name__, self.config, dict(self.state_dict())))

    def save(self, folder: Path | str) -> None:
        """Write configuration, parameters and occupancy into a folder."""
        write_scene(folder, self.config, self.state_dict())

    @classmethod
    def load(cls, folder: Path | str) -> VolumeScene:
        """The scene that `save` wrote, on the CPU; it renders the same pictures. Raises UserError for a damaged
        file."""
        return restore_scene(folder, VolumeConfig, cls)


def light_samples(answer: FieldSample, found: March, rays: Rays, shot: Shot) -> Float[Tensor, "n 3"]:
    """Colours of samples under the shot's shading; each sample is lit by the light of its camera."""
    albedo = torch.ones_like(found.positions) if answer.rgb is None else answer.rgb
    light = None
    if shot.light is not None and shot.shading != "albedo":
        rays_per_camera = rays.num_rays // max(1, shot.cameras.fovy.numel())
        light = shot.light.reshape(-1, 3).to(found.positions).index_select(0, found.ray_index // rays_per_camera)
    return shade(shot.shading, albedo, answer.normal, found.positions, light, shot.ambient)


def composite_samples(samples: Samples, rays: Rays, shot: Shot, background: Callable[[Tensor], Tensor]) -> Rendering:
    """Sum the samples of each of the flat rays and put the background, a function of direction, behind them."""
    parts = [samples.rgb, torch.ones_like(samples.t_mid)[:, None], samples.t_mid[:, None]]
    if samples.normal is not None and shot.needs_normals:  # a surface needs them for its opacity too
        parts.append(samples.normal)
    weighted = samples.weights[:, None] * torch.cat(parts, dim=1)
    summed = sum_by_ray(weighted, samples.ray_index, samples.num_rays)
    opacity = summed[:, 3:4]
    if shot.background is None:
        behind = background(rays.rays_d)
    else:
        behind = shot.background.to(summed).expand(samples.num_rays, 3)
    return Rendering(
        rgb=composite(summed[:, :3], opacity, behind),
        opacity=opacity,
        depth=summed[:, 4:5],
        background=behind,
        normal=F.normalize(summed[:, 5:8], dim=-1) if len(parts) > 3 else None,
        samples=samples,
    )
