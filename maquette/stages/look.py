"""Looking at an object through a prior: canonical views of it, sampled by DDIM from noise.

A scene's noise comes from a generator of its own, so candidate number k of a seed is the same picture whether it is
drawn alone or among others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras
from maquette.diffusion.sampling import (
    Predict,
    SamplingState,
    SamplingSteps,
    averaged_updates,
    ddim_updates,
    noise_to,
    unit_noise,
)
from maquette.diffusion.schedulers import count_steps, make_scheduler, scheduler_updates
from maquette.errors import UserError
from maquette.images import ImagePrompt, Prompt, Views
from maquette.matting import Backdrop, plain_mask, spread_colour, to_lab
from maquette.priors.base import Condition, Prior, UnconditionalKind
from maquette.priors.guided import guided_x0
from maquette.run import Stage

KEY_COLOURS = (
    (1.0, 1.0, 1.0),
    (0.5, 0.5, 0.5),
    (0.0, 0.0, 0.0),
    (0.25, 0.5, 1.0),
    (0.25, 0.75, 0.25),
    (1.0, 0.5, 0.75),
)
"""Backgrounds to choose from, in order of preference; priors have seen white and greys most."""


VISIBLE = 0.02
"""Share of a view that an object covers at least."""


@dataclass(frozen=True)
class SamplingConfig:
    """How views are drawn. The defaults are those of the released ImageDream demo."""

    sampler: Literal["ddim", "averaged", "dpm++", "unipc", "euler", "euler-ancestral"] = "ddim"
    """How the noise is taken away; the last four are diffusers', from the extra `published`, and need fewer steps.
    averaged repeats "noise the estimate, take the mean of what the prior makes of it" (`averaged_updates`)."""
    steps: int = 50
    """Steps of the sampler."""
    guidance_scale: float = 5.0
    """Classifier-free guidance for text and image together; 1 means none."""
    eta: float = 0.0
    """Fresh noise in every step: 0 none (DDIM), 1 as in DDPM."""
    draws: int = 4
    """Noises over which averaged takes its mean, each as costly as a step of the others."""
    rescale: float = 0.0
    """Share of x0 whose contrast is pulled back to the conditional one's, against over-exposure at high guidance."""
    spacing: Literal["released", "exact"] = "released"
    """Step list of the released samplers, or exactly `steps` steps that end at the clean image."""
    unconditional: UnconditionalKind = "zeros"
    """Image half of the unconditional branch: zeros (released code) or a flat image (as in training)."""
    clip: bool = False
    """Keep every estimate of the clean image within its range; only codecs without a posterior can."""
    frame: tuple[float, float, float] | None = None
    """Colour held along the borders of every estimate of the clean image, so that a prior without a picture paints it
    behind the object; only codecs without a posterior can."""
    pick: int = 0
    """Which candidate of the seed to take; `sample_candidates` shows several."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"sampling takes at least one step, got steps={self.steps}")
        if self.guidance_scale < 0:
            raise UserError(f"guidance_scale is at least 0 (1 means none), got {self.guidance_scale}")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"rescale is a share between 0 and 1, got {self.rescale}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta lies between 0 and 1, got {self.eta}")
        if self.eta and self.sampler != "ddim":
            raise UserError(f"eta is a setting of ddim alone; leave it at 0 for {self.sampler}")
        if self.draws < 1:
            raise UserError(f"draws are at least 1, got {self.draws}")
        if self.frame is not None and not all(0 <= value <= 1 for value in self.frame):
            raise UserError(f"frame is a colour in [0, 1], got {self.frame}")
        if self.pick < 0:
            raise UserError(f"candidates are counted from 0, got pick={self.pick}")

    @property
    def evaluations(self) -> int:
        """How often the prior is asked for a scene."""
        return self.steps * (self.draws if self.sampler == "averaged" else 1)


def sample_views(prior: Prior, condition: Condition, cameras: Cameras, config: SamplingConfig, run: Stage) -> Views:
    """The object of a condition from the given cameras [V], as images of the prior's own size.

    Masks are keyed from the condition's flat background (none without one). ValueError where the prior was made for
    another number of cameras.
    """
    generator = run.generator(step=config.pick, purpose="views", device="cpu")
    (images,) = draw_scenes(prior, condition, cameras, config, [generator], run)
    return _posed(images, cameras, condition)


def revise_views(
    prior: Prior, condition: Condition, views: Views, strength: float, config: SamplingConfig, run: Stage
) -> Views:
    """Views of an object, noised in part and cleaned again by the prior (img2img); their cameras and background stay.

    `strength` is the share of the steps that run: 0 gives the views back as the codec keeps them, 1 replaces them.
    Views without masks must show the condition's background already.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength is the share of the steps to run and lies in [0, 1], got {strength}")
    background = torch.ones(3) if condition.background is None else condition.background.cpu()
    shown = views.images if views.masks is None else views.composite(background)
    latents = prior.codec.encode(shown.to(condition.text.device)[None])
    generator = run.generator(step=config.pick, purpose="views", device="cpu")
    (images,) = draw_scenes(
        prior, condition, views.cameras, config, [generator], run, image=latents, strength=strength
    )  # fmt: skip
    return _posed(images, views.cameras, condition)


