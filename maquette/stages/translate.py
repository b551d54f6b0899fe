"""Renderings become pictures of the subject: noise each view in part, and let a personalised prior take it away.

DreamBooth3D's second stage and USD's refinement (arXiv:2303.13508, arXiv:2312.06198): how far a view is noised decides
how much of it is kept. Every view is translated for itself, with words for its side, from noise of its own that is a
function of (seed, stage, view, attempt). What the prior invents cannot be trusted, so attempts may be refused: where
the object moved, where it became less like the photos than its rendering was, and where a back shows a front.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from maquette.diffusion.sampling import unit_noise
from maquette.errors import RunFailed, UserError
from maquette.imagefiles import read_image, save_image
from maquette.images import Views
from maquette.matting import Matting, cut_out
from maquette.priors.base import Prior
from maquette.priors.guided import guided_x0
from maquette.run import Stage, derive_seed
from maquette.run.files import write_json
from maquette.stages.likeness import PictureEncoder, likeness, on_white, sides
from maquette.stages.look import SamplingConfig, key_views, start_sampling
from maquette.stages.personalize import words
from maquette.subjects import CaptionedImages
from maquette.wording import view_word, without_view


@dataclass(frozen=True)
class TranslateConfig:
    """How views are translated; the defaults are those recommended for DreamBooth3D on Stable Diffusion."""

    strength: float = 0.5
    """Share of the steps that run: 0 keeps the rendering, 1 replaces it. USD skips 0.8 of them, which is 0.2 here."""
    sampling: SamplingConfig = SamplingConfig(steps=50, guidance_scale=7.5)
    """The sampler's whole list, of which `strength` takes the end, and its guidance."""
    candidates: int = 1
    """Attempts a view of which the most alike is taken; 2 to 4 where there is time."""
    retries: int = 3
    """Further rounds of attempts for a view that was refused, before it is dropped."""
    min_mask_iou: float = 0.6
    """Least overlap of the object's outline with its rendering's; 0 does not look, and so it is where the rendering's
    own outline cannot be told from the background, and for residuals, which are added to the rendering."""
    keep_likeness: bool = True
    """Refuse what is less like the photos than its rendering (needs an encoder and photos)."""
    refuse_fronts: bool = True
    """Refuse a view from behind that the encoder takes for a front (needs an encoder)."""
    matting: Literal["key"] | Matting = "key"
    """How the object is found in an attempt: by the flat background, or as in a photo where it is invented."""
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What renderings are put onto."""
    sample_posterior: bool = True
    """Encode to a sample of the autoencoder's posterior, not its mean."""
    residual: bool = False
    """Add what was learned and asked for to the rendering: the difference to its translation by the prior before it
    learned, told no more than the class, with the same noise; what either does to any picture cancels. Not in the
    papers."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is the share of the steps to run and lies in [0, 1], got {self.strength}")
        if self.candidates < 1 or self.retries < 0:
            raise UserError(f"candidates is at least 1, retries at least 0; got {self.candidates} and {self.retries}")
        if not 0 <= self.min_mask_iou <= 1:
            raise UserError(f"min_mask_iou lies in [0, 1], got {self.min_mask_iou}")


@dataclass(frozen=True)
class Attempt:
    """One translation of one view, and what became of it."""

    view: int
    """Number among the renderings."""
    attempt: int
    seed: int
    caption: str
    accepted: bool
    reason: str
    """Why it was taken or refused."""
    mask_iou: float | None = None
    likeness: float | None = None
    """Mean cosine to the photos."""
    source_likeness: float | None = None
    """That of its rendering."""
    side: str | None = None
    """The side that it seems to show."""


@dataclass(frozen=True)
class Translated:
    """The accepted pictures with their cameras, and every attempt."""

    views: Views
    """Pictures as the prior painted them, background included; masks are the renderings'."""
    numbers: tuple[int, ...]
    """Which rendering each of them is."""
    attempts: tuple[Attempt, ...]
    pictures: UInt8[Tensor, "n 3 s s"]
    """Of every attempt, in order."""
    config: TranslateConfig

    def loss_masks(self, dilate: float = 0.03) -> Float[Tensor, "v 1 s s"]:
        """The renderings' outlines, widened by a share of the side: beyond them the background is invented."""
        if self.views.masks is None:
            return torch.ones_like(self.views.images[:, :1])
        reach = round(dilate * self.views.masks.shape[-1])
        return F.max_pool2d(self.views.masks, 2 * reach + 1, stride=1, padding=reach)

    def cut_out(self) -> Views:
        """The pictures with straight colours and masks of their own, found as `config.matting` says.

        Where what is found is not the object of the rendering, though the picture was accepted, its outline could not
        be told from the background: then the rendering's stands for it. So it does for residuals, whose object stays.
        """
        found = [_foreground(image, self.config) for image in self.views.images]
        for index, known in enumerate([] if self.views.masks is None else self.views.masks):
            if self.config.residual or _overlap(known, found[index][1]) < self.config.min_mask_iou:
                found[index] = (self.views.images[index], known)
        return Views(torch.stack([rgb for rgb, _ in found]), torch.stack([m for _, m in found]), self.views.cameras)

    def save(self, folder: Path) -> None:
        """Write views/, attempts/VVV_A.png and attempts.json."""
        self.views.save(folder / "views")
        (folder / "attempts").mkdir(exist_ok=True)
        for entry, picture in zip(self.attempts, self.pictures, strict=True):
            save_image(folder / "attempts" / _file(entry), picture.float() / 255)
        rows = [asdict(entry) for entry in self.attempts]
        write_json(folder / "attempts.json", {"numbers": self.numbers, "config": asdict(self.config), "attempts": rows})

    @classmethod
    def load(cls, folder: Path) -> Translated:
        """Read what `save` wrote."""
        account = json.loads((folder / "attempts.json").read_text("utf-8"))
        settings = account["config"]
        sampling = settings["sampling"]
        sampling |= {"frame": None if sampling["frame"] is None else tuple(sampling["frame"])}
        settings |= {"sampling": SamplingConfig(**sampling), "background": tuple(settings["background"])}
        attempts = tuple(Attempt(**row) for row in account["attempts"])
        pictures = [(read_image(folder / "attempts" / _file(a)) * 255).round().to(torch.uint8) for a in attempts]
        views = Views.load(folder / "views")
        return cls(views, tuple(account["numbers"]), attempts, torch.stack(pictures), TranslateConfig(**settings))


