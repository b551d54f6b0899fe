"""A published model at full size, without its weights: `python benchmarks/rehearsal.py [MODEL] [--dtype bfloat16]`.

Writes files with exactly the names and shapes of the released ones (random float16 numbers, 4 GB for ImageDream), loads
them like a person's download, takes one step of sampling views (or of one image, for Stable Diffusion) and one
distillation step, and prints time and memory of each as a Markdown table. The files are deleted afterwards. What it
shows: the whole path from a published file to a gradient on a field fits together and into memory; what it cannot show:
what the pictures look like. `--component` writes a Zero-1-to-3 in the diffusers layout, with one or the other of the
two names that its pose projection has there.

Times are process times with one thread, wall times beside them. "own memory" is what cannot be given back (the file's
pages are not in it), sampled twenty times a second; "peak" is the largest resident size of the process so far.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from maquette.cameras import OrbitSampler, orbit
from maquette.fields import LinearBlob, RadianceConfig
from maquette.guidance.base import Guidance
from maquette.guidance.recon import ReconGuidance
from maquette.guidance.unbiased import UnbiasedConfig, UnbiasedGuidance
from maquette.guidance.view_text import ViewTextGuidance
from maquette.images import ImagePrompt, Prompt, Views
from maquette.priors.base import Condition
from maquette.priors.hub import load_image_prior, load_prior, load_view_prior
from maquette.priors.layout_diffusers import CAMERA_PROJECTIONS
from maquette.priors.published import MODELS
from maquette.priors.random_files import write_model
from maquette.priors.single_view import STABLE_DIFFUSION_MODELS, ZERO123_MODELS
from maquette.rendering import VolumeConfig, VolumeScene
from maquette.run import Run, Stage
from maquette.run.memory import GIB, peak_memory
from maquette.schedules import Constant
from maquette.stages.fit import FitConfig, fit
from maquette.stages.look import SamplingConfig, draw_scenes, sample_views
from maquette.stages.novel import sample_novel_views
from maquette.stages.objectives import Distillation, DistillationConfig, ShadingConfig
from maquette.stages.regularizers import Regularizers

NAMES = (*MODELS, *ZERO123_MODELS, *STABLE_DIFFUSION_MODELS)


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print a line of the table about the block."""
    top = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            top[0] = max(top[0], own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    began, clock = time.process_time(), time.monotonic()
    try:
        yield
    finally:
        spent, passed = time.process_time() - began, time.monotonic() - clock
        done.set()
        thread.join()
    print(
        f"| {what} | {spent:.1f} | {passed:.0f} | {max(top[0], own_memory()) / GIB:.2f} | "
        f"{(peak_memory() or 0) / GIB:.2f} |",
        flush=True,
    )


def own_memory() -> int:
    """Bytes of this process that are its own, and no file's; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def load(name: str, folder: Path, dtype: torch.dtype) -> Any:
    """The prior of a name, by the door for its kind."""
    door = load_prior if name in MODELS else load_view_prior if name in ZERO123_MODELS else load_image_prior
    return door(name, folder, dtype=dtype)


def sample(prior: Any, name: str, condition: Condition, run: Stage) -> Views:
    """One step of the sampler with guidance: the views that the prior was made for, or one image of words."""
    config = SamplingConfig(steps=1, spacing="exact")
    cameras = orbit(prior.num_views, elevation=5.0, height=prior.codec.image_size, width=prior.codec.image_size)
    if name in ZERO123_MODELS:
        return sample_novel_views(prior, None, condition, cameras, config, run)
    if name in STABLE_DIFFUSION_MODELS:
        (images,) = draw_scenes(prior, condition, None, config, [run.generator(0, "image", device="cpu")], run)
        return Views(images, None, cameras)
    return sample_views(prior, condition, cameras, config, run)


def guidance_for(prior: Any, name: str, prompt: Prompt) -> Guidance:
    """The guidance that a method takes with such a prior."""
    if name in ZERO123_MODELS:
        return UnbiasedGuidance(prior, None, prompt, UnbiasedConfig(omega=3.0, lambda_=1.0, null="own"))
    return ViewTextGuidance(prior, prompt) if name in STABLE_DIFFUSION_MODELS else ReconGuidance(prior, prompt)


def use(name: str, folder: Path, dtype: torch.dtype) -> None:
    """Load the files, sample for one step, distil for one step."""
    print(
        "| what | core-s | wall-s | own memory, at most (GiB) | peak so far (GiB) |\n|---|---|---|---|---|", flush=True
    )
    with measured(f"load as {str(dtype).removeprefix('torch.')}, sha256 included"):
        prior = load(name, folder, dtype)
    generator = torch.Generator().manual_seed(0)
    picture = None
    if "imagedream" in name or name in ZERO123_MODELS:
        picture = ImagePrompt(torch.rand(3, 256, 256, generator=generator), torch.ones(1, 256, 256))
    prompt = Prompt(picture, "a toy of wood", "blurry")
    with measured("words and picture to a condition" if picture else "words to a condition"):
        condition = prior.condition(prompt, torch.ones(3))
    views, size = prior.num_views, prior.codec.image_size
    seen = f"{views} views" if views > 1 else "one view"
    with Run.open(folder / "run", quiet=True, device="cpu") as run:
        with measured(f"one step of {seen} of {size} px with guidance, and decoding"):
            images = run.stage("views", sample, prior, name, condition).images
        assert images.isfinite().all() and images.shape == (views, 3, size, size)
        scene = VolumeScene(
            VolumeConfig(field=RadianceConfig(bias=LinearBlob(), hidden=32), samples=Constant(32)), seed=0
        )
        config = DistillationConfig(
            scenes=Constant(1), resolution=Constant(64), shading=ShadingConfig(begin=1.0),
            regularizers=Regularizers(sparsity=Constant(0.0)),
        )  # fmt: skip
        distillation = Distillation(guidance_for(prior, name, prompt), OrbitSampler(num_views=views), config)
        before = [value.detach().clone() for value in scene.parameters()]
        with measured(f"one distillation step: {seen} of 64 px, prompt encoded anew"):
            scene = run.stage("fit", fit, scene, [distillation], FitConfig(steps=1))
        after = list(scene.parameters())
        assert all(value.isfinite().all() for value in after), "the distillation step broke the field"
        moved = sum(float((a - b.detach()).abs().sum()) for a, b in zip(before, after, strict=True))
        assert moved > 0, "the distillation step left the field as it was"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="imagedream", choices=NAMES)
    parser.add_argument("--component", choices=list(CAMERA_PROJECTIONS), help="Zero-1-to-3 in the diffusers layout")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of U-Net and encoders")
    parser.add_argument("--scratch", type=Path, help="folder for the files; default: the system's temporary one")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.component and options.model not in ZERO123_MODELS:
        parser.error(f"--component is for {', '.join(ZERO123_MODELS)}")
    torch.set_num_threads(1)
    if options.use:
        use(options.model, options.use, getattr(torch, options.dtype))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        began = time.process_time()
        count, size = write_model(folder, options.model, component=options.component)
        spent, peak = time.process_time() - began, (peak_memory() or 0) / GIB
        print(f"{options.model}: {count} tensors, {size / 1e9:.2f} GB, written in {spent:.0f} core-s, {peak:.2f} GiB")
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread\n", flush=True)
        # A process of its own, so that its memory is that of using the model.
        command = [sys.executable, __file__, options.model, "--dtype", options.dtype, "--use", str(folder)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
