"""`maquette views`: one picture to four consistent views of the object, ImageDream's first stage alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from maquette.commands.imagedream import PARALLEL
from maquette.commands.method import Method, run_method
from maquette.errors import UserError
from maquette.images import Prompt, Views, save_image, sheet
from maquette.methods import imagedream
from maquette.priors.multiview import ImageWeight
from maquette.run import Run
from maquette.run.files import atomic_path
from maquette.run.memory import GIB
from maquette.stages.look import SamplingConfig, sample_candidates


@dataclass(frozen=True)
class Config:
    """The part of ImageDream's config that decides the sampled views."""

    prior: str = "imagedream"
    """Which prior: "nano" is inside the package, others come with --weights."""
    weights: Path | None = None
    """File or folder of the prior's weights."""
    control: str = "local+pixel"
    """Image controllers in use, joined by '+': global, local, pixel; or 'none'."""
    image_weight: ImageWeight = ImageWeight()
    """Strength of each controller."""
    view_elevation: float = 5.0
    """Elevation of the views, degrees."""
    fovy: float = 40.0
    """Vertical field of view that the views are taken to have, degrees."""
    background: Literal["key", "white", "grey"] = "key"
    """Behind the views: the colour that differs most from the object, or a fixed one."""
    sampling: SamplingConfig = SamplingConfig()
    """Diffusion sampling."""
    candidates: int = 1
    """Draw so many, one row each in candidates.png; --sampling.pick K then takes the one of row K, counted from 0."""

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UserError(f"candidates must be at least 1, got {self.candidates}")


NAMES = ("prior", "weights", "control", "image_weight", "view_elevation", "fovy", "background", "sampling")
"""Settings that are ImageDream's own."""


def configure_views(preset: str, quality: str) -> Config:
    """The same numbers that `maquette imagedream` uses for its views."""
    whole = imagedream.configure(preset, quality)
    return Config(**{name: getattr(whole, name) for name in NAMES})


def sample(prompt: Prompt, config: Config, run: Run) -> Views:
    """The canonical views of the prompt's object; with several candidates, the first of them."""
    method = imagedream.Config(**{name: getattr(config, name) for name in NAMES})
    prior = imagedream.prior_of(method, run)
    run.cite(imagedream.CITATION)
    condition = prior.condition(prompt, imagedream.background_colour(prompt, method))
    cameras = imagedream.ring_cameras(method, prior.codec.image_size, 0.0)
    candidates: list[Views] = run.stage(
        "views", sample_candidates, prior, condition, cameras, config.sampling, config.candidates
    )
    if len(candidates) > 1:
        rows = torch.cat([views.composite(torch.ones(3)) for views in candidates])
        with atomic_path(run.folder / "candidates.png") as temporary:
            save_image(temporary, sheet(rows, columns=len(candidates[0])))
    return candidates[0]


def estimate(config: Config) -> tuple[float, int]:
    """Seconds on two CPU cores and bytes, as for `maquette imagedream`."""
    if config.prior != "nano":
        return 0.0, 0
    return (0.10 * config.sampling.steps * config.candidates + 8.0) / PARALLEL, GIB // 2


METHOD = Method(
    "views", "One picture to four consistent views of its object, in seconds.", configure_views, sample, estimate
)


def run(arguments: list[str]) -> int:
    """Sample the views."""
    return run_method(METHOD, arguments)
