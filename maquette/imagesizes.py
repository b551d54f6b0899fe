"""Refusing pictures that are too large, from their headers alone; imports nothing heavy, so that it can come first."""

from __future__ import annotations

import warnings
from pathlib import Path

from maquette.errors import UserError

MIN_SIDE = 16
MAX_SIDE = 16384
MAX_PIXELS = 64_000_000
READABLE = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


def check_size(path: Path, width: int, height: int) -> None:
    """UserError for a picture above 16384 px a side or 64 megapixels."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise UserError(
            f"{path} has {width}x{height} px; at most {MAX_SIDE} px a side and {MAX_PIXELS // 1_000_000} megapixels "
            "can be read, so make it smaller first"
        )


def check_header(path: Path) -> None:
    """`check_size` of a file's header; whatever else is wrong with the file is left to its reader."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow's own limit is higher than ours and would answer first, with less to say.
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            if not path.is_file():  # opening a pipe would wait for whoever writes to it
                return
            with Image.open(path, formats=READABLE) as file:
                size = file.size
        except Exception:
            return
        finally:
            Image.MAX_IMAGE_PIXELS = before
    check_size(path, *size)
