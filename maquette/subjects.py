"""Pictures with captions, and the few casual photos of a subject that a person gives.

Pixels are 8-bit here: photos are, hundreds of pictures of a class fit the memory, and what is saved is what is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from maquette.errors import UserError
from maquette.imagefiles import decode, read_image, save_image
from maquette.images import Views, read_mask
from maquette.matting import Pixels
from maquette.videofiles import SUFFIXES as VIDEO_SUFFIXES
from maquette.videofiles import read_frames
from maquette.wording import SUBJECT, require_subject

FEWEST, MOST = 3, 6
"""Photos of a subject (DreamBooth3D's range)."""
PHOTO_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".heic", ".heif", ".avif", ".jfif", ".dng", ".cr2", ".nef", ".arw",
)  # fmt: skip
"""What is meant as a photo; those that cannot be read are named, not passed over."""
SAME = 3 / 255
"""Mean difference on a coarse grid below which two photos are one: saving again changes less, moving changes more."""


@dataclass(frozen=True)
class CaptionedImages:
    """Square pictures, each with what it shows."""

    pixels: UInt8[Tensor, "n 3 s s"]
    """sRGB."""
    captions: tuple[str, ...]
    """One a picture."""
    masks: UInt8[Tensor, "n 1 s s"] | None = None
    """Coverage of the object, 255 inside, or nothing is known."""
    shares: tuple[float, ...] | None = None
    """How often each is drawn, relative to the others; equally often if not given."""

    def __post_init__(self) -> None:
        count = len(self.pixels)
        if len(self.captions) != count or (self.shares is not None and len(self.shares) != count):
            raise ValueError(f"{count} pictures need as many captions (and shares), got {len(self.captions)}")
        if self.masks is not None and self.masks.shape != (count, 1, *self.pixels.shape[2:]):
            raise ValueError(f"masks must fit the pictures' {tuple(self.pixels.shape)}, got {tuple(self.masks.shape)}")

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, index: Sequence[int] | slice = slice(None)) -> Float[Tensor, "k 3 s s"]:
        """Some of the pictures in [0, 1]."""
        return self.pixels[index].float() / 255

    def composite(self, index: Sequence[int], backgrounds: Float[Tensor, "k 3"]) -> Float[Tensor, "k 3 s s"]:
        """Some of the objects, each on a flat colour; the pictures themselves where there are no masks."""
        if self.masks is None:
            return self.images(index)
        masks = self.masks[index].float() / 255
        return masks * self.images(index) + (1 - masks) * backgrounds[:, :, None, None]

    def captioned(self, captions: str | Sequence[str]) -> CaptionedImages:
        """The same pictures with one caption for all, or other captions."""
        return replace(self, captions=(captions,) * len(self) if isinstance(captions, str) else tuple(captions))

    def joined(self, others: CaptionedImages, share: float | None = None) -> CaptionedImages:
        """These and others of the same size; `share` is how often one of these is drawn (equally often if not given).

        Both have masks or neither has (ValueError): without its mask a cut-out picture has colours of no meaning around
        the object.
        """
        if share is not None and not 0 < share < 1:
            raise UserError(f"the share of the first pictures lies between 0 and 1, got {share}")
        if (self.masks is None) != (others.masks is None):
            raise ValueError("pictures with masks cannot be joined to pictures without")
        shares = None
        if share is not None:
            shares = (share / len(self),) * len(self) + ((1 - share) / len(others),) * len(others)
        return CaptionedImages(
            torch.cat([self.pixels, others.pixels]),
            self.captions + others.captions,
            None if self.masks is None or others.masks is None else torch.cat([self.masks, others.masks]),
            shares,
        )

    @classmethod
    def from_images(
        cls,
        images: Float[Tensor, "n 3 s s"],
        captions: Sequence[str],
        masks: Float[Tensor, "n 1 s s"] | None = None,
    ) -> CaptionedImages:
        """Pictures in [0, 1], rounded to 8 bits."""
        return cls(_bytes(images), tuple(captions), None if masks is None else _bytes(masks))

    @classmethod
    def from_views(cls, views: Views, captions: Sequence[str]) -> CaptionedImages:
        """Posed views as pictures; their cameras are not kept, so their captions should say the side."""
        return cls.from_images(views.images, captions, views.masks)

    def save(self, folder: Path) -> None:
        """Write NNN.png (with the mask as alpha) and captions.json."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [f"{index:03d}.png" for index in range(len(self))]
        for index, file in enumerate(files):
            parts = [self.pixels[index]] if self.masks is None else [self.pixels[index], self.masks[index]]
            save_image(folder / file, torch.cat(parts).float() / 255)
        rows = [{"file": file, "caption": caption} for file, caption in zip(files, self.captions, strict=True)]
        account = {"size": self.pixels.shape[-1], "shares": self.shares, "pictures": rows}
        (folder / "captions.json").write_text(json.dumps(account, indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> CaptionedImages:
        """Read what `save` wrote. UserError where a file is missing or damaged."""
        path = folder / "captions.json"
        if not path.is_file():
            raise UserError(f"there are no captioned pictures in {folder}: captions.json is missing")
        account = json.loads(path.read_text("utf-8"))
        pictures = [_bytes(read_image(folder / row["file"])) for row in account["pictures"]]
        stack = torch.stack(pictures) if pictures else torch.zeros(0, 3, *[account["size"]] * 2, dtype=torch.uint8)
        shares = None if account["shares"] is None else tuple(account["shares"])
        captions = tuple(row["caption"] for row in account["pictures"])
        return cls(stack[:, :3], captions, stack[:, 3:] if stack.shape[1] == 4 else None, shares)


def _bytes(images: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n c h w"]:
    return (images.detach().to("cpu", torch.float32).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Subject:
    """A person's own thing: its photos, and the word for what it is."""

    photos: CaptionedImages
    """With the instance prompt, "a photo of a [v] dog"."""
    noun: str
    """The class, "dog"."""
    names: tuple[str, ...]
    """Where each photo comes from: its file's name, or the frame's number."""
    notes: tuple[str, ...] = ()
    """What a person should know about the choice, a sentence each."""

    @property
    def instance_prompt(self) -> str:
        """What the photos are called."""
        return f"a photo of a {SUBJECT} {self.noun}"

    @property
    def class_prompt(self) -> str:
        """What any thing of the class is called."""
        return f"a photo of a {self.noun}"