def _file(entry: Attempt) -> str:
    return f"{entry.view:03d}_{entry.attempt}.png"


def translate_views(
    prior: Prior,
    views: Views,
    captions: Sequence[str],
    config: TranslateConfig,
    *,
    negative: str = "",
    photos: CaptionedImages | None = None,
    encoder: PictureEncoder | None = None,
    base: tuple[Prior, Sequence[str]] | None = None,
    run: Stage,
) -> Translated:
    """Every view as the prior paints it under its caption, at the prior's own size.

    `base` is the prior before it learned and a caption for each view, which `config.residual` needs (ValueError).

    Without an encoder (and photos) only outlines are judged, and without masks nothing is: then the first attempt is
    taken. Views that are refused `config.retries` + 1 times are dropped; RunFailed if none is left. Goes on after the
    last view that was finished.
    """
    if len(captions) != len(views):
        raise ValueError(f"{len(views)} views need as many captions, got {len(captions)}")
    if config.residual and base is None:
        raise ValueError("a residual translation needs the prior before it learned, and base is None")
    judge = _Judge(config, views, captions, photos, encoder)
    attempts: list[Attempt] = []
    pictures: list[UInt8[Tensor, "3 s s"]] = []
    begin = 0
    if (found := run.load_checkpoint()) is not None:
        begin, state = found
        attempts = [Attempt(**row) for row in state["attempts"]]
        pictures = list(state["pictures"])
    with run.progress(len(views), start=begin) as progress:
        for view in range(begin, len(views)):
            for entry, picture in _until_accepted(prior, base, view, judge, negative, run):
                attempts.append(entry)
                pictures.append(picture)
                run.log(view, **{key: value for key, value in asdict(entry).items() if key != "view"})
            progress.update(view + 1)
            run.checkpoint(
                view + 1, lambda: {"attempts": [asdict(a) for a in attempts], "pictures": torch.stack(pictures)}
            )
    taken = [index for index, entry in enumerate(attempts) if entry.accepted]
    if not taken:
        raise RunFailed(
            f"{run.name}: none of {len(views)} views was accepted ({attempts[-1].reason}); lower the strength, or "
            f"loosen the tests (min_mask_iou, keep_likeness, refuse_fronts)"
        )
    numbers = tuple(attempts[index].view for index in taken)
    size = pictures[0].shape[-1]
    accepted = Views(
        torch.stack([pictures[index] for index in taken]).float() / 255,
        None if judge.masks is None else judge.masks[list(numbers)],
        views.cameras[list(numbers)].to("cpu").with_size(size, size),
    )
    return Translated(accepted, numbers, tuple(attempts), torch.stack(pictures), config)


