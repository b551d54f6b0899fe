"""DreamBooth3D at the full size of Stable Diffusion, without its weights: `python benchmarks/rehearsal_subject.py`.

Writes files with exactly the names and shapes of the released ones (random numbers), loads them like a person's
download, and takes one step of everything that the method asks of the prior: a picture of the class, a step of learning
(low-rank updates, without and with recomputed blocks; then all weights, in a process of their own), a step of score
distillation under the partial model, and one pseudo view. What is learned is written, read back and used. Times and
memory are told as by `benchmarks/rehearsal.py`. All weights of Stable Diffusion with AdamW's moments take about 15 GiB;
`--parts low-rank` leaves that out.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maquette.cameras import OrbitSampler
from maquette.fields import LinearBlob, RadianceConfig
from maquette.guidance.score import from_dreamfusion
from maquette.guidance.view_text import ViewTextConfig, ViewTextGuidance
from maquette.images import Prompt
from maquette.priors.adapters import Full, Lora
from maquette.priors.base import AdaptablePrior
from maquette.priors.hub import load_image_prior
from maquette.priors.placement import Placement, loading
from maquette.priors.random_files import write_model
from maquette.priors.single_view import STABLE_DIFFUSION_MODELS
from maquette.rendering import VolumeConfig, VolumeScene
from maquette.run import Run
from maquette.run.memory import GIB, peak_memory
from maquette.schedules import Constant
from maquette.stages.class_images import ClassImagesConfig, class_images
from maquette.stages.fit import FitConfig, fit
from maquette.stages.look import SamplingConfig
from maquette.stages.objectives import Distillation, DistillationConfig, ShadingConfig
from maquette.stages.personalize import PersonalizeConfig, personalize
from maquette.stages.pseudo_views import PseudoViews, make_pseudo_views
from maquette.stages.regularizers import Regularizers
from maquette.stages.translate import TranslateConfig
from maquette.subjects import CaptionedImages

try:
    from rehearsal import measured
except ImportError:  # imported by a test, and not run as a script
    from benchmarks.rehearsal import measured

PARTS = ("low-rank", "all")
INSTANCE, WISH = "a photo of a [v] toy", "a [v] toy of wood"
ONE_STEP = PersonalizeConfig(adapter=Lora(rank=16), steps=1, learning_rate=1e-4, checkpoint_seconds=1e9)


def photos(size: int) -> CaptionedImages:
    """Three pictures of nothing."""
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    return CaptionedImages.from_images(images, [INSTANCE] * 3)


def learn(prior: AdaptablePrior, config: PersonalizeConfig, others: CaptionedImages | None, name: str, run: Run) -> Any:
    """The adapter after one step, as it comes back from the disk."""
    pictures = photos(prior.codec.image_size)
    learned = run.stage(name, personalize, prior, pictures, others or pictures.captioned("a photo of a toy"), config)
    assert all(tensor.isfinite().all() for tensor in learned[1].tensors.values())
    return learned[1]


def low_rank(prior: AdaptablePrior, run: Run) -> None:
    """The whole method, a step of each kind, with low-rank updates."""
    size = prior.codec.image_size
    once = SamplingConfig(steps=1, guidance_scale=7.5, spacing="exact")
    with measured(f"one picture of the class, {size} px, one step with guidance, and decoding"):
        config = ClassImagesConfig(count=1, sampling=once)
        others = run.stage("class_pictures", class_images, prior, ["a photo of a toy"], config)
    with measured("one step of learning, rank 16, one photo and one picture of the class"):
        learn(prior, ONE_STEP, others, "plain", run)
    with measured("the same, blocks recomputed, written and read back"):
        adapter = learn(prior, replace(ONE_STEP, checkpointing=True), others, "partial", run)
    partial = prior.adapted(adapter)
    scene = VolumeScene(VolumeConfig(field=RadianceConfig(bias=LinearBlob(), hidden=32), samples=Constant(32)), seed=0)
    settings = DistillationConfig(
        scenes=Constant(1), resolution=Constant(64), shading=ShadingConfig(begin=1.0),
        regularizers=Regularizers(sparsity=Constant(0.0)),
    )  # fmt: skip
    words = ViewTextConfig(omega=from_dreamfusion(100.0), lambda_=1.0, front=45.0)
    guidance = ViewTextGuidance(partial, Prompt(None, WISH), words)
    with measured("one step of distillation under the partial model, one view of 64 px"):
        scene = run.stage("initial_field", fit, scene, [Distillation(guidance, OrbitSampler(num_views=1), settings)],
                          FitConfig(steps=1))  # fmt: skip
    assert all(value.isfinite().all() for value in scene.parameters()), "the distillation step broke the field"
    views = PseudoViews(count=1, size=size, translate=TranslateConfig(
        sampling=replace(once, steps=2), min_mask_iou=0.0, retries=0,
    ))  # fmt: skip
    with measured(f"one pseudo view of {size} px at strength 0.5, one step with guidance"):
        _, painted = make_pseudo_views(scene, partial, WISH, photos(size), None, views, run)
    assert painted.views.images.shape == (1, 3, size, size) and painted.views.images.isfinite().all()


def all_weights(prior: AdaptablePrior, run: Run) -> None:
    """A step of learning that moves every weight."""
    config = replace(ONE_STEP, adapter=Full(), learning_rate=5e-6, checkpointing=True)
    with measured("one step of learning, all weights, blocks recomputed, written and read back"):
        adapter = learn(prior, config, None, "partial", run)
    with measured("one prediction of what was learned"):
        full = prior.adapted(adapter)
        noisy = torch.randn(1, 1, *full.codec.latent_shape, generator=torch.Generator().manual_seed(0))
        found = full.predict(noisy, torch.tensor([500]), full.condition(Prompt(None, WISH), torch.ones(3)))
    assert found.eps.isfinite().all()


def use(name: str, folder: Path, dtype: str, part: str) -> None:
    """Load the files and do one part."""
    print(
        f"\n{part}:\n\n| what | core-s | wall-s | own memory, at most (GiB) | peak so far (GiB) |\n"
        "|---|---|---|---|---|", flush=True,
    )  # fmt: skip
    with loading(Placement(dtype)):  # type: ignore[arg-type]  # one of the options' choices
        with measured(f"load as {dtype}, sha256 included"):
            prior = load_image_prior(name, folder)
        with Run.open(folder / f"run-{part}", quiet=True, device="cpu") as run:
            (low_rank if part == "low-rank" else all_weights)(prior, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="stable-diffusion-1.5", choices=STABLE_DIFFUSION_MODELS)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the base model")
    parser.add_argument("--scratch", type=Path, help="folder for the files; default: the system's temporary one")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.use:
        use(options.model, options.use, options.dtype, options.parts[0])
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        began = time.process_time()
        count, size = write_model(folder, options.model)
        spent, peak = time.process_time() - began, (peak_memory() or 0) / GIB
        print(f"{options.model}: {count} tensors, {size / 1e9:.2f} GB, written in {spent:.0f} core-s, {peak:.2f} GiB")
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread", flush=True)
        for part in options.parts:  # each in a process of its own, so that its memory is its own
            command = [sys.executable, __file__, options.model, "--dtype", options.dtype, "--use", str(folder)]
            subprocess.run([*command, "--parts", part], check=True)


if __name__ == "__main__":
    main()
