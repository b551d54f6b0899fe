"""Our ImageDream U-Net beside diffusers' `UNet2DConditionModel`: `python benchmarks/unet.py [--widths 64 128]`.

Both have the same width, levels, heads and context, and see the same number of tokens: ours 4 views of one object and
the prompt's view, which attend to each other; theirs the same number of images, each alone, and again one image of as
many pixels (a strip of the views), whose self-attention then is as large as ours. Measured is one evaluation without
gradients, and one with the gradient to the latents. Beside the time stands the arithmetic, counted by PyTorch, because
joint attention and image tokens are more of it: what counts is time per FLOP. Inputs are the same random numbers, and
so are the weights, whose names are translated by our key table; so the single-view outputs are compared too.

Needs diffusers (the extra `published`). On a CPU: one thread, process time, the fastest of several rounds. On a GPU
(`--device cuda`, by default where there is one): time between two synchronisations, and the peak of its memory;
`--full` takes the published size, 4 levels of 320 channels at 32 x 32 latent pixels, in the precision of `--dtype`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maquette.diffusion.unet import ImagePromptConfig, MultiViewUNet, UNetConfig
from maquette.errors import UserError
from maquette.priors import layout_diffusers
from maquette.run.run import resolve_device

VIEWS, TOKENS = 5, 77
"""Four views and the prompt's; words."""


@dataclass(frozen=True)
class Contender:
    """A network with everything bound but the latents."""

    name: str
    latents: Tensor
    call: Callable[[Tensor], Tensor]

    def forward(self) -> None:
        with torch.no_grad():
            self.call(self.latents)

    def both(self) -> None:
        latents = self.latents.clone().requires_grad_()
        self.call(latents).square().sum().backward()
        assert latents.grad is not None


def contenders(
    width: int, side: int, depth: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Contender], float]:
    """Ours with and without what ImageDream adds, and diffusers' twice; the largest difference of the plain outputs."""
    from diffusers import UNet2DConditionModel

    mult, attention = (1, 2, 4, 4)[:depth], (True, True, True, False)[4 - depth :]
    context_dim = 4 * width
    plain = UNetConfig(
        channels=width, channel_mult=mult, res_blocks=(2,) * depth, attention=attention, head_width=64,
        context_dim=context_dim, camera_dim=None,
    )  # fmt: skip
    torch.manual_seed(0)
    widths = [width * m for m in mult]
    theirs: Any = UNet2DConditionModel(
        sample_size=side, in_channels=4, out_channels=4, block_out_channels=tuple(widths), layers_per_block=2,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        attention_head_dim=[w // 64 for w in widths], cross_attention_dim=context_dim, use_linear_projection=True,
    ).eval().requires_grad_(False)  # fmt: skip
    same = MultiViewUNet(plain).eval().requires_grad_(False)
    same.load_state_dict(layout_diffusers.unet(plain).read(theirs.state_dict()))
    joint = MultiViewUNet(replace(plain, camera_dim=16)).eval().requires_grad_(False)
    whole = MultiViewUNet(replace(plain, camera_dim=16, image_prompt=ImagePromptConfig())).eval().requires_grad_(False)

    for network in (theirs, same, joint, whole):
        network.to(device) if dtype is torch.float32 else network.to(device, dtype)
    views = torch.randn(1, VIEWS, 4, side, side).to(device, dtype)
    context, t = torch.randn(1, TOKENS, context_dim).to(device, dtype), torch.tensor([500], device=device)
    camera, features = (torch.randn(1, *shape).to(device, dtype) for shape in ((VIEWS, 16), (257, 1280)))
    images, strip = views[0], views[0].permute(1, 2, 0, 3).reshape(1, 4, side, VIEWS * side)
    words = context.expand(VIEWS, -1, -1)

    def single(x: Tensor) -> Tensor:
        return same(x[:, None], t.expand(VIEWS), words)[:, 0]

    listed = [
        Contender("ours: ImageDream, joint views, words and picture", views,
                  lambda x: whole(x, t, context, camera, local_features=features)),
        Contender("ours: MVDream, joint views, words", views, lambda x: joint(x, t, context, camera)),
        Contender("ours: single images, words", images, single),
        Contender("diffusers: single images, words", images, lambda x: theirs(x, t.expand(VIEWS), words).sample),
        Contender("diffusers: one strip of as many pixels, words", strip, lambda x: theirs(x, t, context).sample),
    ]  # fmt: skip
    with torch.no_grad():
        expected = listed[3].call(images)
        apart = (single(images) - expected).abs().max() / expected.abs().max()
    return listed, float(apart)


def seconds_of(work: Callable[[], None], rounds: int, device: torch.device) -> float:
    """Seconds of the fastest of several rounds, after one that is not counted: of a core, or of the GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(rounds + 1):
        began = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - began)
    return min(times[1:])


def peak_gib(work: Callable[[], None], device: torch.device) -> str:
    """Peak of the GPU's memory during the work; a dash on a CPU."""
    if device.type != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}"


def arithmetic(work: Callable[[], None]) -> float:
    """Floating-point operations, those of attention too, which are only seen where it is spelled out."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], help="channels of the finest level")
    parser.add_argument("--side", type=int, default=16, help="latent pixels along the side of a view")
    parser.add_argument("--depth", type=int, default=3, choices=[2, 3, 4], help="levels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="the published size: 4 levels of 320, 32 latent pixels")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float16 on a GPU")
    options = parser.parse_args()
    try:
        device = resolve_device(options.device)
    except UserError as error:
        parser.error(str(error))
    dtype = getattr(torch, options.dtype or ("float16" if device.type == "cuda" else "float32"))
    if options.full:
        options.widths, options.side, options.depth = [320], 32, 4
    torch.set_num_threads(1)
    name = platform.processor() or platform.machine() if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}, {VIEWS} views of")
    print(f"{options.side} x {options.side} latent pixels, {options.depth} levels\n")
    both = "forward + backward GFLOP | ms | GFLOP/s"
    print(f"| width | network | forward GFLOP | ms | GFLOP/s | {both} | peak GiB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    apart = {}
    for width in options.widths:
        listed, apart[width] = contenders(width, options.side, options.depth, device, dtype)
        for one in listed:
            cells = []
            for work in (one.forward, one.both):
                flops, seconds = arithmetic(work), seconds_of(work, options.rounds, device)
                cells.append(f"{flops / 1e9:.1f} | {seconds * 1e3:.1f} | {flops / seconds / 1e9:.1f}")
            print(f"| {width} | {one.name} | {' | '.join(cells)} | {peak_gib(one.both, device)} |", flush=True)
    for width, value in apart.items():
        print(f"\nwidth {width}: outputs of the two single-image networks differ by at most {value:.1e} of the largest")


if __name__ == "__main__":
    main()
