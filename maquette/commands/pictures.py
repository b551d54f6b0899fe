"""Pictures that a command writes for a person to choose from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 128
"""Pixels along the side of a picture on a sheet; smaller pictures are enlarged without smoothing."""
MARGIN = 72
"""Pixels for the names of rows."""


def labelled_rows(
    rows: Sequence[Float[Tensor, "v 3 h w"]], names: Sequence[str], columns: Sequence[str]
) -> Float[Tensor, "3 H W"]:
    """Rows of pictures of one size with a name beside each row and above each column, on white."""
    height, width = rows[0].shape[-2:]
    scale = max(1, -(-SMALLEST // height))
    height, width = height * scale, width * scale
    line = 20
    page = Image.new("RGB", (MARGIN + len(columns) * (width + 4), line + len(rows) * (height + 4)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for column, name in enumerate(columns):
        draw.text((MARGIN + column * (width + 4) + 2, 2), name, fill="black", font=font)
    for row, (pictures, name) in enumerate(zip(rows, names, strict=True)):
        top = line + row * (height + 4)
        draw.text((4, top + height // 2 - 8), name, fill="black", font=font)
        large = F.interpolate(pictures, scale_factor=float(scale), mode="nearest")
        pixels = (large.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for column, picture in enumerate(pixels):
            page.paste(Image.fromarray(picture), (MARGIN + column * (width + 4), top))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).float() / 255
