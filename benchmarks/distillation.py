"""Where a distillation step's time goes, at full size and without weights: `python benchmarks/distillation.py`.

ImageDream's networks at their published size, filled with random numbers, and the paper's own preset: its field, its
cameras, its regularisers, 8 views of 64 px, then 4 of 192, then 4 of 256. A step is taken as `stages.fit` takes it, and
its parts are timed: rendering, the prompt's encoders (which run for every new colour of the background), the
autoencoder, both halves of the U-Net, what remains of the loss, the way back, the optimiser. One step of sampling views
is timed too, so that the whole run can be estimated; meshing is not in it. The last lines are rows for
`maquette/commands/measured.json`.

On a GPU: float16, time between synchronisations, peak of its memory; `--compile` and `--low-memory` as in the commands.
On a CPU: one thread, process time, own memory; `--samples 64 --scenes 1 --pixels 64` keeps it within minutes (four
views of 256 px took more than 21 GB), and what counts is the shares.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.cameras import orbit
from maquette.commands.cost import Row, device_name, needs_of
from maquette.guidance.recon import ReconGuidance
from maquette.images import ImagePrompt, Prompt
from maquette.methods import imagedream
from maquette.priors.base import predict_pair
from maquette.priors.clip_tokenizer import read_tokenizer
from maquette.priors.multiview import MultiViewPrior
from maquette.priors.placement import Placement, loading, placed
from maquette.priors.published import MODELS, PublishedConfig, assemble
from maquette.priors.random_files import SPECIAL, random_networks, write_merges
from maquette.rendering import VolumeScene
from maquette.run.memory import GIB
from maquette.run.progress import duration
from maquette.run.run import resolve_device
from maquette.schedules import Constant
from maquette.stages.fit import build_optimizer
from maquette.stages.objectives import Distillation

PARTS = ("render", "prompt", "encode", "U-Net", "loss", "backward", "optimiser")
SETTLE = 16
"""Looks at the field before the first step, after which empty space is skipped."""


@dataclass
class Stopwatch:
    """Seconds by part; time inside an inner part does not count for the outer one."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[tuple[str, float]] = field(default_factory=list)

    def now(self) -> float:
        """The time, once the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def start(self, part: str) -> None:
        now = self.now()
        self._add(now)
        self._open.append((part, now))

    def stop(self) -> None:
        now = self.now()
        self._add(now)
        self._open.pop()
        if self._open:
            self._open[-1] = (self._open[-1][0], now)

    def _add(self, now: float) -> None:
        if self._open:
            part, since = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - since

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return work(*arguments, **options)

        return call


@dataclass(frozen=True)
class TimedCodec:
    """A codec whose encoder's time is counted."""

    inner: Any
    watch: Stopwatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        with self.watch.part("encode"):
            return self.inner.encode(images, noise)


def random_prior(model: PublishedConfig, device: torch.device, placement: Placement) -> MultiViewPrior:
    """The prior with random numbers, placed as a command would place it."""
    networks = random_networks(model, device, placement.dtype(device))
    with tempfile.TemporaryDirectory() as folder:
        write_merges(Path(folder), model.text.vocabulary - SPECIAL)
        padding: Any = "end" if model.family == "mvdream-sd15" else "zero"
        tokenizer = read_tokenizer(
            Path(folder) / "merges.txt", model.text.vocabulary, model.text.context_length, padding
        )
    with loading(placement):
        return placed(assemble(networks, model, tokenizer))


