"""The surface scene: a signed distance rendered as a volume that hardens as it learns (NeuS, arXiv:2106.10689)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.fields.background import BackgroundConfig, FlatBackgroundConfig, build_background
from maquette.fields.surface import SurfaceField, SurfaceFieldConfig
from maquette.rendering.archive import restore_scene, write_scene
from maquette.rendering.base import Rendering, Samples, Shot
from maquette.rendering.rays import Rays, cast_rays
from maquette.rendering.sampling import March, OccupancyConfig, OccupancyGrid, draw_offsets, march
from maquette.rendering.scene import DIAGONAL, composite_samples, light_samples
from maquette.rendering.sharpness import Cap, Sharpness, neus_alpha, volsdf_density
from maquette.rendering.volume import packed_weights_from_alpha
from maquette.run.fingerprints import fingerprint
from maquette.schedules import Constant, Linear, Piecewise, Unit, extremes


@dataclass(frozen=True)
class ProgressiveLevels:
    """Levels of the encoding in use: `first`, and one more every `every`, up to all of them (Neuralangelo)."""

    first: int = 4
    """Levels at the beginning."""
    every: float = 1000
    """Steps, or fraction of the run, until the next level."""
    unit: Unit = "step"
    """What `every` counts."""

    def __post_init__(self) -> None:
        if self.first < 1 or not self.every > 0 or self.unit not in ("step", "fraction"):
            raise UserError(
                "progressive levels need first >= 1, every > 0 and the unit 'step' or 'fraction', got "
                f"{self.first}, {self.every}, {self.unit!r}"
            )

    def at(self, step: int, total: int, levels: int) -> int:
        """Levels in use at `step` of `total`, of `levels`."""
        position = step if self.unit == "step" else step / total
        # The small term undoes roundings such as 0.3 / 0.1 = 2.9999999999999996.
        return min(self.first + math.floor(position / self.every + 1e-9), levels)


@dataclass(frozen=True)
class SurfaceConfig:
    """A surface field and how it is rendered; the defaults are instant-nsr-pl's `neus-blender`."""

    field: SurfaceFieldConfig = SurfaceFieldConfig()
    """Signed distance and colour."""
    background: BackgroundConfig = FlatBackgroundConfig()
    """What is behind."""
    opacity: Literal["neus", "volsdf"] = "neus"
    """How distance becomes opacity."""
    variance: float = 0.3
    """Initial v of s = exp(10 v), which begins at 20."""
    cap: Cap | None = None
    """A limit of s over the run."""
    anneal: Constant | Linear | Piecewise = Linear(0.0, 1.0)
    """Share a of NeuS's own opacity against the softer one of the beginning."""
    levels: ProgressiveLevels | None = None
    """How the encoding's levels are unlocked; all of them from the beginning without."""
    occupancy: OccupancyConfig = OccupancyConfig(resolution=128, warmup=256, threshold=1e-3)
    """The grid that skips space which no ray shows."""
    slack: float = 0.5
    """Cell sides by which the distance in a cell may differ from the one found there."""
    samples: Constant | Linear | Piecewise = Constant(1024)
    """Samples along the diagonal of the scene cube; their distance is diagonal / samples."""
    termination: float = 1e-4
    """Samples behind which less than this share of light passes are not evaluated in full; 0 evaluates all."""

    def __post_init__(self) -> None:
        if self.opacity not in ("neus", "volsdf"):
            raise UserError(f"SurfaceConfig.opacity is 'neus' or 'volsdf', got {self.opacity!r}")
        if not extremes(self.samples)[0] > 0:
            raise UserError(f"SurfaceConfig.samples is more than 0 throughout, got {self.samples}")
        if not 0 <= self.termination < 1:
            raise UserError(f"SurfaceConfig.termination is a share of light in [0, 1), got {self.termination}")
        if not self.slack >= 0:
            raise UserError(f"SurfaceConfig.slack is at least 0 cell sides, got {self.slack}")


