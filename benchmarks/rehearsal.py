"""A published model at full size, without its weights: `python benchmarks/rehearsal.py [MODEL] [--dtype bfloat16]`.

Writes a file with exactly the names and shapes of the released one (random float16 numbers, 4 GB for ImageDream), loads
it through `load_prior` like a person's download, takes one step of sampling views and one distillation step, and prints
time and memory of each as a Markdown table. The file is deleted afterwards. What it shows: the whole path from a
published file to a gradient on a field fits together and into memory; what it cannot show: what the pictures look like.

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
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import torch
from torch import Tensor

from maquette.cameras import OrbitSampler, orbit
from maquette.diffusion.schedule import NoiseSchedule
from maquette.fields import LinearBlob, RadianceConfig
from maquette.guidance.recon import ReconGuidance
from maquette.images import ImagePrompt, Prompt
from maquette.priors.clip_tokenizer import WORD_END, byte_symbols
from maquette.priors.hub import load_prior
from maquette.priors.published import MODELS, outline, parts, schedule_vectors
from maquette.priors.registry import find_model
from maquette.priors.tensor_files import StoredTensor, write_torch
from maquette.rendering import VolumeConfig, VolumeScene
from maquette.run import Run
from maquette.run.memory import GIB, peak_memory
from maquette.schedules import Constant
from maquette.stages.fit import FitConfig, fit
from maquette.stages.look import SamplingConfig, sample_views
from maquette.stages.objectives import Distillation, DistillationConfig, ShadingConfig
from maquette.stages.regularizers import Regularizers


def write_file(path: Path, name: str, dtype: torch.dtype = torch.float16) -> tuple[int, int]:
    """A file as released, with random numbers; (tensors, bytes). One tensor is in memory at a time."""
    generator = torch.Generator().manual_seed(0)
    listed: list[tuple[str, StoredTensor]] = []
    for part in parts(MODELS[name]()).values():
        for key, shown in part.table.write(outline(part).state_dict(), part.prefix).items():

            def draw(key: str = key, shape: torch.Size = shown.shape) -> Tensor:
                noise = torch.randn(shape, generator=generator)
                if len(shape) < 2:  # norms near 1, biases near 0
                    return (0.1 * noise + (0.0 if key.endswith("bias") else 1.0)).to(dtype)
                # A third of the variance that keeps a signal's size, so that half precision never overflows.
                return (noise * (3 * shape[1:].numel()) ** -0.5).to(dtype)

            listed.append((key, StoredTensor(dtype, tuple(shown.shape), draw)))
    vectors = schedule_vectors(NoiseSchedule.scaled_linear())
    listed += [(key, StoredTensor(v.dtype, tuple(v.shape), v.clone)) for key, v in vectors.items()]
    write_torch(path, listed)
    return len(listed), path.stat().st_size


def write_merges(folder: Path, count: int) -> None:
    """A list of `count` merges that is none of any language: every pair of bytes, one at the end of a word."""
    pairs = islice(product(byte_symbols(), byte_symbols()), count)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}{WORD_END}" for a, b in pairs), ""]))


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


def use(name: str, folder: Path, dtype: torch.dtype) -> None:
    """Load the file, sample for one step, distil for one step."""
    print(
        "| what | core-s | wall-s | own memory, at most (GiB) | peak so far (GiB) |\n|---|---|---|---|---|", flush=True
    )
    with measured(f"load as {str(dtype).removeprefix('torch.')}, sha256 included"):
        prior = load_prior(name, folder, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    picture = None
    if "imagedream" in name:
        picture = ImagePrompt(torch.rand(3, 256, 256, generator=generator), torch.ones(1, 256, 256))
    prompt = Prompt(picture, "a toy of wood", "blurry")
    with measured("words and picture to a condition"):
        condition = prior.condition(prompt, torch.ones(3))
    views = prior.num_views or 4
    size = prior.codec.image_size
    cameras = orbit(views, elevation=5.0, height=size, width=size)
    with Run.open(folder / "run", quiet=True, device="cpu") as run:
        with measured(f"one step of {views} views with guidance, and decoding them"):
            shown = run.stage(
                "views", sample_views, prior, condition, cameras, SamplingConfig(steps=1, spacing="exact")
            )
        assert shown.images.isfinite().all() and shown.images.shape == (views, 3, size, size)
        scene = VolumeScene(
            VolumeConfig(field=RadianceConfig(bias=LinearBlob(), hidden=32), samples=Constant(32)), seed=0
        )
        config = DistillationConfig(
            scenes=Constant(1), resolution=Constant(64), shading=ShadingConfig(begin=1.0),
            regularizers=Regularizers(sparsity=Constant(0.0)),
        )  # fmt: skip
        distillation = Distillation(ReconGuidance(prior, replace(prompt, cutout=None)), OrbitSampler(), config)
        before = [value.detach().clone() for value in scene.parameters()]
        with measured(f"one distillation step: {views} views of 64 px, prompt encoded anew"):
            scene = run.stage("fit", fit, scene, [distillation], FitConfig(steps=1))
        moved = sum(float((a - b.detach()).abs().sum()) for a, b in zip(before, scene.parameters(), strict=True))
        assert moved > 0, "the distillation step left the field as it was"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="imagedream", choices=list(MODELS))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of U-Net and encoders")
    parser.add_argument("--scratch", type=Path, help="folder for the file; default: the system's temporary one")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.use:
        use(options.model, options.use, getattr(torch, options.dtype))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        began = time.process_time()
        path = folder / find_model(options.model).source.files[0].path
        count, size = write_file(path, options.model)
        write_merges(folder, MODELS[options.model]().text.vocabulary - 514)
        spent, peak = time.process_time() - began, (peak_memory() or 0) / GIB
        print(f"{options.model}: {count} tensors, {size / 1e9:.2f} GB, written in {spent:.0f} core-s, {peak:.2f} GiB")
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread\n", flush=True)
        # A process of its own, so that its memory is that of using the model.
        command = [sys.executable, __file__, options.model, "--dtype", options.dtype, "--use", str(folder)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
