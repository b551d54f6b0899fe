"""Networks of a goldens folder, built from their configs and filled through the product's key tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maquette.diffusion.autoencoder import Autoencoder
from maquette.diffusion.unet import MultiViewUNet
from maquette.priors import layout_ldm
from maquette.priors.checkpoints import KeyTable, load
from tests.parity.golden import Golden, read_tensors


@dataclass(frozen=True)
class LoadedUNet:
    """A network with the table that found its parameters."""

    network: MultiViewUNet
    table: KeyTable
    image_weight: float
    """`ip_weight` of its config."""

    def features(self, ip: Tensor | None) -> dict[str, Tensor]:
        """The U-Net's image arguments for features of whichever level it has control of."""
        prompt = self.network.config.image_prompt
        if ip is None:
            return {}
        if prompt is None:
            raise ValueError("the case has image features but the network no image control")
        return {"local_features": ip} if prompt.local_dim else {"global_feature": ip}


def load_unet(golden: Golden, model: str) -> LoadedUNet:
    """The U-Net `model` of the folder."""
    config = golden.config(model)
    tensors: dict[str, Tensor] = {}
    for name in config["weights"]:
        tensors |= read_tensors(golden.folder / name)[0]
    published: dict[str, Any] = config["unet"]
    ours = layout_ldm.unet_config(published, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    network, table = MultiViewUNet(ours), layout_ldm.unet(ours)
    return LoadedUNet(filled(network, tensors, table, model), table, float(published.get("ip_weight", 1.0)))


def load_autoencoder(golden: Golden) -> Autoencoder:
    """The autoencoder that the case names, or the only one of the folder, or the one that READMEs name, vae_small."""
    configs = [path for path in sorted(golden.folder.glob("*.config.json")) if '"ddconfig"' in path.read_text()]
    names = [path.name.removesuffix(".config.json") for path in configs]
    named = golden.metadata.get("vae", names[0] if len(names) == 1 else "vae_small")
    if named not in names:
        raise ValueError(f"{golden.name} needs one autoencoder beside it, found {names}")
    return autoencoder_of(Golden(golden.folder / f"{named}.safetensors"))


def autoencoder_of(golden: Golden) -> Autoencoder:
    """The autoencoder whose weights are in this file."""
    config = layout_ldm.autoencoder_config(golden.config(golden.name))
    return filled(Autoencoder(config), golden.tensors, layout_ldm.autoencoder(config), golden.name, "weights.")


def filled(module: Any, tensors: dict[str, Tensor], table: KeyTable, source: str, prefix: str = "") -> Any:
    """The module with its parameters loaded, in evaluation mode, without gradients of its own."""
    # Not a number wherever the table forgets something.
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    load(module, tensors, table, prefix, source)
    assert isinstance(module, nn.Module)
    return module.eval().requires_grad_(False)
