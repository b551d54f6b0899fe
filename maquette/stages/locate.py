"""Where was the prompt taken from? Its camera, found by comparing it with a field that already has the object's shape.

Unknown prompt cameras are ImageDream's own stated limitation (arXiv:2312.02201, section 5). Candidates on a grid of
azimuth and elevation are rendered, each is cropped to its silhouette as the prompt was, and the silhouettes (first)
and colours (second) are compared; the best few are refined. Crops make the comparison blind to scale and shift, which
follow from the two bounding boxes afterwards.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras, fit_distance, from_angles
from maquette.errors import UserError
from maquette.images import CameraEstimate, ImagePrompt, Views
from maquette.rendering.base import Scene
from maquette.rendering.views import render_views
from maquette.run import Stage
from maquette.run.files import write_json

FRAME = 0.8  # share of a crop's side that the object fills, as `read_prompt` leaves it


@dataclass(frozen=True)
class LocateConfig:
    """How the prompt's camera is searched."""

    azimuths: int = 36
    """Candidates around the object."""
    elevations: tuple[float, ...] = (-10.0, 5.0, 20.0, 35.0, 50.0)
    """Candidate elevations in degrees; a known elevation replaces them."""
    front_preference: float = 0.06
    """Taken from the score at azimuth 180, half of it at 90, less towards the front: people photograph fronts, and
    where a prior draws its prompt on several sides nothing else tells them apart."""
    colour_weight: float = 0.6
    """Weight of the mean colour difference against the overlap of the silhouettes."""
    size: int = 48
    """Pixels of the compared renders."""
    refine: int = 3
    """Times that the best candidates are refined, with half of the spacing each time."""
    reliable_overlap: float = 0.7
    """Intersection over union of the silhouettes from which on the estimate is used."""
    fovy: float = 40.0
    """Field of view that the prompt is taken to have, degrees."""

    def __post_init__(self) -> None:
        if self.azimuths < 4 or not self.elevations:
            raise UserError(
                f"the search needs 4 azimuths and an elevation at least, got {self.azimuths}, {self.elevations}"
            )


@dataclass(frozen=True)
class Located:
    """The prompt with its camera."""

    estimate: CameraEstimate
    """Azimuth, elevation, scale; its error is 1 - overlap of the silhouettes."""
    view: Views
    """The prompt moved and scaled into the frame of that camera, as one view."""
    colour_error: float
    """Mean absolute colour difference inside both silhouettes, in [0, 1]."""

    def save(self, folder: Path) -> None:
        """Write the view and the numbers."""
        self.view.save(folder / "view")
        write_json(folder / "estimate.json", {**asdict(self.estimate), "colour_error": self.colour_error})

    @classmethod
    def load(cls, folder: Path) -> Located:
        """The inverse of `save`."""
        values = json.loads((folder / "estimate.json").read_text(encoding="utf-8"))
        colour_error = values.pop("colour_error")
        return cls(CameraEstimate(**values), Views.load(folder / "view"), colour_error)