def sample_candidates(
    prior: Prior, condition: Condition, cameras: Cameras, config: SamplingConfig, count: int, run: Stage
) -> list[Views]:
    """Candidates `config.pick`, `pick + 1`, ... of the seed, `count` of them, to choose from; drawn one by one.

    A stage named as that of `sample_views` gives the same candidates as `sample_views` with that `pick`.
    """
    candidates = []
    for index in range(config.pick, config.pick + count):
        generator = run.generator(step=index, purpose="views", device="cpu")
        (images,) = draw_scenes(prior, condition, cameras, config, [generator], run)
        candidates.append(_posed(images, cameras, condition))
    return candidates


@torch.no_grad()
def draw_scenes(
    prior: Prior,
    condition: Condition,
    cameras: Cameras | None,
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    run: Stage,
    *,
    image: Float[Tensor, "s v c h w"] | None = None,
    strength: float = 1.0,
) -> Float[Tensor, "s v 3 H W"]:
    """Images in [0, 1] of one scene a generator, on the CPU; without cameras, single 2D views.

    `image` and `strength` as in `sample_latents`. Raises KeyboardInterrupt when the person asked to stop.
    """
    device = condition.text.device
    predict = guided_x0(
        prior,
        cond=condition,
        uncond=prior.unconditional(condition, config.unconditional),
        cameras=None if cameras is None else cameras.to(device),
        guidance_scale=config.guidance_scale,
        rescale=config.rescale,
    )
    views = 1 if cameras is None else len(cameras)
    like = torch.empty(len(generators), views, *prior.codec.latent_shape, device=device)
    return sample_latents(prior, predict, like, config, generators, run, image=image, strength=strength)


@torch.no_grad()
def sample_latents(
    prior: Prior,
    predict: Predict,
    like: Float[Tensor, "s v c h w"],
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    run: Stage,
    *,
    image: Float[Tensor, "s v c h w"] | None = None,
    strength: float = 1.0,
) -> Float[Tensor, "s v 3 H W"]:
    """Images, on the CPU, of what the sampler of a config makes of noise shaped as `like`; `predict` gives x0.

    With `image`, clean latents, only the last `strength` share of the steps runs, from there (img2img). Raises
    KeyboardInterrupt when the person asked to stop.
    """
    latents, count, updates = start_sampling(prior, predict, like, config, generators, image=image, strength=strength)
    with run.progress(count) as progress:
        for state in updates:
            latents = state.x
            progress.update(state.index + 1)
            run.preview(state.index, partial(_decoded, prior, state.x0_pred))
            if not run.keep_going():
                raise KeyboardInterrupt
    return _decoded(prior, latents)


def start_sampling(
    prior: Prior,
    predict: Predict,
    like: Float[Tensor, "s v c h w"],
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    *,
    image: Float[Tensor, "s v c h w"] | None = None,
    strength: float = 1.0,
) -> tuple[Float[Tensor, "s v c h w"], int, Iterator[SamplingState]]:
    """The sampler of a config, wound up: latents to begin with, the number of updates, and the updates themselves.

    With no update, as for an image at strength 0, the latents are the result.
    """
    noise, correct, schedule = unit_noise(generators, like), correction(prior, config), prior.noise_schedule
    latents = noise(0) if image is None else image
    if config.sampler in ("ddim", "averaged"):
        make = SamplingSteps.released if config.spacing == "released" else SamplingSteps.exact
        steps = make(schedule, config.steps)
        if image is not None:
            steps = steps.partial(strength)
        if config.sampler == "averaged":
            latents = torch.zeros_like(latents) if image is None else image
            return latents, len(steps), averaged_updates(
                predict, latents, steps, draws=config.draws, noise=noise, predicts="x0", correct_x0=correct
            )  # fmt: skip
        if image is not None:
            latents = noise_to(image, noise(0), steps)
        return latents, len(steps), ddim_updates(
            predict, latents, steps, eta=config.eta, noise=noise, predicts="x0", correct_x0=correct
        )  # fmt: skip
    spacing: Literal["leading", "trailing"] = "leading" if config.spacing == "released" else "trailing"
    scheduler = make_scheduler(config.sampler, schedule, config.steps, spacing)
    count = count_steps(scheduler, strength if image is not None else 1.0)
    start = noise(0) if image is not None else latents
    updates = scheduler_updates(
        predict, start, schedule, scheduler, generators=generators, predicts="x0", correct_x0=correct, image=image,
        strength=strength,
    )  # fmt: skip
    return latents, count, updates


