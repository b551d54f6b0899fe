"""LPIPS (arXiv:1801.03924): the distance of two pictures in the feature maps of a classifier.

Five feature maps of VGG-16 or AlexNet, each pixel's vector scaled to unit length; squared differences weighted per
channel by learned non-negative weights ("heads", version 0.1), averaged over pixels, summed over maps. Tables of the
SyncDreamer lineage use VGG; values of the two networks do not compare. Both files are the published ones: the
backbone's classifier weights, and the heads of the lpips package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.evaluation.weights_file import load_strictly, read_state_dict

Backbone = Literal["vgg", "alex"]
# ImageNet's mean and standard deviation for pictures in [-1, 1], as the published code rounds them.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_CHANNELS: dict[Backbone, tuple[int, ...]] = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
# Indices, in the published `features` list, of the ReLUs whose outputs are compared.
_TAPS: dict[Backbone, tuple[int, ...]] = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}


def _vgg_features() -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for block, (count, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
        if block:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(count):
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
            width = channels
    return nn.Sequential(*layers)


def _alex_features() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


class Lpips(nn.Module):
    """The distance, with weights from `load`."""

    def __init__(self, backbone: Backbone = "vgg") -> None:
        super().__init__()
        if backbone not in get_args(Backbone):
            raise UserError(f"LPIPS has the backbones {', '.join(get_args(Backbone))}, got {backbone!r}")
        self.backbone: Backbone = backbone
        self.features = _vgg_features() if backbone == "vgg" else _alex_features()
        self.heads = nn.ParameterList(torch.ones(channels) for channels in _CHANNELS[backbone])

    @classmethod
    def load(cls, features: str | Path, heads: str | Path, backbone: Backbone = "vgg") -> Lpips:
        """From the backbone's published file and the lpips package's `weights/v0.1/<backbone>.pth`.

        Raises UserError naming the file that is missing or of another network.
        """
        model = cls(backbone)
        # What stands behind the features classifies, and the last pooling has no weights.
        load_strictly(model.features, _features_of(read_state_dict(features)), features)
        state = read_state_dict(heads)
        for index, head in enumerate(model.heads):
            name = f"lin{index}.model.1.weight"
            if name not in state or state[name].numel() != head.numel():
                raise UserError(f"{heads} is of another model: it lacks {name!r} with {head.numel()} weights")
            head.data = state[name].flatten().clone()
        return model.eval().requires_grad_(False)

    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Distances of pairs of pictures in [0, 1] (not [-1, 1], unlike the published function); differentiable."""
        shift, scale = (a.new_tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x, y = ((2 * image - 1 - shift) / scale for image in (a, b))
        total = a.new_zeros(len(a))
        heads = iter(self.heads)
        for index, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if index in _TAPS[self.backbone]:
                difference = (_unit(x) - _unit(y)).square()
                total = total + torch.einsum("nchw,c->nhw", difference, next(heads)).mean((-2, -1))
        return total


def _features_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}


def _unit(x: Tensor) -> Tensor:
    """Each pixel's vector at unit length, with the published guard against zero."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
