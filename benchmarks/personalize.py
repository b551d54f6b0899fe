"""Learning an object from four pictures: `python benchmarks/personalize.py [OBJECT.glb NOUN ...] [--steps 50]`.

Each object is rendered from its front, both sides and its back on white and captioned "a photo of a [v] NOUN, front
view" and so on; four pictures of the class come from the prior itself. The table shows, before and after learning by
low-rank updates and by all weights: the training loss on the subject and on the class (same noise for all rows), the
mean squared difference of samples with the subject's captions from the renders of these sides (two a side), and that
of the object's *grey* renders translated with strength 0.25, 0.5 and 0.75 from the true ones, which is what
DreamBooth3D's second stage is for. Seconds are process time of one thread. The default objects are two of the shared
validation pack (MAQUETTE_SHARED). Tables are Markdown.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from maquette.asset import load_mesh
from maquette.cameras import fit_distance, orbit
from maquette.images import Views
from maquette.priors.adapters import Full, Lora
from maquette.priors.base import AdaptablePrior
from maquette.priors.hub import load_prior
from maquette.rendering.raster import render_mesh
from maquette.run import Run, Stage
from maquette.stages.class_images import ClassImagesConfig, class_images
from maquette.stages.look import SamplingConfig, draw_scenes
from maquette.stages.personalize import PersonalizeConfig, denoising_error, personalize, words
from maquette.stages.translate import TranslateConfig, translate_views
from maquette.subjects import CaptionedImages
from maquette.wording import view_captions

DEFAULT_OBJECTS = ("kenney_space__robot.glb", "robot", "kaykit_furniture__armchair_pillows.glb", "armchair")
SAMPLING = SamplingConfig(steps=8, guidance_scale=3.0, spacing="exact", clip=True)
STRENGTHS = (0.25, 0.5, 0.75)
WAYS = {"low rank (8), 5e-3": (Lora(rank=8), 5e-3), "all weights, 5e-4": (Full(), 5e-4)}
WHITE = torch.ones(3)


def measure(prior: AdaptablePrior, photos: CaptionedImages, others: CaptionedImages, views: Views, run: Run) -> str:
    """The figures of one row."""
    size = (prior.codec.image_size, prior.codec.image_size)
    truth = F.interpolate(views.composite(WHITE), size, mode="area")
    stage = Stage(run, "measure", prior.fingerprint())
    distances = []
    for caption, picture in zip(photos.captions, truth, strict=True):
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        samples = draw_scenes(prior, words(prior, caption), None, SAMPLING, generators, stage)[:, 0]
        distances.append(float((samples - picture).square().mean()))
    grey = Views(views.images.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous(), views.masks, views.cameras)
    translated = []
    for strength in STRENGTHS:
        config = TranslateConfig(strength=strength, sampling=SAMPLING, min_mask_iou=0.0)
        stage = Stage(run, "measure", f"{prior.fingerprint()} {strength}")
        made = translate_views(prior, grey, photos.captions, config, run=stage)
        translated.append(float((made.views.images - truth).square().mean()))
    figures = (denoising_error(prior, photos), denoising_error(prior, others), sum(distances) / len(distances))
    return " | ".join(f"{figure:.4f}" for figure in (*figures, *translated))


def main() -> None:
    shared = Path(os.environ.get("MAQUETTE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="*", default=DEFAULT_OBJECTS)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prior = load_prior("nano")
    print("| object | learned by | loss, subject | loss, class | samples | grey, 0.25 | 0.5 | 0.75 | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for file, noun in zip(options.objects[::2], options.objects[1::2], strict=True):
        path = Path(file) if Path(file).exists() else shared / "data" / "objects" / "val" / file
        cameras = orbit(4, elevation=15.0, distance=fit_distance(40.0), fovy=40.0, height=64, width=64)
        views = render_mesh(load_mesh(path).normalized(0.75), cameras, samples=2).views()
        photos = CaptionedImages.from_views(views, view_captions(f"a photo of a [v] {noun}", cameras))
        with (
            tempfile.TemporaryDirectory() as folder,
            Run.open(Path(folder) / "run", device="cpu", quiet=True) as run,
        ):
            some = ClassImagesConfig(count=4, sampling=SAMPLING)
            others = run.stage("class", class_images, prior, [f"a photo of a {noun}"], some)
            print(f"| {noun} | nothing | {measure(prior, photos, others, views, run)} | 0 |", flush=True)
            for way, (adapter, rate) in WAYS.items():
                config = PersonalizeConfig(adapter=adapter, steps=options.steps, batch=4, learning_rate=rate)
                began = time.process_time()
                made = run.stage(f"personal_{type(adapter).__name__}", personalize, prior, photos, others, config)
                seconds = time.process_time() - began
                row = measure(prior.adapted(made[options.steps]), photos, others, views, run)
                print(f"| {noun} | {way} | {row} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
