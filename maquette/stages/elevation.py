"""How far above the horizon was the picture taken? Found by asking a view prior, and nothing else.

A prior such as Zero-1-to-3 is told only how a view differs from the picture: so much higher, so much further round. So
it can be asked for views around the picture before anybody knows where that one stands. *Further round* turns about the
world's vertical axis, though, and where this axis lies in the picture is just what the elevation says. The prior must
have guessed it, and its views tell: at the true elevation they are pictures of one object, at another they contradict
each other, in outline and colour.

For each candidate elevation the views (and the picture) get the cameras that they have if it is true. Along the ray
of every pixel inside an outline there should then be a point that the other views see inside *their* outlines and in
the same colour. How much is missing to that is the disagreement; the candidate with the least wins, refined by a
parabola through it and its neighbours. All candidates are judged by the same views, so the search costs one sampling.

What it cannot see: a plain ball looks the same from everywhere, and a solid of revolution without a pattern tells its
elevation only by the views from above and below. `reliable` says whether the disagreement has a clear minimum.

`benchmarks/elevation.py` measures it on renders, without a prior's own mistakes: five objects at 0, 30 and 60 degrees,
their views blurred, noisy and each standing 5 degrees (standard deviation) from where it should. The median error is 2
degrees, the mean 8: a plain round bowl is lost above the horizon, and at 30 degrees calls itself reliable all the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras, fit_distance, from_angles
from maquette.errors import UserError
from maquette.images import CameraEstimate, Prompt, Views
from maquette.priors.base import Prior
from maquette.rendering.rays import cast_rays
from maquette.run import Stage
from maquette.run.files import write_json
from maquette.stages.look import SamplingConfig
from maquette.stages.novel import sample_novel_views


@dataclass(frozen=True)
class ElevationConfig:
    """How the picture's elevation is searched."""

    turns: tuple[float, ...] = (-90.0, -60.0, -30.0, 30.0, 60.0, 90.0)
    """Degrees of azimuth from the picture to the views at its own height."""
    lifts: tuple[float, ...] = (-30.0, 30.0)
    """Degrees of elevation from the picture to the views above and below it."""
    lowest: float = -20.0
    """Least candidate, degrees above the horizon."""
    highest: float = 75.0
    """Greatest candidate."""
    spacing: float = 5.0
    """Degrees between candidates."""
    guess: float = 15.0
    """What the prior is told where it asks for the picture's own elevation (Stable Zero123 does)."""
    sampling: SamplingConfig = SamplingConfig(steps=20, guidance_scale=3.0, spacing="exact")
    """How views are sampled."""
    fovy: float = 40.0
    """Field of view that pictures are taken to have, degrees (Zero-1-to-3: 49.13)."""
    size: int = 32
    """Pixels along the side of the compared pictures."""
    samples: int = 48
    """Points along a ray."""
    clear: float = 0.005
    """By how much the least disagreement must stay below the median one to be reliable."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise UserError("the search for the elevation needs views beside the picture; give some turns")
        if not (-90 <= self.lowest < self.highest <= 90 and self.spacing > 0):
            raise UserError(
                f"candidate elevations lie between -90 and 90 degrees, got {self.lowest} to {self.highest} by "
                f"{self.spacing}"
            )

    @property
    def candidates(self) -> Float[Tensor, " e"]:
        """Degrees above the horizon."""
        return torch.arange(self.lowest, self.highest + 0.5 * self.spacing, self.spacing)


@dataclass(frozen=True)
class ElevationEstimate:
    """The picture's elevation, and what speaks for it."""

    camera: CameraEstimate
    """Azimuth 0: where the object's front is, nobody asked. Its error is the least disagreement."""
    candidates: tuple[float, ...]
    """Degrees."""
    disagreements: tuple[float, ...]
    """In [0, 1], one a candidate."""
    views: Views
    """The sampled views, with their cameras at the elevation that was found."""

    def save(self, folder: Path) -> None:
        """Write the views and the numbers."""
        self.views.save(folder / "views")
        numbers = {"candidates": list(self.candidates), "disagreements": list(self.disagreements)}
        write_json(folder / "elevation.json", {"camera": asdict(self.camera), **numbers})

    @classmethod
    def load(cls, folder: Path) -> ElevationEstimate:
        """The inverse of `save`."""
        values = json.loads((folder / "elevation.json").read_text(encoding="utf-8"))
        return cls(
            CameraEstimate(**values["camera"]), tuple(values["candidates"]), tuple(values["disagreements"]),
            Views.load(folder / "views"),
        )  # fmt: skip