def correction(prior: Prior, config: SamplingConfig) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What `clip` and `frame` do to every estimate of the clean latents; None where neither is asked for.

    UserError for a codec with a posterior, through which an image does not come back unchanged.
    """
    if not config.clip and config.frame is None:
        return None
    codec = prior.codec
    if codec.stochastic:
        wish = "clip" if config.clip else "frame"
        raise UserError(f"{wish} needs a codec whose latents are pixels; this prior's are not, so leave {wish} off")

    def correct(x0: Float[Tensor, "s v c h w"], _t: Tensor) -> Float[Tensor, "s v c h w"]:
        images = codec.decode(x0)
        return codec.encode(images if config.frame is None else framed(images, config.frame))

    return correct


def framed(
    images: Float[Tensor, "*b 3 h w"], colour: tuple[float, float, float], share: float = 1 / 16
) -> Float[Tensor, "*b 3 h w"]:
    """Images with a frame of one colour, at least one pixel and `share` of the height wide."""
    width = max(1, round(share * images.shape[-2]))
    inside = torch.zeros(images.shape[-2:], dtype=torch.bool, device=images.device)
    inside[width:-width, width:-width] = True
    return torch.where(inside, images, images.new_tensor(colour)[:, None, None])


def _decoded(prior: Prior, latents: Float[Tensor, "s v c h w"]) -> Float[Tensor, "s v 3 H W"]:
    return prior.codec.decode(latents).float().cpu()


def _posed(images: Float[Tensor, "v 3 h w"], cameras: Cameras, condition: Condition) -> Views:
    """Images with cameras of their size, keyed where their background is known."""
    cameras = cameras.to("cpu").with_size(*images.shape[-2:])
    if condition.background is None:
        return Views(images, None, cameras)
    colours, masks = key_views(images, condition.background)
    return Views(colours, masks, cameras)


def sample_from_words(
    prior: Prior,
    prompt: Prompt,
    cameras: Cameras,
    config: SamplingConfig,
    frames: Sequence[tuple[float, float, float]],
    run: Stage,
) -> Views:
    """`sample_views` of a prompt without a picture, keyed where one flat background is behind all views.

    The colours of `frames` are tried in order (see `SamplingConfig.frame`) until something shows before one: white
    objects do not on white. Without any, nothing tells the prior what to paint behind; multi-view priors have seen
    flat colours, the same in all views. The log says so where no background or no object was found.
    """
    condition = prior.condition(prompt, torch.ones(3))
    for frame in frames:
        framed_views = sample_views(prior, condition, cameras, replace(config, frame=frame), run)
        keyed = Views(*key_views(framed_views.images, torch.tensor(frame)), framed_views.cameras)
        assert keyed.masks is not None
        if float(keyed.masks.mean(dim=(1, 2, 3)).min()) >= VISIBLE:
            return keyed
        run.log(event="no_object", frame=list(frame))
    views = sample_views(prior, condition, cameras, config, run)
    colour = border_colour(views.images)
    if colour is None:
        run.log(event="no_flat_background")
        return views
    return Views(*key_views(views.images, colour), views.cameras)


def border_colour(images: Float[Tensor, "v 3 h w"], tolerance: float = 12.0) -> Float[Tensor, "3"] | None:
    """The colour (a median) along the borders of images, None where their pixels typically differ from it.

    `tolerance` is a colour difference (CIELAB): what small priors paint unevenly stays below it.
    """
    edges = (images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1])
    border = torch.cat(edges, dim=-1).movedim(1, -1).reshape(-1, 3).float()  # [v * pixels, 3]
    colour = border.median(dim=0).values
    lab = to_lab(torch.cat([colour[None], border])[None].numpy())[0]
    return colour if float(np.median(np.linalg.norm(lab[1:] - lab[0], axis=-1))) <= tolerance else None


def key_views(
    images: Float[Tensor, "v 3 h w"], background: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "v 3 h w"], Float[Tensor, "v 1 h w"]]:
    """Straight colours and masks of images whose flat background colour is known.

    Background is what shows that colour and is connected to the border, or is enclosed and shows it exactly; pixels of
    the outline are read as mixtures. What the object has in the background's own colour at its outline is lost: choose
    the background by `key_colour` where that matters. (Two samplings on two backgrounds would tell both apart, at twice
    the cost and with two different objects.)
    """
    colours, masks = [], []
    for image in images:
        rgb = np.ascontiguousarray(image.permute(1, 2, 0).float().numpy())
        flat = np.broadcast_to(background.cpu().float().numpy(), rgb.shape).astype(np.float32)
        solid = plain_mask(rgb, Backdrop(flat, noise=_noise(rgb, flat), share=1.0))
        straight, alpha = _unmix(rgb, solid, flat)
        colours.append(torch.from_numpy(straight).permute(2, 0, 1))
        masks.append(torch.from_numpy(alpha)[None])
    return torch.stack(colours), torch.stack(masks)


def _unmix(rgb: np.ndarray, solid: np.ndarray, flat: np.ndarray, reach: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Straight colours [H, W, 3] and coverage [H, W] of a hard mask's pixels, those near its outline read as mixtures.

    I = a F + (1 - a) B, with F the colour within `reach` pixels that differs most from the background B: as far as
    antialiasing and a small prior's blur reach. Against reading the mixture from the outline alone this gains 1 to 2
    points of mask IoU on 64 px renders, sharp or blurred.
    """
    from scipy import ndimage

    if not solid.any():
        return rgb, solid.astype(np.float32)
    distance = np.linalg.norm(rgb - flat, axis=-1) * solid
    colour, strongest = rgb, distance
    height, width = solid.shape
    wide, wide_rgb = np.pad(distance, reach), np.pad(rgb, ((reach, reach), (reach, reach), (0, 0)))
    for y, x in np.argwhere(_disc(reach)):
        here, here_rgb = wide[y : y + height, x : x + width], wide_rgb[y : y + height, x : x + width]
        better = here > strongest
        strongest = np.where(better, here, strongest)
        colour = np.where(better[..., None], here_rgb, colour)
    across = colour - flat
    mixed = ((rgb - flat) * across).sum(axis=-1) / np.maximum((across**2).sum(axis=-1), 1e-4)
    inside = ndimage.distance_transform_edt(np.pad(solid, 1, constant_values=True))[1:-1, 1:-1] > reach
    alpha = np.where(inside, 1.0, np.clip(mixed, 0, 1) * solid).astype(np.float32)
    straight = np.where((alpha < 0.9)[..., None], colour, rgb)
    return spread_colour(straight, solid), alpha