def _until_accepted(
    prior: Prior, base: tuple[Prior, Sequence[str]] | None, view: int, judge: _Judge, negative: str, run: Stage
) -> list[tuple[Attempt, UInt8[Tensor, "3 s s"]]]:
    """All attempts at one view: rounds of `candidates` until one passes, of which the most alike is taken."""
    config, tried = judge.config, []
    rounds = 1 + config.retries if judge.looks else 1
    for turn in range(rounds):
        numbers = range(turn * config.candidates, (turn + 1) * config.candidates)
        seeds = [derive_seed(run.seed, run.name, view, f"attempt {number}") for number in numbers]
        source = judge.sources[view : view + 1]
        images = translate_images(prior, source, judge.captions[view], config, seeds, negative=negative)
        if config.residual:
            assert base is not None, "translate_views has looked"
            before = translate_images(base[0], source, base[1][view], config, seeds, negative=negative)
            images = (resized(source, images.shape[-1]) + images - before).clamp(0, 1)
        painted = (images * 255).round().to(torch.uint8)
        entries = [
            judge.attempt(view, number, seed, image.float() / 255)
            for number, seed, image in zip(numbers, seeds, painted, strict=True)
        ]
        passed = [entry for entry in entries if entry.accepted]
        best = max(passed, key=lambda entry: (entry.likeness or 0.0, -entry.attempt), default=None)
        for entry, picture in zip(entries, painted, strict=True):
            if entry.accepted and entry is not best:
                entry = Attempt(**{**asdict(entry), "accepted": False, "reason": "another attempt is more alike"})
            tried.append((entry, picture))
        if best is not None:
            break
        if not run.keep_going():
            raise KeyboardInterrupt
    return tried


