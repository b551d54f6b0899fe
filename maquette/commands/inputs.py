"""What goes into a run: a person's picture and what they say of it, as a prompt and as settings of the run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maquette.errors import UserError
from maquette.images import CameraEstimate, Prompt, read_prompt
from maquette.run import file_sha256

if TYPE_CHECKING:
    from maquette.commands.method import Options


def read_picture(image: Path, caption: str, options: Options) -> Prompt:
    """The prompt of a picture, cut out and seen from where the options say. UserError where they contradict."""
    if options.mask is not None and options.matting != "auto":
        raise UserError(f"--mask says already what the object is; leave --matting {options.matting} out, or the mask")
    announce_matting(options.matting)
    prompt = read_prompt(image, mask=options.mask, caption=caption, negative=options.negative, matting=options.matting)
    return with_elevation(prompt, options.elevation)


def announce_matting(matting: str) -> None:
    """A note where a way of cutting out may have to fetch something first."""
    if matting == "rembg":
        print("note: rembg fetches its network when it is first used (176 MB), and keeps it", file=sys.stderr)


def with_elevation(prompt: Prompt, elevation: float | None) -> Prompt:
    """The prompt with a camera that the person vouches for, seen from the front."""
    if elevation is None:
        return prompt
    if not -90 <= elevation <= 90:
        raise UserError(f"--elevation: expected degrees from -90 to 90, got {elevation:g}")
    return prompt.with_camera(CameraEstimate(0.0, elevation, 1.0, 0.0, True))


def describe_inputs(image: Path, options: Options) -> dict[str, Any]:
    """What goes in, by name and content and not by place."""
    inputs: dict[str, Any] = {"image": image.name, "image_sha256": file_sha256(image)}
    if options.mask is None:
        inputs["matting"] = options.matting
    else:
        inputs |= {"mask": options.mask.name, "mask_sha256": file_sha256(options.mask)}
    for name in ("caption", "negative", "elevation", "preset", "quality"):
        if (value := getattr(options, name)) not in ("", None):
            inputs[name] = value
    return inputs
