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
elevation only by the views from above and below. So the disagreement must have a clear minimum. And a prior may have
views of its own, whatever the height of the picture that it is shown: a young one draws every object as if it were seen
at eye level, and these views agree best there, clearly. So the prior's own view from 30 degrees higher (or lower) is
then taken for the picture, and everything is asked again: where the answer does not follow by these degrees, the
picture had no say in the first one either. `reliable` says that both hold.

`benchmarks/elevation.py` measures the search on renders, without a prior's own mistakes: five objects at 0, 30 and 60
degrees, their views blurred, noisy and each standing 5 degrees (standard deviation) from where it should. The median
error is 2 degrees, the mean 8: a plain round bowl is lost above the horizon.
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
from maquette.images import CameraEstimate, ImagePrompt, Prompt, Views
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
    follow: float | None = 15.0
    """Degrees by which the elevation of a lifted view may miss what it was lifted by; none does not ask for it."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise UserError("the search for the elevation needs views beside the picture; give some turns")
        if self.follow is not None and not self.lifts:
            raise UserError("a lifted view is searched for its elevation; give some lifts, or set follow to none")
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
    lift: float | None
    """By how many degrees a view was lifted to see whether its elevation follows; None where that was not asked."""
    rise: float | None
    """By how many degrees higher it was found."""
    views: Views
    """The sampled views, with their cameras at the elevation that was found."""

    def save(self, folder: Path) -> None:
        """Write the views and the numbers."""
        self.views.save(folder / "views")
        numbers = {"candidates": list(self.candidates), "disagreements": list(self.disagreements)}
        lifted = {"lift": self.lift, "rise": self.rise}
        write_json(folder / "elevation.json", {"camera": asdict(self.camera), **numbers, **lifted})

    @classmethod
    def load(cls, folder: Path) -> ElevationEstimate:
        """The inverse of `save`."""
        values = json.loads((folder / "elevation.json").read_text(encoding="utf-8"))
        return cls(
            CameraEstimate(**values["camera"]), tuple(values["candidates"]), tuple(values["disagreements"]),
            values["lift"], values["rise"], Views.load(folder / "views"),
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
    views, values = ask_around(prior, free, prompt, prompt.image, config, run)
    elevation, error = parabola_minimum(config.candidates, values)
    reliable, lift, rise = error < float(values.median()) - config.clear, None, None
    if reliable and config.follow is not None:
        # Towards the middle of the candidates, so that the lifted view is among them.
        middle = 0.5 * (config.lowest + config.highest)
        index, lift = min(enumerate(config.lifts), key=lambda pair: abs(elevation + pair[1] - middle))
        lifted = views[[len(config.turns) + index]]
        assert lifted.masks is not None  # the condition has a background
        _, again = ask_around(prior, free, prompt, ImagePrompt(lifted.images[0], lifted.masks[0]), config, run)
        rise = parabola_minimum(config.candidates, again)[0] - elevation
        reliable = abs(rise - lift) <= config.follow
    camera = CameraEstimate(azimuth=0.0, elevation=elevation, scale=1.0, error=error, reliable=reliable)
    run.log(event="elevation", **asdict(camera), lift=lift, rise=rise)
    found = view_cameras(config, elevation)[1:].with_size(*views.images.shape[-2:])
    return ElevationEstimate(
        camera, tuple(config.candidates.tolist()), tuple(values.tolist()), lift, rise, replace(views, cameras=found)
    )


def ask_around(
    prior: Prior, free: Prior | None, prompt: Prompt, picture: ImagePrompt, config: ElevationConfig, run: Stage
) -> tuple[Views, Float[Tensor, " e"]]:
    """The views that a prior draws around a picture, and how much they disagree at each of the candidates."""
    told = CameraEstimate(azimuth=0.0, elevation=config.guess, scale=1.0, error=0.0, reliable=True)
    white, size = torch.ones(3), config.size
    condition = prior.condition(replace(prompt, image=picture, camera=told), white)
    sampled = sample_novel_views(prior, free, condition, view_cameras(config, config.guess)[1:], config.sampling, run)
    assert sampled.masks is not None  # the condition has a background
    small = picture.resized(size)
    own = torch.cat([small.composite(white), small.mask])
    around = shrink(torch.cat([sampled.composite(white), sampled.masks], dim=1), size)
    pictures = torch.cat([own[None], around])  # [V, 4, s, s], the picture first
    cameras = (view_cameras(config, float(elevation)) for elevation in config.candidates)
    return sampled, torch.stack([disagreement(pictures, each, config.samples) for each in cameras])


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
