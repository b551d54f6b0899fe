"""05. What does a prior believe when it is told nothing?

Score distillation with guidance also pulls towards the *unconditional* prediction of its prior. USD (arXiv:2312.06198)
observes that a network which was finetuned to see views has a bad one, and takes that of a 2D network instead. This
script draws the paper's figure for any pair of priors: clean views are noised a little and denoised by nothing but the
unconditional predictions, and the mean of (predicted - added) noise shows where a prediction is biased. A good null
changes little and its map is dark.

    python examples/05_unconditional_noise.py --out runs/examples/05
    python examples/05_unconditional_noise.py --null projected --out runs/examples/05-projected
    python examples/05_unconditional_noise.py --view zero123-xl --free sd --out runs/examples/05
    python examples/05_unconditional_noise.py --view nano --out runs/examples/05-halves

Without options it is nano's Zero-1-to-3 against nano's 2D half, whose weights are part of the package. A multi-view
prior is compared with its own 2D half where no other is named. Writes `nulls.png` (a row a prior: the clean view,
denoised from each level, the map) and `numbers.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from toy import toy_robot

from maquette import ImagePrompt, Prompt, UserError, orbit, save_image
from maquette.diffusion.sampling import SamplingSteps, translate
from maquette.evaluation.image import psnr
from maquette.images import CameraEstimate, Views, sheet
from maquette.priors.base import Prior
from maquette.priors.guided import check_shared_latents, free_condition, predict_singly
from maquette.priors.hub import load_free_prior, load_view_prior
from maquette.rendering import render_mesh

LEVELS = (50, 100, 200, 300)
WHITE = torch.ones(3)
Null = Callable[[Tensor, Tensor], Tensor]
"""(x_t [1, V, C, h, w], t [1]) -> the noise that a prior predicts without a condition."""


def load_any(name: str, weights: Path | None) -> Prior:
    """A prior by its name: of relative views, of several views at once, or of single pictures."""
    return load_view_prior(name, weights) if "zero123" in name else load_free_prior(name, weights)


def toy_views(num_views: int, size: int) -> tuple[Views, Prompt]:
    """Views of the toy robot, and the picture that the view prior's condition is made of before it is taken away."""
    elevation = 5.0
    views = render_mesh(toy_robot(), orbit(num_views, elevation=elevation, height=size, width=size)).views()
    camera = CameraEstimate(azimuth=0.0, elevation=elevation, scale=1.0, error=0.0, reliable=True)
    assert views.masks is not None
    return views, Prompt(ImagePrompt(views.images[0], views.masks[0]), "a toy robot", camera=camera)


def null_of_views(prior: Prior, views: Views, prompt: Prompt, kind: str) -> Null:
    """The view prior's own null: its cameras stay, picture and words go."""
    twin = prior.unconditional(prior.condition(prompt, WHITE), kind)  # type: ignore[arg-type]
    if prior.num_views not in (None, 1):
        return lambda x_t, t: prior.predict(x_t, t, twin, views.cameras).eps
    one_by_one, count = views.cameras.reshape(-1, 1), len(views)
    return lambda x_t, t: prior.predict(x_t.transpose(0, 1), t.expand(count), twin, one_by_one).eps.transpose(0, 1)


def null_of_pictures(prior: Prior) -> Null:
    """The free prior's null: every view for itself, no words."""
    nothing = free_condition(prior)
    return lambda x_t, t: predict_singly(prior, x_t, t, nothing).eps


def mean_difference(null: Null, latents: Tensor, prior: Prior, level: int, draws: int) -> tuple[Tensor, float]:
    """Mean of (predicted - added) noise over draws [V, C, h, w], and its root mean square.

    The noise that is left in a mean of few draws is estimated from their spread and taken off.
    """
    generator = torch.Generator().manual_seed(level)
    t = torch.tensor([level])
    differences = []
    for _ in range(draws):
        eps = torch.randn(latents.shape, generator=generator)
        differences.append((null(prior.noise_schedule.add_noise(latents, eps, t), t) - eps)[0])
    drawn = torch.stack(differences)
    mean = drawn.mean(dim=0)
    square = float(mean.square().mean() - drawn.var(dim=0).mean() / draws)
    return mean, max(square, 0.0) ** 0.5


