"""The painted scene: a mesh that stays as it is, and a colour that is learned on it (textures by distillation)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maquette.asset import Mesh
from maquette.errors import UserError
from maquette.fields.background import BackgroundConfig, FlatBackgroundConfig, build_background
from maquette.fields.material import shade
from maquette.fields.radiance import RadianceConfig, RadianceField
from maquette.meshing.raycast import RayCaster
from maquette.rendering.archive import restore_scene, write_scene
from maquette.rendering.base import Rendering, Shot
from maquette.rendering.rays import Rays, cast_rays, pixel_centres
from maquette.rendering.scene import VolumeScene
from maquette.rendering.volume import composite
from maquette.run.fingerprints import fingerprint


@dataclass(frozen=True)
class PaintedConfig:
    """A colour field on a mesh and how it is rendered."""

    field: RadianceConfig = RadianceConfig()
    """The field whose colours are learned; its density is not asked."""
    background: BackgroundConfig = FlatBackgroundConfig()
    """What is behind."""
    samples: int = 2
    """Rays along each side of a pixel, so that outlines are antialiased."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"a pixel is seen through at least one ray, got samples={self.samples}")


class PaintedScene(nn.Module):
    """A mesh in the cube [-1, 1]^3 whose colour at x is rgb(x) of a radiance field; implements `Scene`.

    Rays end where they first meet the surface, so a rendering is differentiable in the colours and in the background,
    and in nothing else; it has no samples. Surfaces are two-sided. Rays are cast on the CPU.
    """

    def __init__(self, mesh: Mesh, config: PaintedConfig = PaintedConfig(), seed: int = 0) -> None:
        super().__init__()
        self.mesh, self.config = mesh, config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.field = RadianceField(config.field)
            self.background = build_background(config.background)
        self._normals = mesh.vertex_normals()
        self._caster: RayCaster | None = None

    @classmethod
    def over(cls, mesh: Mesh, scene: VolumeScene, samples: int = 2) -> PaintedScene:
        """The mesh of a volume in the volume's own colours, before its own background."""
        painted = cls(mesh, PaintedConfig(scene.config.field, scene.config.background, samples))
        painted.field.load_state_dict(scene.field.state_dict())
        painted.background.load_state_dict(scene.background.state_dict())
        return painted

    def render(self, shot: Shot, generator: torch.Generator | None = None) -> Rendering:
        """Pictures of the mesh; nothing is jittered, so `generator` has no say."""
        pixels = shot.pixels
        if pixels is None:
            pixels = pixel_centres(shot.cameras.height, shot.cameras.width, shot.cameras.c2w)
            pixels = pixels.expand(*shot.cameras.batch_shape, *pixels.shape)
        rays = cast_rays(shot.cameras, subdivided(pixels, self.config.samples)).flatten()
        met, positions, distance, normal = self._meet(rays)

        def spread(values: Float[Tensor, "m c"]) -> Float[Tensor, "*b h w c"]:
            """Values of the rays that met something, zero at the others, averaged over each pixel."""
            every = values.new_zeros(len(met), values.shape[-1]).index_put((met.nonzero()[:, 0],), values)
            every = every.reshape(*pixels.shape[:-1], self.config.samples**2, values.shape[-1])
            return every.mean(dim=-2)

        light = None
        if shot.light is not None and shot.shading != "albedo":
            rays_per_camera = len(met) // max(1, shot.cameras.fovy.numel())
            light = shot.light.reshape(-1, 3).to(positions).repeat_interleave(rays_per_camera, dim=0)[met]
        albedo = torch.ones_like(positions) if shot.shading == "textureless" else self.field.albedo(positions)
        rgb = spread(shade(shot.shading, albedo, normal, positions, light, shot.ambient))
        opacity = spread(torch.ones_like(positions[:, :1]))
        centre = cast_rays(shot.cameras, pixels).flatten()
        behind = self.background(centre.rays_d) if shot.background is None else shot.background.to(rgb)
        behind = behind.expand(centre.rays_d.shape).reshape(rgb.shape)
        return Rendering(
            rgb=composite(rgb, opacity, behind),
            opacity=opacity,
            depth=spread(distance[:, None]),
            background=behind,
            normal=F.normalize(spread(normal), dim=-1) if shot.needs_normals else None,
        )

    @torch.no_grad()
    def _meet(
        self, rays: Rays
    ) -> tuple[Bool[Tensor, " r"], Float[Tensor, "m 3"], Float[Tensor, " m"], Float[Tensor, "m 3"]]:
        """Which rays meet the surface; where, how far away, and the unit normal there, turned against the ray."""
        if self._caster is None:
            self._caster = RayCaster(self.mesh)
        rays_o, rays_d = (value.detach().cpu().numpy() for value in (rays.rays_o, rays.rays_d))
        hits = self._caster.first_hits(rays_o, rays_d)
        met = hits.face >= 0
        corners, weights = self.mesh.faces[hits.face[met]], hits.barycentric[met]
        normal = np.einsum("nk,nkc->nc", weights, self._normals[corners])
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
        normal *= np.where((normal * rays_d[met]).sum(-1, keepdims=True) > 0, -1, 1)
        positions = rays_o[met] + hits.distance[met, None] * rays_d[met]
        where, far, facing = (torch.from_numpy(v).to(rays.rays_d) for v in (positions, hits.distance[met], normal))
        return torch.from_numpy(met).to(rays.rays_d.device), where, far, facing

    # Training

    def update(self, step: int, total: int, generator: torch.Generator) -> None:
        """Nothing: a mesh has no milestones."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """'encoding', 'networks' (colour alone) and 'background'; groups without parameters are left out."""
        groups = {
            "encoding": list(self.field.encoding.parameters()),
            "networks": list(self.field.rgb_network.parameters()),
            "background": list(self.background.parameters()),
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def total_variation(self) -> Float[Tensor, ""]:
        """Roughness of the encoding's planes."""
        return self.field.encoding.total_variation()

    # Keeping

    def __getstate__(self) -> dict[str, Any]:
        """Without the search tree, which cannot be copied and is made again when it is needed."""
        return {**self.__dict__, "_caster": None}

    def fingerprint(self) -> str:
        """A hash of mesh, configuration and tensors."""
        return fingerprint((type(self).__name__, self.mesh, self.config, dict(self.state_dict())))

    def save(self, folder: Path | str) -> None:
        """Write configuration and colours into a folder, and the mesh into `folder/mesh`."""
        write_scene(folder, self.config, self.state_dict())
        (Path(folder) / "mesh").mkdir(exist_ok=True)
        self.mesh.save(Path(folder) / "mesh")

    @classmethod
    def load(cls, folder: Path | str) -> PaintedScene:
        """The scene that `save` wrote, on the CPU. Raises UserError for a damaged file."""
        return restore_scene(folder, PaintedConfig, lambda config: cls(Mesh.load(Path(folder) / "mesh"), config))


def subdivided(pixels: Float[Tensor, "*b h w 2"], samples: int) -> Float[Tensor, "*b h w*{samples}**2 2"]:
    """Instead of each place in a picture the `samples` x `samples` middles of the parts of the pixel around it."""
    along = (torch.arange(samples, dtype=pixels.dtype, device=pixels.device) + 0.5) / samples - 0.5
    rows, columns = torch.meshgrid(along, along, indexing="ij")
    offsets = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    return (pixels[..., None, :] + offsets).flatten(-3, -2)
