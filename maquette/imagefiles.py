"""Image files: reading any that people bring, and writing PNG with bytes that depend on the values alone.

Files come from outside, so their size is judged from the header before anything is decoded, only a few well-known
formats are tried, and whatever is wrong becomes one sentence.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError
from maquette.imagesizes import MAX_PIXELS, MIN_SIDE, READABLE, check_size
from maquette.matting import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


def read_image(path: str | Path) -> Float[Tensor, "c h w"]:
    """An image file as [3, H, W], or [4, H, W] if it has an alpha channel, in [0, 1], upright.

    PNG, JPEG, WebP, BMP, TIFF (the first frame of an animation): grey, palette, CMYK and 16-bit files become RGB(A),
    the orientation that a camera recorded is applied, an embedded colour profile is converted to sRGB. Raises
    UserError, in one sentence, for anything else, and before decoding for files above 16384 px a side or 64
    megapixels.
    """
    return torch.from_numpy(decode(Path(path))).permute(2, 0, 1).contiguous()


def decode(path: Path, about: int | None = None) -> Pixels:
    """An image file as float32 [H, W, 3 or 4] in [0, 1], upright, in sRGB.

    With `about`, a picture more than four times as long is reduced to no less than twice that many pixels a side,
    before the memory for its full size in floats is taken.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    _require_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # What is odd in a file but readable (a truncated EXIF block, a palette with transparency) is no one's concern.
        warnings.filterwarnings("ignore", category=UserWarning)
        try:
            with Image.open(path, formats=READABLE) as file:
                check_size(path, *file.size)
                file.load()
                image = _to_srgb(ImageOps.exif_transpose(file), file.info.get("icc_profile"))
                return _to_float(image if about is None else _reduced(image, about))
        except UserError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise UserError(
                f"{path} is larger than {MAX_PIXELS // 1_000_000} megapixels; make it smaller first"
            ) from None
        except UnidentifiedImageError:
            raise UserError(f"{path} is not an image that can be read; use PNG, JPEG, WebP, BMP or TIFF") from None
        except PermissionError:
            raise UserError(f"{path} may not be read; change its permissions") from None
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            LookupError,
            TypeError,
            OverflowError,
        ) as error:
            raise UserError(f"{path} is damaged and cannot be decoded ({error}); save it again") from None


def _require_file(path: Path) -> None:
    """UserError unless there is an ordinary file."""
    try:
        if path.is_file():
            return
        if path.is_dir():
            raise UserError(f"{path} is a folder; name one image file in it")
        there = path.exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"{path} cannot be looked at ({error.strerror}); name an image file") from None
    if there:
        raise UserError(f"{path} is a pipe or a device; name an image file")
    if re.match(r"(https?|ftp|s3|data):", str(path), re.IGNORECASE):
        raise UserError(f"{path} is an address, and nothing is downloaded; save the picture, and name that file")
    raise UserError(f"no image at {path}")


def _to_srgb(image: PillowImage, profile: bytes | None) -> PillowImage:
    """The picture in mode RGB or RGBA and sRGB's colours; a grey mode of 16 or 32 bits stays as it is."""
    from PIL import Image, ImageCms

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return image
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    alpha = image.convert("RGBA").getchannel("A") if has_alpha else None
    colour = image if image.mode in ("RGB", "CMYK") else image.convert("RGB")
    if profile is not None:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(colour, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            colour = colour if converted is None else converted
        except (ImageCms.PyCMSError, OSError):
            # A broken profile, or one of another colour space than the file's: the plain values are the best reading.
            pass
    colour = colour.convert("RGB")
    return colour if alpha is None else Image.merge("RGBA", (*colour.split(), alpha))


def _reduced(image: PillowImage, about: int) -> PillowImage:
    factor = max(image.size) // (2 * about)
    # A strip would lose its breadth, and is small as it is.
    if factor < 2 or min(image.size) < factor * MIN_SIDE or image.mode not in ("RGB", "RGBA"):
        return image
    # RGBa is premultiplied, so what is transparent has no say in the mean.
    return image.reduce(factor) if image.mode == "RGB" else image.convert("RGBa").reduce(factor).convert("RGBA")


def _to_float(image: PillowImage) -> Pixels:
    if image.mode in ("RGB", "RGBA"):
        pixels = np.array(image, dtype=np.float32)
        pixels /= 255
        return pixels
    stored = np.asarray(image)
    # Pillow reads 16-bit grey into I;16, and in some versions and formats into 32-bit I.
    grey = stored.astype(np.float32) / np.float32(1 if image.mode == "F" else 65535)
    if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= 1):
        kind = "0 to 1 of a float" if image.mode == "F" else "0 to 65535 of a 16-bit"
        raise ValueError(f"its grey values leave the range {kind} image")
    channels = [grey, grey, grey]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        channels.append((stored != transparent).astype(np.float32))
    return np.stack(channels, axis=-1)


def save_image(path: str | Path, image: Float[Tensor, "c h w"]) -> None:
    """Write [1, 3 or 4, H, W] in [0, 1] as a PNG: clamped and rounded to 8 bits; equal values give equal bytes.

    The file appears whole or not at all. Another suffix than .png is refused: a lossy prompt or view would surprise.
    """
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"images are written as .png, got {path.name}")
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise ValueError(f"an image to save is [1, 3 or 4, H, W], got {tuple(image.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"the image for {path.name} holds NaN or infinity")
    values = (image.detach().to("cpu", torch.float32).clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(buffer.getvalue())
    os.replace(unfinished, path)