def read_subject(
    source: Path | Sequence[Path],
    *,
    noun: str,
    caption: str | None = None,
    masks: Path | None = None,
    size: int = 512,
    fewest: int = FEWEST,
    most: int = MOST,
) -> Subject:
    """A subject from a folder of photos, a list of them, or a video, as squares of `size` px around the subject.

    Photos are turned as the camera noted. Masks are taken from a photo's alpha channel or from the file of the same
    stem in the folder `masks`. Of more than `most` photos, and of a video, the sharp ones that differ most are taken.
    `caption` is the person's wish and is only checked for [v]. UserError for too few photos, for files that cannot be
    read (all named), for the same photo twice, and for a caption without [v].
    """
    if not noun.strip():
        raise UserError('the subject needs a word for what it is, such as "dog"; give it with --subject')
    if caption is not None:
        require_subject(caption)
    if isinstance(source, Path) and source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES:
        frames = read_frames(source, most)
        pictures: list[Photo] = [(f"frame {number}", pixels, None) for number, pixels in frames]
        notes = [f"{most} frames were taken from {source.name}: {', '.join(str(number) for number, _ in frames)}"]
    else:
        pictures, notes = _read_photos(source, masks, fewest, 2 * size)
        _refuse_duplicates([(name, pixels) for name, pixels, _ in pictures])
        if len(pictures) > most:
            pictures = [pictures[index] for index in _most_different([pixels for _, pixels, _ in pictures], most)]
            notes.append(f"{most} photos are enough; taken were {', '.join(name for name, _, _ in pictures)}")
    squares = [_square(pixels, mask, size) for _, pixels, mask in pictures]
    have_masks = any(mask is not None for _, _, mask in pictures)
    without = [name for name, _, mask in pictures if mask is None]
    if have_masks and without:
        notes.append(f"{', '.join(without)} have no mask and keep their background")
    subject = Subject(
        CaptionedImages.from_images(
            torch.stack([image for image, _ in squares]),
            [""] * len(squares),
            torch.stack([mask for _, mask in squares]) if have_masks else None,
        ),
        noun.strip(),
        tuple(name for name, _, _ in pictures),
        tuple(notes),
    )
    return replace(subject, photos=subject.photos.captioned(subject.instance_prompt))


Photo = tuple[str, Pixels, Pixels | None]
"""Name, colours [H, W, 3] and mask [H, W]."""