class SurfaceScene(nn.Module):
    """A signed distance and a colour in the cube [-1, 1]^3, volume rendered; implements `Scene`.

    `seed` fixes the initial parameters, without touching torch's global generator.
    """

    def __init__(self, config: SurfaceConfig = SurfaceConfig(), seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.field = SurfaceField(config.field)
            self.background = build_background(config.background)
        self.sharpness = Sharpness(config.variance, config.cap)
        self.occupancy = OccupancyGrid(config.occupancy)
        self.step_length = DIAGONAL / config.samples.at(0, 1)
        self.annealed = config.anneal.at(0, 1)
        self._unlock(0, 1)

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
        """Drop what hardly any light reaches, by a first look at the distance alone."""
        if not self.config.termination or not len(found):
            return found
        sdf = self.field.sdf(found.positions).squeeze(-1)
        # The cosine is that of the chord to the ray's next sample, where there is one, and head-on at the last.
        following = found.ray_index[1:] == found.ray_index[:-1]
        slope = torch.full_like(sdf, -1.0)
        slope[:-1] = torch.where(following, sdf.diff() / found.t_mid.diff(), slope[:-1]).clamp(-1, 1)
        _, trans = packed_weights_from_alpha(self._alpha(sdf, slope), found.ray_index, num_rays)
        return found.select((trans > self.config.termination).nonzero().squeeze(1))

    def _alpha(self, sdf: Tensor, cosine: Tensor | None) -> Tensor:
        """Opacity of samples; the cosine is needed by NeuS alone."""
        if self.config.opacity == "volsdf":
            return -torch.expm1(-volsdf_density(sdf, self.sharpness()) * self.step_length)
        assert cosine is not None
        return neus_alpha(sdf, cosine, self.step_length, self.sharpness(), self.annealed)

    def _evaluate(self, found: March, rays: Rays, shot: Shot) -> Samples:
        """Ask the field about the samples, light them, and weigh them."""
        want = {"sdf"}
        if shot.shading != "textureless":
            want.add("rgb")
        if shot.needs_normals or self.config.opacity == "neus":
            want |= {"normal", "gradient"}
        if shot.normals and self.field.epsilon:
            want.add("laplacian")
        directions = rays.rays_d.index_select(0, found.ray_index)
        answer = self.field(found.positions, directions, want=frozenset(want))
        assert answer.sdf is not None
        sdf = answer.sdf.squeeze(-1)
        cosine = None if answer.normal is None else (answer.normal * directions).sum(-1)
        alpha = self._alpha(sdf, cosine)
        weights, _ = packed_weights_from_alpha(alpha, found.ray_index, rays.num_rays)
        return Samples(
            ray_index=found.ray_index,
            t_mid=found.t_mid,
            delta=torch.full_like(found.t_mid, self.step_length),
            positions=found.positions,
            rays_d=rays.rays_d,
            density=-torch.log1p(-alpha.clamp(max=1 - 1e-7)) / self.step_length,
            weights=weights,
            rgb=light_samples(answer, found, rays, shot),
            normal=answer.normal,
            gradient=answer.gradient,
            sdf=sdf,
            laplacian=None if answer.laplacian is None else answer.laplacian.squeeze(-1),
        )

    # Training

    def update(self, step: int, total: int, generator: torch.Generator) -> None:
        """Milestones of step `step` of `total`, and a look at the field for the occupancy grid when it is due.

        With `step == total`, after the last step, the grid is made anew with care: what is drawn from now on has no
        holes.
        """
        self.step_length = DIAGONAL / self.config.samples.at(step, total)
        self.annealed = self.config.anneal.at(step, total)
        self.sharpness.update(step, total)
        self._unlock(step, total)
        if step >= total:
            self.occupancy.sweep(self.step_length, self.visibility, generator)
            return
        self.occupancy.update(step, self.step_length, self.visibility, generator)

    def _unlock(self, step: int, total: int) -> None:
        encoding = self.field.encoding
        if self.config.levels is not None:
            encoding.active_levels = self.config.levels.at(step, total, encoding.num_levels)

    @torch.no_grad()
    def visibility(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 1"]:
        """What the occupancy grid remembers: opacity per scene unit of a sample that is met head-on.

        The distance is taken `slack` cells nearer to the surface than it is. Deep inside, where no light arrives (what
        passes a surface on the way to f < 0 is at most Phi(s f)), it is zero.
        """
        sdf, s = self.field.sdf(positions), self.sharpness()
        slack = self.config.slack * 2 / self.config.occupancy.resolution
        alpha = self.occupancy_alpha(sdf.sign() * F.relu(sdf.abs() - slack))
        if self.config.opacity == "neus":
            alpha = alpha * (((sdf + slack) * s).sigmoid() >= self.config.termination)
        return alpha / self.step_length

    def occupancy_alpha(self, sdf: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Opacity of one sample at a distance, met head-on: the cosine is -1."""
        return self._alpha(sdf, torch.full_like(sdf, -1.0))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """'encoding', 'networks', 'sharpness' and 'background'; groups without parameters are left out."""
        groups = {
            "encoding": list(self.field.encoding.parameters()),
            "networks": [*self.field.distance_network.parameters(), *self.field.rgb_network.parameters()],
            "sharpness": list(self.sharpness.parameters()),
            "background": list(self.background.parameters()),
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def total_variation(self) -> Float[Tensor, ""]:
        """Roughness of the encoding's planes."""
        return self.field.encoding.total_variation()

    def unfolded(self) -> SurfaceScene:
        """The same surface with nothing left to anneal or to unlock: a second fit would begin both again."""
        config = replace(self.config, anneal=Constant(self.config.anneal.at(1, 1)), levels=None)
        other = SurfaceScene(config)
        other.load_state_dict(self.state_dict())
        return other

    # Keeping

    def get_extra_state(self) -> Tensor:
        """What milestones move, for `state_dict`: the samples' distance and the annealing."""
        return torch.tensor([self.step_length, self.annealed], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the samples' distance and the annealing."""
        self.step_length, self.annealed = state.tolist()

    def fingerprint(self) -> str:
        """A hash of configuration and tensors."""
        return fingerprint((type(self).__name__, self.config, dict(self.state_dict())))

    def save(self, folder: Path | str) -> None:
        """Write configuration, parameters and occupancy into a folder."""
        write_scene(folder, self.config, self.state_dict())

    @classmethod
    def load(cls, folder: Path | str) -> SurfaceScene:
        """The scene that `save` wrote, on the CPU; it renders the same pictures. Raises UserError for a damaged
        file."""
        return restore_scene(folder, SurfaceConfig, cls)
