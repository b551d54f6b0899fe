"""03. Four views of one object from one picture, by multi-view diffusion.

The first stage of ImageDream, step by step: the prior is loaded, the picture becomes a condition on a flat background,
four canonical cameras are set up, and DDIM samples what they see. The fifth picture of the sheet is the prompt.

    python examples/03_sample_views.py --out runs/examples/03
    python examples/03_sample_views.py photo.png --caption "a red mug" --out runs/examples/03

Needs the weights of the nano prior, which are part of the package; without them it says so and stops. Nano is a small
prior that was trained on toy-like objects at 64 px: expect toys, not photographs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from toy import toy_robot

from maquette import ImagePrompt, Prompt, UserError, orbit, read_prompt, save_image
from maquette.images import sheet
from maquette.priors.hub import load_prior
from maquette.rendering import render_mesh
from maquette.run import Run
from maquette.stages.look import SamplingConfig, key_colour, sample_views, view_names


def toy_prompt() -> Prompt:
    """The toy robot, seen from a quarter left."""
    view = render_mesh(toy_robot(), orbit(1, azimuth=35.0, elevation=5.0, height=256, width=256)).views()
    return Prompt(ImagePrompt(view.images[0], view.masks[0]), caption="a toy robot")


def main(picture: Path | None, caption: str, out: Path, weights: Path | None, steps: int) -> None:
    try:
        prior = load_prior("nano", weights)
    except UserError as error:
        sys.exit(f"This example needs the weights of the nano prior, and they cannot be used: {error}")
    prompt = toy_prompt() if picture is None else read_prompt(picture, caption=caption)
    assert prompt.image is not None

    # The prompt is shown on the background that the views shall have; a colour far from the object's own is easy to
    # cut away afterwards.
    background = key_colour(prompt.image)
    condition = prior.condition(prompt, background)
    size = prior.codec.image_size
    cameras = orbit(num_views=4, elevation=5.0, height=size, width=size)
    config = SamplingConfig(steps=steps, guidance_scale=2.0, spacing="exact", clip=True)

    # A run remembers its stages: the same command again takes the views from the folder.
    with Run.open(out, config=config, method="example-03", inputs={"caption": prompt.caption}) as run:
        views = run.stage("views", sample_views, prior, condition, cameras, config)
    views.save(out / "views")
    shown = prompt.image.resized(size).composite(background)
    save_image(out / "views.png", sheet(torch.cat([views.composite(background), shown[None]]), gap=2))
    print(f"{', '.join(view_names(views.cameras))}, prompt: wrote {out / 'views.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="?", help="a picture of one object; without one, a toy robot")
    parser.add_argument("--caption", default="", help="what it shows, in a few words")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/03"), help="folder for the results")
    parser.add_argument("--weights", type=Path, help="another weights package of the nano prior")
    parser.add_argument("--steps", type=int, default=30, help="DDIM steps")
    options = parser.parse_args()
    main(options.picture, options.caption, options.out, options.weights, options.steps)