def estimate_elevation(
    prior: Prior, free: Prior | None, prompt: Prompt, config: ElevationConfig, run: Stage
) -> ElevationEstimate:
    """The elevation of a prompt's picture by a prior of relative views; with `free` its views are rectified.

    UserError for a prompt without a picture, and for a prior of several views at once: that stands its cameras in the
    world, so its views agree at every elevation (see `locate` for those).
    """
    if prompt.image is None:
        raise UserError("an elevation is estimated from a picture, and this prompt has none")
    told = CameraEstimate(azimuth=0.0, elevation=config.guess, scale=1.0, error=0.0, reliable=True)
    white = torch.ones(3)
    condition = prior.condition(prompt.with_camera(told), white)
    sampled = sample_novel_views(prior, free, condition, view_cameras(config, config.guess)[1:], config.sampling, run)
    assert sampled.masks is not None  # the condition has a background
    size = config.size
    picture = prompt.image.resized(size).composite(white)
    small = shrink(torch.cat([sampled.composite(white), sampled.masks], dim=1), size)
    mask = prompt.image.resized(size).mask
    pictures = torch.cat([torch.cat([picture, mask])[None], small])  # [V, 4, s, s], the prompt first
    candidates = config.candidates
    values = torch.stack([disagreement(pictures, view_cameras(config, float(e)), config.samples) for e in candidates])
    elevation, error = parabola_minimum(candidates, values)
    reliable = error < float(values.median()) - config.clear
    camera = replace(told, elevation=elevation, error=error, reliable=reliable)
    run.log(event="elevation", **asdict(camera))
    found = view_cameras(config, elevation)[1:].with_size(*sampled.images.shape[-2:])
    return ElevationEstimate(
        camera, tuple(candidates.tolist()), tuple(values.tolist()), replace(sampled, cameras=found)
    )


def view_cameras(config: ElevationConfig, elevation: float) -> Cameras:
    """Cameras [1 + V] of the picture, which comes first, and of the views around it, if it stands at `elevation`."""
    turns = torch.tensor([0.0, *config.turns, *(0.0 for _ in config.lifts)])
    lifts = torch.tensor([0.0, *(0.0 for _ in config.turns), *config.lifts])
    distance, fovy = torch.tensor(fit_distance(config.fovy)), torch.tensor(config.fovy)
    return from_angles(turns, elevation + lifts, distance, fovy, height=config.size, width=config.size)


def disagreement(
    pictures: Float[Tensor, "v 4 s s"], cameras: Cameras, samples: int = 48, radius: float = 0.8, colour: float = 0.25
) -> Float[Tensor, ""]:
    """How badly pictures (colours on white, and masks) are views of one object from cameras [V], in [0, 1].

    For each pixel inside a mask the best point of its ray within `radius` of the origin: 1 minus the mean mask of the
    other views there, plus half the colour difference (in units of `colour`, at most 1) of the half of the nearer views
    that agree most, for the others may not see the point. Mean over the pixels of a view, then over views.
    """
    rays = cast_rays(cameras)
    depth = cameras.distance[:, None] + torch.linspace(-radius, radius, samples)  # [V, S]
    near = cameras.position @ cameras.position.T / cameras.distance[:, None] / cameras.distance > 0.1
    values = []
    for view, picture in enumerate(pictures):
        inside = picture[3] > 0.5
        others = near[view].clone()
        others[view] = False
        if not bool(inside.any()) or not bool(others.any()):
            continue
        rays_o, rays_d = rays.rays_o[view][inside], rays.rays_d[view][inside]
        points = rays_o[:, None] + rays_d[:, None] * depth[view][:, None]  # [P, S, 3]
        pixels, _ = cameras[others].project(points.flatten(0, 1).expand(int(others.sum()), -1, -1))
        grid = (2 * pixels / pictures.shape[-1] - 1).unflatten(1, points.shape[:2])  # [K, P, S, 2]
        seen = F.grid_sample(pictures[others], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        own = picture[:3][:, inside][None, :, :, None]  # [1, 3, P, 1]
        outside = 1 - seen[:, 3].mean(dim=0)  # [P, S]
        different = ((seen[:, :3] - own).abs().mean(dim=1) / colour).clamp(max=1)  # [K, P, S]
        agreeing = different.sort(dim=0).values[: (len(different) + 1) // 2].mean(dim=0)
        values.append(0.5 * (outside + agreeing).amin(dim=-1).mean())
    if not values:
        return pictures.new_ones(())
    return torch.stack(values).mean()


def shrink(images: Float[Tensor, "v c h w"], size: int) -> Float[Tensor, "v c {size} {size}"]:
    """Images at another size, antialiased."""
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def parabola_minimum(at: Float[Tensor, " e"], values: Float[Tensor, " e"]) -> tuple[float, float]:
    """Place and value of the least of evenly spaced values, by a parabola through it and its neighbours."""
    best = int(values.argmin())
    if best in (0, len(values) - 1):
        return float(at[best]), float(values[best])
    before, here, after = (float(v) for v in values[best - 1 : best + 2])
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return float(at[best]) + shift * float(at[best + 1] - at[best]), here - 0.25 * (before - after) * shift
