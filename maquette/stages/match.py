"""Is the prompt itself among the sampled views? A prior that draws its prompt from where it was taken tells the camera.

ImageDream's canonical views are turned so that a prompt from the front is the first of them (arXiv:2312.02201, section
3.1), and the pixel controller hands the prompt on to it. Where one of the views is the prompt, moved and scaled, its
camera is known without any search, and before there is a field: the prompt then takes the view's place, with all the
pixels that it has. Where none is, `locate` searches the field.

The camera is that of the result, not of the object: a prior that draws every prompt as its front, as nano does, makes
results that face the picture, and a picture taken from a corner or from above leaves them turned or leaning by as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError
from maquette.images import CameraEstimate, ImagePrompt, Views
from maquette.run import Stage
from maquette.stages.locate import Located, bounding_box, place


@dataclass(frozen=True)
class MatchConfig:
    """When a sampled view is taken for the prompt."""

    tolerance: float = 0.1
    """Largest root mean square difference of colours before the views' background, over all that either covers; 0 never
    matches."""
    size: int = 256
    """Pixels of the prompt in the view's place."""
    rounds: int = 6
    """Times that scale and shift are refined, with half of the step each time."""

    def __post_init__(self) -> None:
        if self.tolerance < 0 or self.size < 8 or self.rounds < 0:
            raise UserError(
                f"a match needs tolerance >= 0, size >= 8 and rounds >= 0, got {self.tolerance}, {self.size}, "
                f"{self.rounds}"
            )


def match_prompt(
    views: Views, prompt: ImagePrompt, background: Float[Tensor, "3"], config: MatchConfig, run: Stage
) -> Located:
    """The prompt in the frame of the view that it resembles; `reliable` where one resembles it closely enough.

    Of several that do, the one nearest to the front is taken: people photograph fronts.

    `background` is the colour that the views were drawn before, which is where they and the prompt are compared. The
    estimate's error and `colour_error` are the difference that `MatchConfig.tolerance` bounds. Views need masks
    (ValueError).
    """
    if views.masks is None:
        raise ValueError("match_prompt compares silhouettes and needs views with masks")
    rgba = prompt.rgba().cpu()
    seen = torch.cat([views.composite(background), views.masks], dim=1).cpu()
    found = [_register(rgba, view, background.cpu(), config.rounds) for view in seen]
    turned = views.cameras.azimuth.abs().tolist()
    order = sorted(range(len(found)), key=lambda number: float(found[number][0]))
    close = [number for number in order if float(found[number][0]) < config.tolerance]
    index = min(close, key=lambda number: round(turned[number])) if close else order[0]
    error, centre, side = found[index]
    camera = views.cameras[[index]].to("cpu")
    placed = place(rgba, centre, side, config.size)
    scale = (bounding_box(rgba[3])[2] / rgba.shape[-1]) / (bounding_box(placed[3])[2] / config.size)
    difference = float(error)
    close_enough = difference < config.tolerance
    estimate = CameraEstimate(float(camera.azimuth), float(camera.elevation), scale, difference, close_enough)
    run.log(**vars(estimate), view=index)
    camera = camera.with_size(config.size, config.size)
    return Located(estimate, Views(placed[None, :3], placed[None, 3:], camera), difference)


def other_views(views: Views, located: Located | None) -> Views:
    """All views but those from the prompt's own camera, which say the same as the prompt, with fewer pixels."""
    if located is None:
        return views
    prompts = located.view.cameras.position.to(views.cameras.position)
    apart = torch.linalg.vector_norm(views.cameras.position - prompts, dim=-1)
    return views[torch.nonzero(apart > 1e-3)[:, 0]]


def _register(
    rgba: Float[Tensor, "4 h w"], view: Float[Tensor, "4 s s"], background: Float[Tensor, "3"], rounds: int
) -> tuple[Float[Tensor, ""], Float[Tensor, "2"], Float[Tensor, ""]]:
    """(difference, centre [2] and side of the square of the prompt, in pixels, that is the view's frame)."""
    size = view.shape[-1]
    x, y, side = bounding_box(rgba[3])
    at_x, at_y, at_side = bounding_box(F.interpolate(view[None, 3:], scale_factor=8, mode="bilinear")[0, 0])
    ratio = side / (at_side / 8)  # prompt pixels for one of the view's
    best = torch.tensor([x + (size / 2 - at_x / 8) * ratio, y + (size / 2 - at_y / 8) * ratio, ratio])
    offsets = torch.cartesian_prod(*[torch.tensor([0.0, -1.0, 1.0])] * 3)  # nothing first: ties stay where they are
    error = torch.tensor(torch.inf)
    for number in range(rounds + 1):
        # A pixel of shift and a twelfth of scale at first.
        step = 0.5**number * torch.stack([best[2], best[2], best[2] / 12])
        candidates = best + offsets * step
        placed = torch.stack([place(rgba, c[:2], c[2] * size, 4 * size, straight=False) for c in candidates])
        errors = _difference(F.avg_pool2d(placed, 4), view, background)
        index = int(errors.argmin())
        error, best = errors[index], candidates[index]
    return error, best[:2], best[2] * size


def _difference(
    ours: Float[Tensor, "n 4 s s"], theirs: Float[Tensor, "4 s s"], background: Float[Tensor, "3"]
) -> Float[Tensor, "n"]:
    """Root mean square of colours before `background`, over what either covers; ours is premultiplied, theirs before it
    already.
    """
    shown = ours[:, :3] + (1 - ours[:, 3:]) * background[:, None, None]
    covered = torch.maximum(ours[:, 3], theirs[3]).flatten(1)
    squares = (shown - theirs[:3]).square().mean(1).flatten(1)
    return (squares.sum(1) / covered.sum(1).clamp_min(1e-6)).sqrt()