def _disc(radius: int) -> np.ndarray:
    """A boolean disc [2 radius + 1, 2 radius + 1]."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return y * y + x * x <= radius * radius


def key_colour(prompt: ImagePrompt, colours: Sequence[tuple[float, float, float]] = KEY_COLOURS) -> Float[Tensor, "3"]:
    """The background, of those given, that is easiest to tell from the prompt's object; the first of about equal ones.

    Told by the 5th percentile of the colour differences (CIELAB) between the object's pixels and the background.
    """
    inside = (prompt.mask[0] > 0.9).numpy()
    if not inside.any():
        return torch.tensor(colours[0])
    object_lab = to_lab(prompt.image.permute(1, 2, 0).numpy())[inside]
    background_lab = to_lab(np.array(colours, dtype=np.float32)[None])[0]
    clear = [float(np.percentile(np.linalg.norm(object_lab - lab, axis=-1), 5)) for lab in background_lab]
    good = min(max(clear), 20.0)  # from there on more contrast helps no more
    return torch.tensor(next(colour for colour, value in zip(colours, clear, strict=True) if value >= good))


SIDES = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")
"""Names of azimuths 0, 45, ..., 315: an object that faces +x has its own left at +y, azimuth 90."""


def view_names(cameras: Cameras) -> list[str]:
    """Names of views by where their cameras stand: "front", "left", ..., with a number where two would be the same.

    Within 22.5 degrees of azimuth; above 60 degrees of elevation a view is "overhead", below -60 "underneath".

    >>> from maquette.cameras import orbit
    >>> view_names(orbit(4))
    ['front', 'left', 'back', 'right']
    """
    names: list[str] = []
    for name in _names(cameras):
        times = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({times + 1})" if times else name)
    return names


def _names(cameras: Cameras) -> Iterator[str]:
    for azimuth, elevation in zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True):
        if elevation > 60:
            yield "overhead"
        elif elevation < -60:
            yield "underneath"
        else:
            yield SIDES[round(azimuth / 45) % 8]


def _noise(rgb: np.ndarray, flat: np.ndarray) -> float:
    """Typical difference (Delta E) of an image's border from its background: what the prior paints unevenly."""
    difference = np.linalg.norm(to_lab(rgb) - to_lab(flat), axis=-1)
    border = np.concatenate([difference[0], difference[-1], difference[:, 0], difference[:, -1]])
    return float(np.median(border))