@torch.no_grad()
def translate_images(
    prior: Prior,
    images: Float[Tensor, "k 3 h w"],
    caption: str,
    config: TranslateConfig,
    seeds: Sequence[int],
    *,
    negative: str = "",
) -> Float[Tensor, "n 3 s s"]:
    """Pictures of one caption, translated from as many seeds (one picture may serve several), on the CPU.

    Each seed's generator gives the posterior's noise first, then eps; so a result does not depend on its company.
    """
    condition = words(prior, caption, negative)
    device = condition.text.device
    images = images.expand(len(seeds), -1, -1, -1)[:, None].to(device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = unit_noise(generators, torch.empty(len(seeds), 1, *prior.codec.latent_shape, device=device))
    posterior = noise(0) if prior.codec.stochastic and config.sample_posterior else None
    image = prior.codec.encode(images, posterior)
    predict = guided_x0(
        prior,
        cond=condition,
        uncond=prior.unconditional(condition, config.sampling.unconditional),
        guidance_scale=config.sampling.guidance_scale,
        rescale=config.sampling.rescale,
    )
    latents, _, updates = start_sampling(
        prior, predict, image, config.sampling, generators, image=image, strength=config.strength
    )
    for state in updates:
        latents = state.x
    return prior.codec.decode(latents)[:, 0].float().cpu()


class _Judge:
    """What renderings were, and whether an attempt may stand for one of them."""

    def __init__(
        self,
        config: TranslateConfig,
        views: Views,
        captions: Sequence[str],
        photos: CaptionedImages | None,
        encoder: PictureEncoder | None,
    ) -> None:
        self.config, self.captions, self.encoder = config, list(captions), encoder
        views = views.to("cpu")
        self.sources = views.composite(torch.tensor(config.background)).float()
        self.raw_masks = views.masks
        self.masks: Tensor | None = None
        angles = zip(views.cameras.azimuth.tolist(), views.cameras.elevation.tolist(), strict=True)
        self.words = [view_word(azimuth, elevation) for azimuth, elevation in angles]
        self.photos = None
        if encoder is not None and photos is not None and len(photos):
            self.photos = encoder.embed_images(on_white(photos))

    @property
    def looks(self) -> bool:
        """Whether anything can be refused."""
        outline = self.raw_masks is not None and self.config.min_mask_iou > 0 and not self.config.residual
        alike = self.photos is not None and self.config.keep_likeness
        return outline or alike or (self.encoder is not None and self.config.refuse_fronts)

    def attempt(self, view: int, number: int, seed: int, image: Float[Tensor, "3 s s"]) -> Attempt:
        """The attempt with its verdict."""
        config, figures, faults = self.config, dict[str, Any](), []
        if self.raw_masks is not None:
            self._fit_masks(image.shape[-1])
            assert self.masks is not None
            if config.min_mask_iou > 0 and not config.residual:
                figures["mask_iou"] = _overlap(self.masks[view], _foreground(image, config)[1])
                if figures["mask_iou"] < config.min_mask_iou and self._tells_outline(view):
                    faults.append(f"the object moved: its outline overlaps by {figures['mask_iou']:.2f}")
        if self.encoder is not None and self.photos is not None:
            both = [self.sources[view : view + 1], image[None]]
            before, after = (float(likeness(self.encoder, picture, self.photos)[0]) for picture in both)
            figures |= {"likeness": after, "source_likeness": before}
            if config.keep_likeness and after < before:
                faults.append(f"less like the photos than its rendering: {after:.3f} after {before:.3f}")
        if self.encoder is not None and config.refuse_fronts:
            figures["side"] = sides(self.encoder, image[None], without_view(self.captions[view]))[0]
            if self.words[view] == "back" and figures["side"] == "front":
                faults.append("a view from behind shows a front")
        reason = "; ".join(faults) or ("passed" if self.looks else "taken unseen")
        return Attempt(view, number, seed, self.captions[view], not faults, reason, **figures)

    def _tells_outline(self, view: int) -> bool:
        """Whether the way of finding objects finds the rendering's own: it cannot where that is white on white."""
        assert self.raw_masks is not None
        found = _foreground(self.sources[view], self.config)[1]
        return _overlap(self.raw_masks[view], found) >= self.config.min_mask_iou

    def _fit_masks(self, size: int) -> None:
        if self.masks is None and self.raw_masks is not None:
            resized = F.interpolate(self.raw_masks.float(), (size, size), mode="bilinear", antialias=True)
            self.masks = resized.clamp(0, 1)


def _foreground(
    image: Float[Tensor, "3 s s"], config: TranslateConfig
) -> tuple[Float[Tensor, "3 s s"], Float[Tensor, "1 s s"]]:
    """Straight colours and coverage of an attempt's object; no coverage where none can be told from the background."""
    if config.matting == "key":
        colours, masks = key_views(image[None], torch.tensor(config.background))
        return colours[0], masks[0]
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    try:
        rgb, alpha, _ = cut_out(pixels, config.matting)
    except UserError:
        return image, torch.zeros_like(image[:1])
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous(), torch.from_numpy(alpha)[None]


def resized(images: Float[Tensor, "v c h w"], size: int) -> Float[Tensor, "v c {size} {size}"]:
    """Images at another size, larger or (antialiased) smaller."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def _overlap(one: Float[Tensor, "1 s s"], other: Float[Tensor, "1 s s"]) -> float:
    """Intersection over union of two outlines; 0 where one of them is empty."""
    a, b = one > 0.5, other > 0.5
    return float((a & b).sum() / (a | b).sum().clamp(min=1))
