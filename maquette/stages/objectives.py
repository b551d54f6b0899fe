"""What a fit asks of a scene: look like these pictures (`Photometric`), or please a prior (`Distillation`).

An objective says where to look (a `Shot`) and what to ask of the rendering (a loss). Here, and nowhere else,
renderings meet guidance; neither knows the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maquette.cameras import OrbitSampler
from maquette.errors import UserError
from maquette.fields.material import Shading
from maquette.guidance.base import Guidance, NoiseRange
from maquette.images import Views
from maquette.rendering.base import Rendering, Shot
from maquette.rendering.lights import LightSampler
from maquette.rendering.rays import pixel_centres
from maquette.schedules import Constant, Linear, Piecewise, extremes
from maquette.stages.regularizers import Ramp, Regularizers, mask_entropy

Metrics = dict[str, Any]
"""Figures worth logging: numbers, or tensors of one element."""


@runtime_checkable
class Objective(Protocol):
    """One thing that a fit wants; `fit` renders `shot` and descends `loss`."""

    @property
    def name(self) -> str:
        """Distinguishes the objectives of a fit, in the log and in their randomness."""
        ...

    @property
    def weight(self) -> Ramp:
        """Factor on the loss over the run; at 0 nothing is rendered."""
        ...

    @property
    def every(self) -> int:
        """Steps between two turns of this objective."""
        ...

    def shot(self, step: int, total: int, generator: torch.Generator, device: torch.device) -> Shot:
        """Where to look at this step."""
        ...

    def loss(
        self, rendering: Rendering, shot: Shot, step: int, total: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """How far the rendering of `shot` is from what is wanted."""
        ...

    def to(self, device: torch.device) -> Objective:
        """The same objective with its data on a device."""
        ...


# Pictures


@dataclass(frozen=True)
class RandomRays:
    """Single pixels of all views."""

    count: int = 2048
    """Rays of a step."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"RandomRays.count is at least 1, got {self.count}")


@dataclass(frozen=True)
class RandomCrops:
    """Square windows of some views."""

    count: int = 4
    """Windows of a step."""
    size: int = 32
    """Pixels along their side."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise UserError(f"RandomCrops needs count, size >= 1, got {self.count} and {self.size}")


@dataclass(frozen=True)
class WholeImages:
    """All pixels of some views, or of all views if there are fewer."""

    count: int = 4
    """Views of a step."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"WholeImages.count is at least 1, got {self.count}")


Picker = RandomRays | RandomCrops | WholeImages


