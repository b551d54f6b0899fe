"""U-Net cases: one call of a small network, text only or image-prompted, with activations of named sub-modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from maquette.priors.checkpoints import KeyTable
from tests.parity.golden import NETWORK, Checks, Golden, Kind, needs
from tests.parity.imagedream.models import load_unet


def run(golden: Golden, checks: Checks) -> None:
    """The plain call, and its variants: another image weight, zeroed features, zeroed prompt latent."""
    model = load_unet(golden, golden.name.split(".case_")[0])
    given = golden.under("in.")
    frames = int(golden.metadata["num_frames"])

    def per_scene(name: str) -> Tensor | None:
        return given[name].unflatten(0, (-1, frames)) if name in given else None

    x, ip, ip_img = needs(given, "x").unflatten(0, (-1, frames)), per_scene("ip"), given.get("ip_img")
    t, context = (
        needs(given, "timesteps").unflatten(0, (-1, frames)),
        needs(given, "context").unflatten(0, (-1, frames)),
    )

    def call(features: Tensor | None, prompt_latent: Tensor | None, weight: float) -> Tensor:
        views = x if prompt_latent is None else torch.cat([x[:, :-1], prompt_latent[:, None]], dim=1)
        out = model.network(views, t, context, per_scene("camera"), image_weight=weight, **model.features(features))
        return out.flatten(0, 1)

    with torch.no_grad():
        expected = {name.removeprefix("mid.") for name in checks.expected if name.startswith("mid.")}
        with recorded(model.network, model.table, expected) as seen:
            checks.compare("out.eps", call(ip, ip_img, model.image_weight), NETWORK)
        for name, value in seen.items():
            reference = checks.expected[f"mid.{name}"]
            if value.numel() == reference.numel():
                checks.compare(f"mid.{name}", value.reshape(reference.shape), NETWORK)
        no_ip = None if ip is None else torch.zeros_like(ip)
        no_img = None if ip_img is None else torch.zeros_like(ip_img)
        checks.compare_if_expected("out.eps_zero_ip", lambda: call(no_ip, ip_img, model.image_weight), NETWORK)
        checks.compare_if_expected("out.eps_uncond_image", lambda: call(no_ip, no_img, model.image_weight), NETWORK)
        for name in checks.expected:
            if match := re.fullmatch(r"out\.eps_ipweight([0-9.]+)", name):
                checks.compare(name, call(ip, ip_img, float(match[1])), NETWORK)


@contextmanager
def recorded(network: nn.Module, table: KeyTable, published: set[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules that correspond to published ones, filled in while the network runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    hooks = []
    for name in published:
        module = corresponding(network, table, name)
        if module is not None:
            hooks.append(module.register_forward_hook(keep(name)))
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


def corresponding(network: nn.Module, table: KeyTable, published: str) -> nn.Module | None:
    """Our module whose output is that of the published module: same parameters, or the last one of a sequence."""
    inside = [e for e in table.entries if e.published[0].startswith(published + ".")]
    if not inside:
        return None
    common = _common_prefix([e.ours.split(".")[:-1] for e in inside])
    beneath = [e for e in table.entries if e.ours.startswith(common + ".")]
    module = network.get_submodule(common)
    if len(beneath) == len(inside) and not isinstance(module, nn.ModuleList) and _is_callable(module):
        return module
    children = {e.published[0].removeprefix(published + ".").split(".")[0] for e in inside}
    if not all(child.isdigit() for child in children):
        return None
    return corresponding(network, table, f"{published}.{max(children, key=int)}")


def _common_prefix(paths: list[list[str]]) -> str:
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _is_callable(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


KIND = Kind("unet", lambda golden: ".case_" in golden.name and "in.timesteps" in golden.tensors, run)