@dataclass(frozen=True)
class Measured:
    """One kind of step."""

    pixels: int
    views: int
    parts: dict[str, float]
    bytes: int

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def measure(
    prior: MultiViewPrior, config: imagedream.Config, pixels: int, device: torch.device, rounds: int
) -> Measured:
    """The mean of some steps of that size, spread over the part of the run that has it."""
    total = config.fit.steps
    at = [step for step in range(0, total, 50) if round(config.distillation.resolution.at(step, total)) == pixels]
    if not at:
        raise SystemExit(f"the preset never renders {pixels} px")
    watch = Stopwatch(device)
    shown = prior.codec.image_size
    picture = ImagePrompt(torch.rand(3, shown, shown), torch.ones(1, shown, shown))
    prompt = Prompt(picture if prior.config.controls else None, "a toy of wood", "blurry")
    timed = replace(prior, codec=TimedCodec(prior.codec, watch))
    # Around the call and not by hooks, which a compiled network would take into its graph.
    object.__setattr__(timed, "_evaluate", watch.timed("U-Net", timed._evaluate))
    guidance = ReconGuidance(timed, prompt, config.guidance)
    guidance.condition.at = watch.timed("prompt", guidance.condition.at)  # type: ignore[method-assign]
    distillation = Distillation(guidance, config.cameras, config.distillation)
    scene = VolumeScene(config.scene, seed=0).to(device)
    optimizer, generator = build_optimizer(scene, config.fit), torch.Generator(device).manual_seed(0)
    for look in range(SETTLE):
        scene.update(look * config.scene.occupancy.interval, total, generator)
    top = reset_peak(device)
    warm = warm_up(device)
    for index in range(rounds + warm):
        if index == warm:
            watch.seconds.clear()
        step = at[len(at) * index // (rounds + warm)]
        optimizer.zero_grad()
        with watch.part("render"):
            shot = distillation.shot(step, total, generator, device)
            rendering = scene.render(shot, generator)
        with watch.part("loss"):
            loss, _ = distillation.loss(rendering, shot, step, total, generator)
        top = max(top, memory_now(device))
        with watch.part("backward"):
            loss.backward()
        top = max(top, memory_now(device))
        with watch.part("optimiser"):
            optimizer.step()
        del rendering, loss
    views = round(config.distillation.scenes.at(at[0], total)) * config.cameras.num_views
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else top
    return Measured(pixels, views, {part: watch.seconds.get(part, 0.0) / rounds for part in PARTS}, peak)


def warm_up(device: torch.device) -> int:
    """Steps that are not counted: a GPU chooses its kernels in the first one."""
    return 1 if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> int:
    """Begin to watch the peak of memory anew; nothing so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return 0


def memory_now(device: torch.device) -> int:
    """Bytes in use: of the GPU, or of this process's own."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def measure_sampling(prior: MultiViewPrior, device: torch.device, rounds: int) -> Measured:
    """One step of the sampler: both halves of guidance for the prior's views."""
    watch, views = Stopwatch(device), prior.config.num_views
    shown = prior.codec.image_size
    picture = ImagePrompt(torch.rand(3, shown, shown), torch.ones(1, shown, shown))
    prompt = Prompt(picture if prior.config.controls else None, "a toy of wood", "blurry")
    cond = prior.condition(prompt, torch.ones(3))
    x = torch.randn(1, views, *prior.codec.latent_shape, device=device)
    cameras = orbit(views, elevation=5.0).to(device)
    t = torch.tensor([500], device=device)
    reset_peak(device)
    warm = warm_up(device)
    for index in range(rounds + warm):
        if index == warm:
            watch.seconds.clear()
        with watch.part("U-Net"), torch.no_grad():
            predict_pair(prior, x, t, cond=cond, uncond=prior.unconditional(cond), cameras=cameras)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory_now(device)
    return Measured(0, views, {"U-Net": watch.seconds["U-Net"] / rounds}, peak)


def whole_run(config: imagedream.Config, found: list[Measured]) -> str:
    """Time of the preset's sampling and distillation, from steps that were measured with its own sizes."""
    seconds = 0.0
    for need in needs_of(config):
        if need.stage == "load":
            continue
        row = next((one for one in found if (one.pixels, one.views) == (need.pixels, need.views)), None)
        if row is None:
            return f"whole run: not measured (no row for {need})"
        seconds += need.count * row.seconds
    return f"whole run, without loading and meshing: {duration(seconds)}"


def told(one: Measured) -> Measured:
    """Print its line of the table, in milliseconds with shares."""
    cells = []
    for part in PARTS:
        value = one.parts.get(part)
        share = f" ({100 * value / one.seconds:.0f} %)" if value and one.seconds else ""
        cells.append("-" if value is None else f"{1e3 * value:.1f}{share}")
    size = f"{one.pixels}" if one.pixels else "sampling"
    step, peak = f"{1e3 * one.seconds:.1f}", f"{one.bytes / GIB:.2f}"
    print(f"| {size} | {one.views} | {' | '.join(cells)} | {step} | {peak} |", flush=True)
    return one


def conclude(
    prior_name: str, config: imagedream.Config, found: list[Measured], device: torch.device, precision: str, by: str
) -> None:
    """Print the whole run and, with a command `by`, rows for the committed table."""
    print(f"\n{whole_run(config, found)}\n")
    for one in found if by else ():
        stage: Any = "distillation" if one.pixels else "views"
        name = device_name(device)
        row = Row(stage, name, prior_name, precision, one.views, one.pixels, round(one.seconds, 4), one.bytes, by)
        print(json.dumps(asdict(row)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="imagedream", choices=list(MODELS))
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 192, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the U-Net")
    parser.add_argument("--low-memory", action="store_true", help="the halves of guidance one after the other")
    parser.add_argument("--samples", type=int, help="samples along the cube's diagonal; default: the preset's")
    parser.add_argument("--scenes", type=int, help="sets of views in a step; default: the preset's")
    options = parser.parse_args()
    device = resolve_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    placement = Placement(options.precision, options.low_memory, options.compile)
    model = MODELS[options.model]()
    config = replace(imagedream.paper(), prior=options.model)
    if options.samples:
        config = replace(config, scene=replace(config.scene, samples=Constant(options.samples)))
    if options.scenes:
        config = replace(config, distillation=replace(config.distillation, scenes=Constant(options.scenes)))
    prior = random_prior(model, device, placement)
    precision = str(prior.dtype).removeprefix("torch.")
    print(f"{options.model} in {precision} on {device_name(device)}, torch {torch.__version__}", end="")
    print("".join(f", {name}" for name in ("compile", "low_memory") if getattr(options, name)) + "\n")
    print(f"| px | views | {' | '.join(PARTS)} | step, ms | peak GiB |")
    print("|---|---|" + "---|" * (len(PARTS) + 2), flush=True)
    found = [told(measure_sampling(prior, device, options.rounds))]
    found += [told(measure(prior, config, pixels, device, options.rounds)) for pixels in options.pixels]
    # Rows of the committed table are of the preset itself, as commands run it.
    changed = options.samples or options.scenes or options.compile or options.low_memory
    by = "" if changed else f"python benchmarks/distillation.py {options.model}"
    conclude(options.model, config, found, device, precision, by)


if __name__ == "__main__":
    main()
