"""How published priors are kept in memory: in which precision, and what waits elsewhere until it is needed.

A choice about the machine and not about the method, so it is no part of any method's config: `loading` sets it for
everything that is loaded inside. What a prior computes stays the same but for rounding. Attention needs no slicing:
PyTorch's own never builds the whole matrix (`diffusion.blocks.attend`), and autoencoders take one image at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from maquette.errors import UserError
from maquette.priors.codecs import KLCodec

P = TypeVar("P")
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Placement:
    """How networks are kept."""

    precision: Precision = "auto"
    """Of U-Net and encoders; auto is float16 on a GPU and float32 on a CPU. Autoencoders are always float32."""
    low_memory: bool = False
    """Evaluate the halves of guidance one after the other, compute the autoencoder's inside again for the gradient, and
    keep image encoders on the CPU between their calls, as text encoders always are: slower steps, less memory."""
    compile: bool = False
    """Compile U-Nets when they are first called, on a GPU into CUDA graphs: minutes at first, then faster steps."""

    def dtype(self, device: torch.device | str) -> torch.dtype:
        """The precision on a device. UserError for half precision where it cannot compute."""
        kind = torch.device(device).type
        if self.precision == "auto":
            return torch.float16 if kind == "cuda" else torch.float32
        if self.precision == "float16" and kind == "cpu":
            raise UserError("--precision float16 is for a GPU; on a CPU take float32, or bfloat16 to save memory")
        return getattr(torch, self.precision)


_current: ContextVar[Placement | None] = ContextVar("placement", default=None)


def current_placement() -> Placement:
    """What `loading` says here; float16 on a GPU, float32 on a CPU, everything in its place by default."""
    return _current.get() or Placement()


@contextmanager
def loading(placement: Placement) -> Iterator[None]:
    """Published priors loaded inside are kept so."""
    token = _current.set(placement)
    try:
        yield
    finally:
        _current.reset(token)


def placed(prior: P) -> P:
    """The prior as the current placement wants it, sharing its networks.

    On a GPU the text encoder leaves when it has spoken: words are encoded once (`multiview.MultiViewPrior.condition`).
    """
    given: Any = prior
    low_memory = current_placement().low_memory
    for name in ("text_encoder", "image_encoder"):
        encoder = getattr(given, name, None)
        leaves = low_memory or (name == "text_encoder" and given.device.type == "cuda")
        if leaves and isinstance(encoder, nn.Module):
            wait_on_cpu(encoder, given.device)
    if low_memory and isinstance(given.codec, KLCodec):
        given.codec.recompute = True
    if current_placement().compile:
        compile_network(given.network)
    return given.with_config(batch_conditions=False) if low_memory else given


def compile_network(network: nn.Module) -> None:
    """Compile a network in place: its names, its parameters and what it computes stay the same but for rounding.

    Every shape is compiled for itself, because CUDA graphs know one shape each. A prior asks for few of them.
    """
    on_gpu = any(parameter.device.type == "cuda" for parameter in network.parameters())
    network.compile(mode="reduce-overhead" if on_gpu else "default", dynamic=False)


def wait_on_cpu(module: nn.Module, device: torch.device | str) -> None:
    """Let a module be on `device` only while it computes; one that is being trained stays there.

    Its names and its results are as before. Encoders run once for each prompt and background, so the way costs little.
    """
    module.to("cpu")

    def come(module: nn.Module, _arguments: Any) -> None:
        module.to(device)

    def go(module: nn.Module, _arguments: Any, _result: Any) -> None:
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.to("cpu")

    module.register_forward_pre_hook(come)
    module.register_forward_hook(go)
