"""A scene rendered in patches: the whole view coarsely, and one sharp window of it.

Priors look at large pictures of which a field cannot afford every ray. So a training render is the whole view at a
fraction of its size, enlarged again, with a window at full resolution pasted over it; gradients flow through both. This
is the renderer of USD (arXiv:2312.06198, released configuration: windows of 128 px in views of 512 px, factor 4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.rendering.archive import read_scene, write_scene
from maquette.rendering.base import Rendering, Shot
from maquette.rendering.rays import pixel_centres
from maquette.run.files import write_json
from maquette.run.fingerprints import fingerprint
from maquette.run.record import read_json
from maquette.run.results import load_result, save_result

INSIDE = "inside.json"
"""File that says of which class the scene inside is."""


@dataclass(frozen=True)
class PatchConfig:
    """How a view is divided; the defaults are those of USD's released configuration."""

    size: int = 128
    """Pixels along the side of the sharp window; views that are not larger are rendered whole."""
    factor: int = 4
    """How many times smaller the whole view is rendered before it is enlarged."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.factor < 1:
            raise UserError(f"a patch has size and factor of at least 1, got {self.size} and {self.factor}")


class PatchScene(nn.Module):
    """A scene (a module that is one) which renders training views in patches; everything else is the scene's own.

    With a generator, as training renders, the window's place is drawn from it. Without one, and for shots of chosen
    pixels, the scene inside renders every pixel. Renderings in patches have no samples: regularisers of samples need
    whole renderings.
    """

    def __init__(self, scene: nn.Module, config: PatchConfig = PatchConfig()) -> None:
        super().__init__()
        self.scene: Any = scene
        self.config = config

    def render(self, shot: Shot, generator: torch.Generator | None = None) -> Rendering:
        """The view in patches, the window anywhere inside with equal chance (all views of a shot share its place).

        Differs from the released code: there the window never touches the right and lower border.
        """
        height, width = shot.cameras.height, shot.cameras.width
        small = height <= self.config.size or width <= self.config.size
        if generator is None or shot.pixels is not None or small:
            return self.scene.render(shot, generator)
        room = (height - self.config.size + 1, width - self.config.size + 1)
        top, left = (int(torch.randint(n, (), generator=generator, device=generator.device)) for n in room)
        return self.render_patch(shot, top, left, generator)

    def render_patch(self, shot: Shot, top: int, left: int, generator: torch.Generator | None = None) -> Rendering:
        """The view in patches, with the window's first row and column given."""
        cameras, size = shot.cameras, self.config.size
        height, width = cameras.height, cameras.width
        if not (0 <= top <= height - size and 0 <= left <= width - size):
            raise ValueError(f"a window of {size} px at ({top}, {left}) leaves the view of {height}x{width} px")
        rows, columns = max(1, height // self.config.factor), max(1, width // self.config.factor)
        stretch = cameras.c2w.new_tensor([width / columns, height / rows])
        coarse = self._render(shot, pixel_centres(rows, columns, cameras.c2w) * stretch, generator)
        corner = cameras.c2w.new_tensor([left, top])
        sharp = self._render(shot, pixel_centres(size, size, cameras.c2w) + corner, generator)

        def merge(whole: Tensor, part: Tensor) -> Tensor:
            return paste(enlarge(whole, height, width), part, top, left)

        normal = None
        if coarse.normal is not None and sharp.normal is not None:
            normal = F.normalize(merge(coarse.normal, sharp.normal), dim=-1)
        return Rendering(
            rgb=merge(coarse.rgb, sharp.rgb),
            opacity=merge(coarse.opacity, sharp.opacity),
            depth=merge(coarse.depth, sharp.depth),
            background=merge(coarse.background, sharp.background),
            normal=normal,
        )

    def _render(self, shot: Shot, pixels: Float[Tensor, "h w 2"], generator: torch.Generator | None) -> Rendering:
        places = pixels.expand(*shot.cameras.batch_shape, *pixels.shape)
        return self.scene.render(replace(shot, pixels=places), generator)

    # The scene's own

    def update(self, step: int, total: int, generator: torch.Generator) -> None:
        """Prepare step `step` of `total`."""
        self.scene.update(step, total, generator)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The scene's parameters by the learning rate they need."""
        return self.scene.parameter_groups()

    def total_variation(self) -> Float[Tensor, ""]:
        """Roughness of the scene's encoding."""
        return self.scene.total_variation()

    def fingerprint(self) -> str:
        """A hash of the division and of the scene."""
        return fingerprint((type(self).__name__, self.config, self.scene))

    def save(self, folder: Path | str) -> None:
        """Write the division, and the scene into `folder/scene`."""
        write_scene(folder, self.config, {})
        write_json(Path(folder) / INSIDE, save_result(self.scene, Path(folder) / "scene"))

    @classmethod
    def load(cls, folder: Path | str) -> PatchScene:
        """What `save` wrote, on the CPU."""
        config, _ = read_scene(folder, PatchConfig)
        inside = read_json(Path(folder) / INSIDE)
        if inside is None:
            raise UserError(f"no saved scene at {Path(folder) / INSIDE}")
        return cls(load_result(inside, Path(folder) / "scene", __name__), config)


def enlarge(image: Float[Tensor, "*b h w c"], height: int, width: int) -> Float[Tensor, "*b {height} {width} c"]:
    """Pixels [*b, h, w, c] at another size, bilinear with half-pixel centres."""
    batch = image.shape[:-3]
    flat = image.reshape(-1, *image.shape[-3:]).movedim(-1, 1)
    grown = F.interpolate(flat, (height, width), mode="bilinear", align_corners=False)
    return grown.movedim(1, -1).reshape(*batch, height, width, image.shape[-1])


def paste(
    image: Float[Tensor, "*b h w c"], window: Float[Tensor, "*b y x c"], top: int, left: int
) -> Float[Tensor, "*b h w c"]:
    """The image with a window in place of its pixels from (top, left) on; differentiable in both."""
    pasted = image.clone()
    pasted[..., top : top + window.shape[-3], left : left + window.shape[-2], :] = window
    return pasted
