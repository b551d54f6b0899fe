"""What flows through rendering: a `Shot` goes in, a `Rendering` comes out, a `Scene` does it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maquette.cameras import Cameras
from maquette.fields.material import Shading


@dataclass(frozen=True)
class Shot:
    """Where to look from, and under which light."""

    cameras: Cameras
    """Cameras of any batch shape [*b]."""
    background: Float[Tensor, "3"] | None = None
    """A flat colour in [0, 1] behind the object; None shows the scene's own background."""
    shading: Shading = "albedo"
    """Flat colour, light on white, or light on colour."""
    light: Float[Tensor, "*b 3"] | None = None
    """Place of a point light per camera, world frame; needed unless shading is 'albedo'."""
    ambient: float = 0.1
    """Strength of the light that comes from everywhere; the point light has the rest."""
    normals: bool = False
    """Also find normals (shading with light does so anyway)."""
    pixels: Float[Tensor, "*b h w 2"] | None = None
    """Places in the image to render, x right and y down, pixel centres at half-integers; None renders every pixel
    centre."""
    index: Int[Tensor, "*b"] | None = None
    """Which of its pictures each camera belongs to, for the objective that made the shot."""

    @property
    def needs_normals(self) -> bool:
        """Whether a rendering of this shot has normals."""
        return self.normals or self.shading != "albedo"


@dataclass(frozen=True)
class Samples:
    """The points of a rendering that were evaluated, of all rays in one list, ordered by ray and then by distance.

    Rays are counted over the flattened rendering; a ray may have no sample at all.
    """

    ray_index: Int[Tensor, "n"]
    """Which ray each sample lies on."""
    t_mid: Float[Tensor, "n"]
    """Distance from the camera to the middle of the sample's interval."""
    delta: Float[Tensor, "n"]
    """Length of the interval."""
    positions: Float[Tensor, "n 3"]
    """Middles of the intervals, world frame."""
    rays_d: Float[Tensor, "r 3"]
    """Unit directions of the rays, from the camera into the scene."""
    density: Float[Tensor, "n"]
    """Differential opacity."""
    weights: Float[Tensor, "n"]
    """Share of the sample in its ray's colour, w_i = T_i (1 - exp(-density_i delta_i))."""
    rgb: Float[Tensor, "n 3"]
    """Shaded colour."""
    normal: Float[Tensor, "n 3"] | None = None
    """Unit normals, where the shot wanted them."""
    gradient: Float[Tensor, "n 3"] | None = None
    """Gradient of the density (or signed distance), where the shot wanted normals."""
    sdf: Float[Tensor, "n"] | None = None
    """Signed distance to the surface, for scenes that have one."""
    laplacian: Float[Tensor, "n"] | None = None
    """Its Laplacian, where the shot wanted normals and the field finds them by finite differences."""

    @property
    def num_rays(self) -> int:
        """How many rays there are."""
        return self.rays_d.shape[0]

    @property
    def directions(self) -> Float[Tensor, "n 3"]:
        """The direction of each sample's ray."""
        return self.rays_d.index_select(0, self.ray_index)


@dataclass(frozen=True)
class Rendering:
    """Pictures of a scene, [*b, h, w] in their leading axes; differentiable in the scene's parameters."""

    rgb: Float[Tensor, "*pixels 3"]
    """Colour in [0, 1], composited on the background."""
    opacity: Float[Tensor, "*pixels 1"]
    """Sum of the weights along the ray, in [0, 1]."""
    depth: Float[Tensor, "*pixels 1"]
    """Sum of weight times distance along the ray, not divided by the opacity; see `mean_depth`."""
    background: Float[Tensor, "*pixels 3"]
    """What is behind."""
    normal: Float[Tensor, "*pixels 3"] | None = None
    """Unit normals, world frame, zero where nothing was hit; where the shot wanted them."""
    samples: Samples | None = None
    """The samples behind the pictures, for regularisers."""
    latents: Float[Tensor, "*pixels c"] | None = None
    """A prior's latents, for scenes that render them."""

    @property
    def mean_depth(self) -> Float[Tensor, "*pixels 1"]:
        """Mean distance along the ray to what was hit; zero where nothing was."""
        hit = self.opacity > 0
        return torch.where(hit, self.depth / torch.where(hit, self.opacity, torch.ones_like(self.opacity)), 0.0)

    def images(self) -> Float[Tensor, "*b 3 h w"]:
        """The colours as networks want them."""
        return self.rgb.movedim(-1, -3)

    def masks(self) -> Float[Tensor, "*b 1 h w"]:
        """The opacities as networks want them."""
        return self.opacity.movedim(-1, -3)

    def reshape(self, *shape: int) -> Rendering:
        """The same pixels with other leading axes; the samples stay as they are."""
        normal = None if self.normal is None else self.normal.reshape(*shape, 3)
        return Rendering(
            rgb=self.rgb.reshape(*shape, 3),
            opacity=self.opacity.reshape(*shape, 1),
            depth=self.depth.reshape(*shape, 1),
            background=self.background.reshape(*shape, 3),
            normal=normal,
            samples=self.samples,
        )

    def without_samples(self) -> Rendering:
        """The pictures alone."""
        return replace(self, samples=None)


@runtime_checkable
class Scene(Protocol):
    """Everything that is learned and drawn together, saved and resumed whole; a `torch.nn.Module` in practice."""

    def render(self, shot: Shot, generator: torch.Generator | None = None) -> Rendering:
        """Pictures of the scene. With a generator the samples along rays are jittered, as training wants it; without
        one the same call gives the same picture."""
        ...

    def update(self, step: int, total: int, generator: torch.Generator) -> None:
        """Prepare step `step` of `total`: milestones, and what the renderer remembers of the scene. `step == total`
        says that learning is over and good pictures are next."""
        ...

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Parameters by the learning rate they need: 'encoding', 'networks', 'background', ..."""
        ...

    def total_variation(self) -> Float[Tensor, ""]:
        """Roughness of the encoding."""
        ...

    def to(self, device: torch.device) -> Any:
        """The scene with its tensors on a device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All tensors that make the scene."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """The inverse of `state_dict`."""
        ...

    def save(self, folder: Path) -> None:
        """Write the scene into a folder."""
        ...

    def fingerprint(self) -> str:
        """A hash of settings and tensors: scenes that render alike have the same."""
        ...