@dataclass(frozen=True)
class PhotometricConfig:
    """How pictures are compared."""

    pixels: Picker = RandomRays()
    """Which pixels a step looks at."""
    weight: Ramp = Constant(1.0)
    """Factor on the whole objective."""
    every: int = 1
    """Steps between two turns."""
    rgb: Ramp = Constant(1.0)
    """Weight of colour."""
    mask: Ramp = Constant(0.1)
    """Weight of opacity against the views' masks, where there are any."""
    measure: Literal["l1", "l2", "huber"] = "huber"
    """Distance of colours and of opacities: absolute, squared, or squared below 0.1 and absolute above (in units of
    0.1)."""
    mask_measure: Literal["as colour", "entropy"] = "as colour"
    """Distance of opacities: that of colours, or the cross entropy of opacities clamped to [0.001, 0.999] (NeuS)."""
    background: Literal["random", "own"] = "random"
    """What masked views are composited on: another flat colour each step (so that no colour can stand in for empty
    space), or the scene's own background. Views without masks always show the scene's own."""
    between: bool = False
    """Random rays go anywhere through their pixels, not through the centres alone; all of a pixel should look like it.
    Between the centres of large pixels a fine field is free otherwise, and grows combs there."""
    regularizers: Regularizers = Regularizers()
    """Further penalties on these renderings."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"an objective's `every` is at least 1 step, got {self.every}")
        if self.between and not isinstance(self.pixels, RandomRays):
            raise UserError("only random rays go between pixels: give `pixels` random-rays, or leave `between` off")


@dataclass(frozen=True)
class Photometric:
    """The scene looks like given views: colour on a common background, and opacity like their masks.

    loss = mean over pixels of v (rgb d(c, c_view) + mask d(o, mask_view)), with v the weight of the pixel's view,
    scaled to mean 1 over all views, and d the configured distance.
    """

    views: Views
    """The pictures, all of one size."""
    config: PhotometricConfig = PhotometricConfig()
    """How they are compared."""
    view_weights: tuple[float, ...] | None = None
    """How much each view counts; equally without."""
    name: str = "photometric"
    """Name in the log."""

    def __post_init__(self) -> None:
        if len(self.views) == 0:
            raise ValueError("Photometric expects at least one view, got none")
        if self.view_weights is not None:
            if len(self.view_weights) != len(self.views):
                raise ValueError(
                    f"Photometric expects one weight a view, got {len(self.view_weights)} for {len(self.views)} views"
                )
            if min(self.view_weights) < 0 or sum(self.view_weights) <= 0:
                raise ValueError(f"weights of views are >= 0 and not all 0, got {self.view_weights}")
        size = self.config.pixels.size if isinstance(self.config.pixels, RandomCrops) else 1
        if size > min(self.views.cameras.height, self.views.cameras.width):
            raise ValueError(
                f"crops of {size} px do not fit views of {self.views.cameras.height}x{self.views.cameras.width} px"
            )

    @property
    def weight(self) -> Ramp:
        """Factor on the loss over the run."""
        return self.config.weight

    @property
    def every(self) -> int:
        """Steps between two turns."""
        return self.config.every

    def to(self, device: torch.device) -> Photometric:
        """The same objective with its views on a device."""
        return replace(self, views=self.views.to(device))

    def shot(self, step: int, total: int, generator: torch.Generator, device: torch.device) -> Shot:
        """Some pixels of some views."""
        views = self.views
        height, width = views.cameras.height, views.cameras.width
        picker = self.config.pixels
        if isinstance(picker, RandomRays) and self.config.between:
            drawn = torch.rand(picker.count, 3, generator=generator, device=device)
            index = (drawn[:, 0] * len(views)).long().clamp(max=len(views) - 1)
            # Rounding must not make the last pixel's places those of one beyond.
            inside = drawn[:, 1:].clamp(max=1 - 1e-6) * drawn.new_tensor([width, height])
            pixels = inside[:, None, None].to(views.images)
        elif isinstance(picker, RandomRays):
            drawn = torch.randint(len(views) * height * width, (picker.count,), generator=generator, device=device)
            index = torch.div(drawn, height * width, rounding_mode="floor")
            inside = drawn % (height * width)
            corner = torch.stack([inside % width, torch.div(inside, width, rounding_mode="floor")], dim=-1)
            pixels = corner[:, None, None].to(views.images) + 0.5  # [count, 1, 1, 2]
        elif isinstance(picker, RandomCrops):
            index = torch.randint(len(views), (picker.count,), generator=generator, device=device)
            room = torch.tensor([width - picker.size + 1, height - picker.size + 1], device=device)
            corner = (torch.rand(picker.count, 2, generator=generator, device=device) * room).floor()
            window = pixel_centres(picker.size, picker.size, views.images)
            pixels = corner[:, None, None].to(views.images) + window
        else:
            count = min(picker.count, len(views))
            index = torch.randperm(len(views), generator=generator, device=device)[:count]
            pixels = None
        background = None
        if views.masks is not None and self.config.background == "random":
            background = torch.rand(3, generator=generator, device=device)
        return Shot(
            views.cameras[index],
            background=background,
            normals=self.config.regularizers.need_normals(step, total),
            pixels=pixels,
            index=index,
        )

    def loss(
        self, rendering: Rendering, shot: Shot, step: int, total: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Mean distance of the rendered pixels from those of the views."""
        assert shot.index is not None, "a photometric loss needs the shot that this objective made"
        weights = self._pixel_weights(shot.index, rendering)
        target = take_pixels(self.views.images, shot.index, shot.pixels)
        loss, metrics = self.config.regularizers(rendering, step, total)
        if self.views.masks is not None:
            mask = take_pixels(self.views.masks, shot.index, shot.pixels)
            target = mask * target + (1 - mask) * rendering.background.detach()
            if (mask_weight := self.config.mask.at(step, total)) > 0:
                entropy = self.config.mask_measure == "entropy"
                distance = mask_entropy if entropy else self._distance
                value = (weights * distance(rendering.opacity, mask)).mean()
                loss = loss + mask_weight * value
                metrics["mask"] = value.detach()
        value = (weights * self._distance(rendering.rgb, target)).mean()
        metrics["rgb"] = value.detach()
        with torch.no_grad():
            error = (rendering.rgb - target).square().mean()
            metrics["psnr"] = -10 * error.clamp(min=1e-10).log10()
        return loss + self.config.rgb.at(step, total) * value, metrics

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if self.config.measure == "l1":
            return (ours - theirs).abs()
        if self.config.measure == "l2":
            return (ours - theirs).square()
        return F.smooth_l1_loss(ours, theirs, beta=0.1, reduction="none")

    def _pixel_weights(self, index: Tensor, rendering: Rendering) -> Tensor:
        if self.view_weights is None:
            return rendering.rgb.new_ones(())
        weights = rendering.rgb.new_tensor(self.view_weights)
        return (weights / weights.mean()).index_select(0, index)[:, None, None, None]


def take_pixels(
    images: Float[Tensor, "v c h w"], index: Int[Tensor, "n"], pixels: Float[Tensor, "n a b 2"] | None
) -> Float[Tensor, "n y x c"]:
    """The pixels [n, a, b, c] of views `index` that contain the places `pixels`; whole views without places."""
    if pixels is None:
        return images.index_select(0, index).movedim(1, -1)
    column, row = pixels.floor().long().unbind(-1)
    return images.movedim(1, -1)[index[:, None, None], row, column]