def locate_prompt(
    scene: Scene, prompt: ImagePrompt, elevation: float | None, config: LocateConfig, run: Stage
) -> Located:
    """The camera from which `scene` looks most like the prompt, at `elevation` degrees if that is known.

    Both RGBA pictures of a candidate and the prompt are cropped alike; the score is IoU - colour_weight * difference.
    The estimate is `reliable` when the overlap reaches `reliable_overlap`.
    """
    target = crop(prompt.rgba()[None].to(run.device))[0]
    known = elevation is not None
    elevations = torch.tensor([elevation] if elevation is not None else config.elevations)
    step = 360.0 / config.azimuths
    zoom = closest_fovy(scene, config, run)
    azimuth, level = torch.meshgrid(torch.arange(config.azimuths) * step, elevations, indexing="ij")
    candidates = torch.stack([azimuth.flatten(), level.flatten()], dim=-1)
    scores = _score(scene, target, candidates, zoom, config, run)
    spacing = torch.tensor([step, 0.0 if known else 15.0])
    for _ in range(config.refine):
        best = candidates[scores.topk(min(3, len(scores))).indices]
        spacing = spacing / 2
        offsets = torch.cartesian_prod(
            torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0] if known else [-1.0, 0.0, 1.0])
        )
        more = (best[:, None] + offsets.view(-1, 2) * spacing).flatten(0, 1)
        more[:, 1] = more[:, 1].clamp(-60.0, 85.0)
        candidates = torch.cat([candidates, more])
        scores = torch.cat([scores, _score(scene, target, more, zoom, config, run)])
    index = int(scores.argmax())
    angles = candidates[index : index + 1]
    overlap, difference = compare(crop(_render(scene, angles, config.size, zoom, config, run)), target)
    view, scale = into_frame(prompt, _render(scene, angles, 256, config.fovy, config, run)[0].cpu())
    camera = _cameras(angles, 256, config.fovy, fit_distance(config.fovy))
    azimuth_found = float((angles[0, 0] + 180) % 360 - 180)
    error = 1 - float(overlap[0])
    reliable = float(overlap[0]) >= config.reliable_overlap
    estimate = CameraEstimate(azimuth_found, float(angles[0, 1]), scale, error, reliable)
    run.log(**asdict(estimate), colour_error=float(difference[0]))
    return Located(estimate, Views(view[None, :3], view[None, 3:], camera), float(difference[0]))


