"""Inception v3 (arXiv:1512.00567), the classifier behind the inception scores.

Two published sets of weights exist under the same parameter names. torchvision's has 1000 classes; the port of
TensorFlow's, which FID and IS packages use (`pt_inception-2015-12-05`), has 1008 outputs and pools a little
differently: borders do not count in its averages, and its last block takes a maximum. Which one a file is shows in
its last layer. Figures of the two do not compare: say which (`InceptionClassifier.name` does).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.evaluation.weights_file import load_strictly, read_state_dict

TENSORFLOW_CLASSES = 1008
SIZE = 299


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        pads = (padding, padding) if padding is not None else (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(channels_in, channels, sides, stride, pads, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches joined along the channels; parameters carry the published names."""

    def __init__(self, branches: dict[str, Unit]) -> None:
        super().__init__()
        for name, unit in branches.items():
            self.add_module(name, unit)

    def chain(self, x: Tensor, *names: str) -> Tensor:
        """Units one after the other."""
        for name in names:
            x = getattr(self, name)(x)
        return x


def _average(x: Tensor, count_border: bool) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=count_border)


class BlockA(Mixed):
    """35 x 35: 1x1, 5x5, two 3x3, pool."""

    def __init__(self, channels_in: int, pool: int, count_border: bool) -> None:
        super().__init__(
            {
                "branch1x1": Unit(channels_in, 64, 1),
                "branch5x5_1": Unit(channels_in, 48, 1),
                "branch5x5_2": Unit(48, 64, 5),
                "branch3x3dbl_1": Unit(channels_in, 64, 1),
                "branch3x3dbl_2": Unit(64, 96, 3),
                "branch3x3dbl_3": Unit(96, 96, 3),
                "branch_pool": Unit(channels_in, pool, 1),
            }
        )
        self.count_border = count_border

    def forward(self, x: Tensor) -> Tensor:
        triple = self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        pooled = self.chain(_average(x, self.count_border), "branch_pool")
        return torch.cat([self.chain(x, "branch1x1"), self.chain(x, "branch5x5_1", "branch5x5_2"), triple, pooled], 1)


class BlockB(Mixed):
    """35 x 35 to 17 x 17."""

    def __init__(self, channels_in: int) -> None:
        super().__init__(
            {
                "branch3x3": Unit(channels_in, 384, 3, 2, 0),
                "branch3x3dbl_1": Unit(channels_in, 64, 1),
                "branch3x3dbl_2": Unit(64, 96, 3),
                "branch3x3dbl_3": Unit(96, 96, 3, 2, 0),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        triple = self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.chain(x, "branch3x3"), triple, F.max_pool2d(x, 3, 2)], 1)


class BlockC(Mixed):
    """17 x 17 with 7-long kernels in both directions."""

    def __init__(self, channels_in: int, width: int, count_border: bool) -> None:
        across, down = (1, 7), (7, 1)
        super().__init__(
            {
                "branch1x1": Unit(channels_in, 192, 1),
                "branch7x7_1": Unit(channels_in, width, 1),
                "branch7x7_2": Unit(width, width, across),
                "branch7x7_3": Unit(width, 192, down),
                "branch7x7dbl_1": Unit(channels_in, width, 1),
                "branch7x7dbl_2": Unit(width, width, down),
                "branch7x7dbl_3": Unit(width, width, across),
                "branch7x7dbl_4": Unit(width, width, down),
                "branch7x7dbl_5": Unit(width, 192, across),
                "branch_pool": Unit(channels_in, 192, 1),
            }
        )
        self.count_border = count_border

    def forward(self, x: Tensor) -> Tensor:
        single = self.chain(x, "branch7x7_1", "branch7x7_2", "branch7x7_3")
        double = self.chain(x, *(f"branch7x7dbl_{index}" for index in range(1, 6)))
        pooled = self.chain(_average(x, self.count_border), "branch_pool")
        return torch.cat([self.chain(x, "branch1x1"), single, double, pooled], 1)