# A prior


@dataclass(frozen=True)
class ShadingConfig:
    """When a distilled scene is lit (ImageDream's released configuration, after DreamFusion 3.1)."""

    begin: float = 0.4
    """Fraction of the run before which only albedo is shown (5000 of 12 500 steps)."""
    albedo: float = 0.25
    """Afterwards, how often albedo is shown."""
    textureless: float = 0.5
    """How often a lit rendering is without colour: a picture painted on a flat plate shows nothing then."""
    soft: bool = True
    """Draw the ambient light uniformly from [0, 1] each time; else it is 0.1."""
    lights: LightSampler = LightSampler()
    """Where the light is."""

    def __post_init__(self) -> None:
        if not (0 <= self.albedo <= 1 and 0 <= self.textureless <= 1):
            raise UserError(f"probabilities lie in [0, 1], got albedo={self.albedo}, textureless={self.textureless}")

    def draw(self, step: int, total: int, generator: torch.Generator) -> tuple[Shading, float]:
        """Shading and ambient light of one step."""
        lit, coloured, ambient = torch.rand(3, generator=generator, device=generator.device).tolist()
        if step < self.begin * total or lit < self.albedo:
            return "albedo", 1.0
        return ("textureless" if coloured < self.textureless else "diffuse"), (ambient if self.soft else 0.1)


@dataclass(frozen=True)
class DistillationConfig:
    """How a prior is asked; the defaults are ImageDream's released configuration."""

    noise_range: NoiseRange = NoiseRange()
    """Noise levels over the run."""
    resolution: Ramp = Piecewise((64, 192, 256), (0.4, 0.8))
    """Pixels along the side of a rendering over the run (64, from step 5000 192, from 10 000 256)."""
    scenes: Ramp = Piecewise((2, 1), (0.4,))
    """Sets of views rendered in one step."""
    weight: Ramp = Constant(1.0)
    """Factor on the whole objective."""
    every: int = 1
    """Steps between two turns."""
    random_background: float = 0.5
    """How often one random colour stands behind the object instead of the scene's own background."""
    shading: ShadingConfig = ShadingConfig()
    """When the scene is lit."""
    regularizers: Regularizers = Regularizers(
        orientation=Linear(10.0, 1000.0, 0.4), sparsity=Constant(1.0), orientation_per="hits"
    )
    """Penalties on these renderings."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"an objective's `every` is at least 1 step, got {self.every}")
        for name in ("resolution", "scenes"):
            if extremes(getattr(self, name))[0] < 1:
                raise UserError(f"DistillationConfig.{name} is at least 1 throughout, got {getattr(self, name)}")
        if not 0 <= self.random_background <= 1:
            raise UserError(f"random_background is a probability in [0, 1], got {self.random_background}")


@dataclass(frozen=True)
class Distillation:
    """Views of the scene from drawn cameras please a prior: score distillation.

    The guidance sees images [S, V, 3, H, W], their cameras, and the colour behind the object (the mean of the rendered
    background), on which it shows the prompt too (background alignment, ImageDream 3.4).
    """

    guidance: Guidance
    """Who judges."""
    sampler: OrbitSampler = OrbitSampler()
    """Where from."""
    config: DistillationConfig = DistillationConfig()
    """How."""
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

    def to(self, device: torch.device) -> Distillation:
        """Itself: a guidance stays where its prior is."""
        return self

    def shot(self, step: int, total: int, generator: torch.Generator, device: torch.device) -> Shot:
        """All pixels of `scenes` sets of views, under the step's light and on its background."""
        config = self.config
        size, scenes = round(config.resolution.at(step, total)), round(config.scenes.at(step, total))
        cameras = self.sampler.sample(scenes, size, size, generator).to(device)
        drawn = torch.rand(4, generator=generator, device=generator.device)
        background = drawn[1:].to(device) if drawn[0] < config.random_background else None
        shading, ambient = config.shading.draw(step, total, generator)
        light = config.shading.lights.sample(cameras, generator)
        return Shot(
            cameras,
            background=background,
            shading=shading,
            light=None if shading == "albedo" else light,
            ambient=ambient,
            normals=config.regularizers.need_normals(step, total),
        )

    def loss(
        self, rendering: Rendering, shot: Shot, step: int, total: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """The guidance's loss of the rendered views, and the penalties on them."""
        behind = rendering.background.detach().reshape(-1, 3).mean(dim=0)
        noise_range = self.config.noise_range.at(step, total)
        guided = self.guidance(rendering.images(), shot.cameras, behind, noise_range, generator)
        penalty, penalties = self.config.regularizers(rendering, step, total)
        metrics: Metrics = {"guidance": guided.loss.detach(), "opacity": rendering.opacity.detach().mean()}
        return guided.loss + penalty, {**metrics, **guided.metrics, **penalties}