def crop(rgba: Float[Tensor, "n 4 h w"], size: int = 32) -> Float[Tensor, "n 4 {size} {size}"]:
    """Straight RGBA pictures cut to their silhouettes' squared bounding boxes and resized; empty pictures stay empty.

    The result has premultiplied colours.
    """
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    boxes = torch.stack([torch.tensor(bounding_box(picture)) for picture in rgba[:, 3]])  # [n, 3]: centre x, y, side
    grid = _grid(boxes[:, :2], boxes[:, 2] / FRAME, size, rgba.shape[-2:]).to(rgba)
    # Averaging first keeps a strong reduction from skipping pixels.
    factor = max(1, int(float(boxes[:, 2].max()) / FRAME // size))
    small = F.avg_pool2d(premultiplied, factor) if factor > 1 else premultiplied
    return F.grid_sample(small, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def bounding_box(mask: Float[Tensor, "h w"]) -> tuple[float, float, float]:
    """(centre x, centre y, longer side) in pixels of where a mask is above one half; the whole picture if nowhere."""
    rows, columns = torch.nonzero((mask > 0.5).any(dim=1))[:, 0], torch.nonzero((mask > 0.5).any(dim=0))[:, 0]
    if len(rows) == 0:
        return mask.shape[1] / 2, mask.shape[0] / 2, float(max(mask.shape))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return (left + right) / 2, (top + bottom) / 2, float(max(bottom - top, right - left))


def compare(
    ours: Float[Tensor, "n 4 s s"], theirs: Float[Tensor, "4 s s"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """(soft IoU of the masks, mean absolute colour difference where both are) of premultiplied crops."""
    # Half-covered pixels of a blurred field are cut in two, else every silhouette would look worse than it is.
    mask, other = ((4 * alpha - 1.5).clamp(0, 1) for alpha in (ours[:, 3], theirs[3]))
    both = torch.minimum(mask, other)
    overlap = both.flatten(1).sum(1) / torch.maximum(mask, other).flatten(1).sum(1).clamp_min(1e-6)
    colour = ours[:, :3] / ours[:, 3:].clamp_min(1e-3) - theirs[:3] / theirs[3:].clamp_min(1e-3)
    difference = (colour.abs().mean(1) * both).flatten(1).sum(1) / both.flatten(1).sum(1).clamp_min(1e-6)
    return overlap, difference


def into_frame(prompt: ImagePrompt, seen: Float[Tensor, "4 h w"]) -> tuple[Float[Tensor, "4 h w"], float]:
    """The prompt (straight RGBA) moved and scaled so that its bounding box lies on that of `seen`, and the prompt's
    scale.

    The scale is how much larger the prompt's object is in its picture than in the camera's.
    """
    rgba = prompt.rgba().cpu()
    x, y, side = bounding_box(rgba[3])
    target_x, target_y, target_side = bounding_box(seen[3])
    height, width = seen.shape[-2:]
    scale = side / target_side  # prompt pixels for one pixel of the camera
    centre = torch.tensor([x + (width / 2 - target_x) * scale, y + (height / 2 - target_y) * scale])
    straight = place(rgba, centre, torch.tensor(width * scale), width)
    return straight, float((side / rgba.shape[-1]) / (target_side / width))


def place(
    rgba: Float[Tensor, "4 h w"], centre: Float[Tensor, "2"], side: Float[Tensor, ""], size: int, straight: bool = True
) -> Float[Tensor, "4 {size} {size}"]:
    """The square of `side` pixels around `centre` (x, y) of a straight RGBA picture; empty beyond the picture.

    With straight or premultiplied colours.
    """
    grid = _grid(centre[None], side[None], size, rgba.shape[-2:]).to(rgba)
    premultiplied = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])
    moved = F.grid_sample(premultiplied[None], grid, padding_mode="zeros", align_corners=False)[0]
    if not straight:
        return moved
    return torch.cat([(moved[:3] / moved[3:].clamp_min(1e-3)).clamp(0, 1), moved[3:].clamp(0, 1)])


def _grid(centre: Tensor, side: Tensor, size: int, shape: torch.Size) -> Tensor:
    """Sampling grid [n, size, size, 2] of squares around `centre` (pixels) of width `side`, for `grid_sample`."""
    line = (torch.arange(size) + 0.5) / size - 0.5
    offset = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)  # [size, size, 2] as x, y
    pixels = centre[:, None, None] + offset * side[:, None, None, None]
    return 2 * pixels / torch.tensor([shape[1], shape[0]]) - 1


def _cameras(angles: Float[Tensor, "n 2"], size: int, fovy: float, distance: float) -> Cameras:
    ones = torch.ones(len(angles))
    return from_angles(angles[:, 0], angles[:, 1], distance * ones, fovy * ones, height=size, width=size)


def closest_fovy(scene: Scene, config: LocateConfig, run: Stage) -> float:
    """A field of view, degrees, in which the object nearly fills the picture from all sides at the same distance."""
    around = torch.cartesian_prod(torch.arange(0.0, 360.0, 45.0), torch.tensor([0.0, 40.0]))
    seen = _render(scene, around, config.size, config.fovy, config, run)
    middle = config.size / 2
    reach = max(
        abs(c - middle) + side / 2
        for picture in seen[:, 3]
        for *centre, side in [bounding_box(picture)]
        for c in centre
    )
    share = min(1.0, 1.1 * reach / middle)
    return 2 * math.degrees(math.atan(math.tan(math.radians(config.fovy) / 2) * share))


def _render(
    scene: Scene, angles: Float[Tensor, "n 2"], size: int, fovy: float, config: LocateConfig, run: Stage
) -> Tensor:
    views = render_views(scene, _cameras(angles, size, fovy, fit_distance(config.fovy)).to(run.device))
    assert views.masks is not None
    return torch.cat([views.images, views.masks], dim=1)


def _score(
    scene: Scene, target: Tensor, angles: Float[Tensor, "n 2"], fovy: float, config: LocateConfig, run: Stage
) -> Tensor:
    overlap, difference = compare(crop(_render(scene, angles, config.size, fovy, config, run)), target)
    turned = 0.5 - 0.5 * torch.cos(torch.deg2rad(angles[:, 0]))
    return (overlap - config.colour_weight * difference).cpu() - config.front_preference * turned