class BlockD(Mixed):
    """17 x 17 to 8 x 8."""

    def __init__(self, channels_in: int) -> None:
        super().__init__(
            {
                "branch3x3_1": Unit(channels_in, 192, 1),
                "branch3x3_2": Unit(192, 320, 3, 2, 0),
                "branch7x7x3_1": Unit(channels_in, 192, 1),
                "branch7x7x3_2": Unit(192, 192, (1, 7)),
                "branch7x7x3_3": Unit(192, 192, (7, 1)),
                "branch7x7x3_4": Unit(192, 192, 3, 2, 0),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        long = self.chain(x, *(f"branch7x7x3_{index}" for index in range(1, 5)))
        return torch.cat([self.chain(x, "branch3x3_1", "branch3x3_2"), long, F.max_pool2d(x, 3, 2)], 1)


class BlockE(Mixed):
    """8 x 8 with branches that fork into 1x3 and 3x1."""

    def __init__(self, channels_in: int, count_border: bool, maximum: bool) -> None:
        across, down = (1, 3), (3, 1)
        super().__init__(
            {
                "branch1x1": Unit(channels_in, 320, 1),
                "branch3x3_1": Unit(channels_in, 384, 1),
                "branch3x3_2a": Unit(384, 384, across),
                "branch3x3_2b": Unit(384, 384, down),
                "branch3x3dbl_1": Unit(channels_in, 448, 1),
                "branch3x3dbl_2": Unit(448, 384, 3),
                "branch3x3dbl_3a": Unit(384, 384, across),
                "branch3x3dbl_3b": Unit(384, 384, down),
                "branch_pool": Unit(channels_in, 192, 1),
            }
        )
        self.count_border, self.maximum = count_border, maximum

    def forward(self, x: Tensor) -> Tensor:
        single = self.chain(x, "branch3x3_1")
        double = self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2")
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else _average(x, self.count_border)
        parts = [
            self.chain(x, "branch1x1"),
            *(self.chain(single, f"branch3x3_2{side}") for side in "ab"),
            *(self.chain(double, f"branch3x3dbl_3{side}") for side in "ab"),
            self.chain(pooled, "branch_pool"),
        ]
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """Pictures [n, 3, 299, 299] in [-1, 1] to logits."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        tensorflow = classes == TENSORFLOW_CLASSES
        border = not tensorflow
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, 1, 0)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            BlockA(width, pool, border) for width, pool in ((192, 32), (256, 64), (288, 64))
        )
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (
            BlockC(768, width, border) for width in (128, 160, 160, 192)
        )
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, border, maximum=False)
        self.Mixed_7c = BlockE(2048, border, maximum=tensorflow)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Float[Tensor, "n 3 299 299"]) -> Float[Tensor, "n k"]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return self.fc(x.mean((-2, -1)))


class InceptionClassifier:
    """An `ImageClassifier` from a file of published weights."""

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        """Raises UserError for a file that is missing, damaged or of another network."""
        state = read_state_dict(path)
        if "fc.weight" not in state:
            raise UserError(f"{path} is of another model: it lacks 'fc.weight', the last layer of Inception v3")
        classes = len(state["fc.weight"])
        network = InceptionV3(classes)
        # The auxiliary head serves training only.
        load_strictly(network, state, path, ignored=("AuxLogits.",))
        self.network, self.device = network.to(device).eval(), device
        self.name = f"inception{classes}"

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Pictures in [0, 1] of any size, resized to 299 px (bilinear, antialiased), float32 on the CPU."""
        size = (SIZE, SIZE)
        parts = []
        for part in images.float().split(16):
            scaled = F.interpolate(part.to(self.device), size, mode="bilinear", align_corners=False, antialias=True)
            parts.append(self.network(2 * scaled - 1).cpu())
        return torch.cat(parts)