def _read_photos(
    source: Path | Sequence[Path], masks: Path | None, fewest: int, about: int
) -> tuple[list[Photo], list[str]]:
    """The photos that a person means, all readable, at least `fewest`."""
    if isinstance(source, Path):
        if not source.is_dir():
            raise UserError(f"{source} is neither a folder of photos nor a video; give one with {FEWEST}-{MOST} photos")
        inside = sorted(item for item in source.iterdir() if item.is_file() and not item.name.startswith("."))
        files = [item for item in inside if item.suffix.lower() in PHOTO_SUFFIXES]
        place = str(source)
    else:
        files, place = list(source), "the list"
    notes: list[str] = []
    photos: list[Photo] = []
    faults: list[str] = []
    for path in files:
        try:
            pixels = decode(path, about)
            mask = pixels[..., 3] if pixels.shape[-1] == 4 and pixels[..., 3].min() <= 0.5 else None
            if masks is not None and (found := _mask_of(path, masks)) is not None:
                mask = read_mask(found, (pixels.shape[0], pixels.shape[1]))
            photos.append((path.name, np.ascontiguousarray(pixels[..., :3]), mask))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError(f"{len(faults)} of {len(files)} photos cannot be used: {'; '.join(faults)}")
    if len(photos) < fewest:
        raise UserError(f"{place} holds {len(photos)} photos, and a subject needs at least {fewest}; add more")
    return photos, notes


def _mask_of(photo: Path, masks: Path) -> Path | None:
    if not masks.is_dir():
        raise UserError(f"no folder of masks at {masks}")
    found = sorted(
        item for item in masks.iterdir() if item.stem == photo.stem and item.suffix.lower() in PHOTO_SUFFIXES
    )
    return found[0] if found else None


def _coarse(pixels: Pixels) -> Pixels:
    """Colours [16 * 16 * 3] of a picture of any size."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    small = F.interpolate(tensor, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    return small.flatten().numpy()


def _refuse_duplicates(pictures: Sequence[tuple[str, Pixels]]) -> None:
    seen: list[tuple[str, Pixels]] = []
    for name, pixels in pictures:
        coarse = _coarse(pixels)
        for other, known in seen:
            if float(np.abs(coarse - known).mean()) < SAME:
                raise UserError(f"{name} and {other} are the same photo; a subject needs different ones, so remove one")
        seen.append((name, coarse))


def _most_different(pictures: Sequence[Pixels], count: int) -> list[int]:
    """Indices, in order, of pictures that are far from each other, starting with the one farthest from the mean."""
    coarse = np.stack([_coarse(pixels) for pixels in pictures])
    taken = [int(np.argmax(np.abs(coarse - coarse.mean(axis=0)).mean(axis=1)))]
    while len(taken) < count:
        distance = np.min([np.abs(coarse - coarse[index]).mean(axis=1) for index in taken], axis=0)
        distance[taken] = -1.0
        taken.append(int(np.argmax(distance)))
    return sorted(taken)


def _square(pixels: Pixels, mask: Pixels | None, size: int) -> tuple[Float[Tensor, "3 s s"], Float[Tensor, "1 s s"]]:
    """The largest square that lies in the picture, around the mask's centre or else the picture's, at `size` px.

    Where the masked object is longer than that square, the picture is continued by its border so that all of it stays.
    """
    height, width = pixels.shape[:2]
    side, centre = min(height, width), (height / 2, width / 2)
    coverage = np.ones((height, width), np.float32) if mask is None else mask.astype(np.float32)
    if mask is not None:
        rows, columns = np.flatnonzero((mask > 0.5).any(axis=1)), np.flatnonzero((mask > 0.5).any(axis=0))
        if len(rows):
            centre = ((rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2)
            side = max(side, int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
    pad_y, pad_x = max(0, side - height), max(0, side - width)
    top = int(np.clip(round(centre[0] - side / 2), -pad_y, height - side + pad_y))
    left = int(np.clip(round(centre[1] - side / 2), -pad_x, width - side + pad_x))
    around = ((pad_y, pad_y), (pad_x, pad_x))
    colours = np.pad(pixels, (*around, (0, 0)), mode="edge")
    coverage = np.pad(coverage, around, mode="edge" if mask is None else "constant")
    both = np.concatenate([colours, coverage[..., None]], axis=-1)
    both = both[top + pad_y : top + pad_y + side, left + pad_x : left + pad_x + side]
    tensor = torch.from_numpy(np.ascontiguousarray(both)).permute(2, 0, 1)[None]
    small = F.interpolate(tensor, (size, size), mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)
    return small[:3], small[3:]