def denoised(null: Null, latents: Tensor, prior: Prior, level: int) -> Tensor:
    """Pictures [V, 3, H, W]: noised to a level, then DDIM along the null alone."""
    whole = SamplingSteps.exact(prior.noise_schedule, 50)
    steps = whole.last(max(1, round(len(whole) * level / prior.noise_schedule.num_steps)))
    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(level))
    return prior.codec.decode(translate(null, latents, eps, steps))[0]


def brightness(magnitude: Tensor, brightest: float, size: int) -> Tensor:
    """A map [h, w] as a picture [3, size, size]."""
    grey = (magnitude / brightest).clamp(0, 1)[None, None]
    return F.interpolate(grey, (size, size), mode="nearest")[0].expand(3, -1, -1)


@torch.no_grad()
def main(options: argparse.Namespace) -> None:
    try:
        prior = load_any(options.view, options.view_weights)
        own = None if prior.num_views in (None, 1) else (options.view, options.view_weights)
        same = own is not None and (options.free, options.free_weights) in ((None, None), own)
        free = prior if same else load_any(options.free or "nano", options.free_weights)
    except UserError as error:
        sys.exit(f"This example needs the weights of two priors (or one with two halves): {error}")
    check_shared_latents(prior, free)
    size = prior.codec.image_size
    views, prompt = toy_views(4 if prior.num_views in (None, 1) else prior.num_views, size)
    clean = views.composite(WHITE)
    latents = prior.codec.encode(clean[None])
    nulls = {
        "views": null_of_views(prior, views, prompt, options.null),
        "pictures": null_of_pictures(free),
    }
    rows, maps, numbers = [], {}, {}
    for name, null in nulls.items():
        found = [mean_difference(null, latents, prior, level, options.draws) for level in LEVELS]
        pictures = [denoised(null, latents, prior, level) for level in LEVELS]
        kept = [float(psnr(picture, clean).mean()) for picture in pictures]
        for level, (_, bias), likeness in zip(LEVELS, found, kept, strict=True):
            print(f"null of {name:8} t = {level}: mean of (predicted - added) noise {bias:.4f}, "
                  f"denoised views keep {likeness:.1f} dB")  # fmt: skip
        numbers[name] = {"t": LEVELS, "bias": [bias for _, bias in found], "psnr": kept}
        rows.append([clean[0], *(picture[0] for picture in pictures)])
        maps[name] = torch.stack([mean for mean, _ in found]).mean(dim=0)[0].norm(dim=0)  # over levels: [h, w]
    brightest = max(float(value.max()) for value in maps.values())
    tiles = [tile for row, value in zip(rows, maps.values(), strict=True)
             for tile in (*row, brightness(value, brightest, size))]  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    shown = F.interpolate(torch.stack(tiles), scale_factor=max(1, 128 // size), mode="nearest")
    save_image(options.out / "nulls.png", sheet(shown, columns=len(LEVELS) + 2, gap=4))
    (options.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(f"clean, from t = {', '.join(map(str, LEVELS))}, map: wrote {options.out / 'nulls.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--view", default="nano-zero123", help="name of the view prior")
    parser.add_argument("--view-weights", type=Path, help="another file or package of its weights")
    parser.add_argument("--free", help="name of the free prior; nano, or the view prior's own 2D half")
    parser.add_argument("--free-weights", type=Path, help="another file or package of its weights")
    parser.add_argument("--null", default="zeros", help="kind of the view prior's null: zeros, flat or projected")
    parser.add_argument("--draws", type=int, default=8, help="noise drawn for each mean")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/05"), help="folder for the results")
    main(parser.parse_args())
