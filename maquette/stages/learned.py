"""A subject as a prior knows it: its photos as they were shown, and a partial and a full model of it.

Nothing here depends on what is asked of the subject, so one subject serves any number of captions (DreamBooth3D,
arXiv:2303.13508: stages 1 to 3 are run anew for each, the partial and the full model are not).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError
from maquette.images import frame_object
from maquette.matting import Matting, cut_out
from maquette.priors.adapters import Adapter
from maquette.priors.base import Prior
from maquette.run import Stage
from maquette.run.files import write_json
from maquette.run.fingerprints import fingerprint
from maquette.stages.likeness import PictureEncoder, on_white, sides
from maquette.stages.look import SamplingConfig, draw_scenes
from maquette.stages.personalize import words
from maquette.subjects import CaptionedImages, Subject
from maquette.wording import SUBJECT, VIEWS, with_view, without_subject


@dataclass(frozen=True)
class PhotosConfig:
    """How photos are made into what a prior is shown."""

    cut_out: Literal["given"] | Matting = "given"
    """Masks: only those that came with the photos, or found as in a single picture where none came."""
    margin: float | None = None
    """Space around the object, as a share of the side, to which each masked photo is framed; none: as it is."""
    prompt: str = "a photo of a [v] {noun}"
    """The instance prompt; without [v] it is that of the class. Small priors want the wording of their training."""
    captions: Literal["plain", "sides"] = "plain"
    """The instance prompt alone, or with the word of the side that the encoder sees in each photo."""

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 <= self.margin < 0.5:
            raise UserError(f"photos.margin is a share of the side in [0, 0.5), got {self.margin}")
        if SUBJECT not in self.prompt or "{noun}" not in self.prompt:
            raise UserError(
                f"photos.prompt names the subject as {SUBJECT} and its class as {{noun}}, got {self.prompt!r}"
            )


@dataclass(frozen=True)
class Photos:
    """Photos as they are shown to a prior, and what was seen in them."""

    pictures: CaptionedImages
    noun: str
    names: tuple[str, ...]
    prompt: str
    """The instance prompt, without the word of a side."""
    sides: tuple[str, ...] = ()
    """One of `VIEWS` for each photo; empty where there was nobody to ask."""
    notes: tuple[str, ...] = ()
    """What a person should know, a sentence each."""

    @property
    def class_prompt(self) -> str:
        """The instance prompt of any thing of the class."""
        return without_subject(self.prompt)

    @property
    def subject(self) -> Subject:
        """The subject whose photos these are, all under one prompt."""
        return Subject(self.pictures.captioned(self.prompt), self.noun, self.names, self.notes)

    def save(self, folder: Path) -> None:
        """Write the pictures and photos.json."""
        self.pictures.save(folder)
        account = {"noun": self.noun, "prompt": self.prompt, "names": self.names, "sides": self.sides}
        account |= {"notes": self.notes}
        write_json(folder / "photos.json", account)

    @classmethod
    def load(cls, folder: Path) -> Photos:
        """Read what `save` wrote."""
        account = json.loads((folder / "photos.json").read_text("utf-8"))
        many = {name: tuple(account[name]) for name in ("names", "sides", "notes")}
        return cls(CaptionedImages.load(folder), account["noun"], prompt=account["prompt"], **many)


def prepare_photos(
    subject: Subject, config: PhotosConfig, size: int, encoder: PictureEncoder | None, *, run: Stage
) -> Photos:
    """The photos of a subject at `size` px, cut out, framed and captioned as `config` says.

    With an encoder, photos that all show one side get a note: what no photo shows is invented, and often it is the same
    side again (the Janus problem). The encoder judges by the nearest of the class's four captions.
    """
    notes = list(subject.notes)
    photos = subject.photos
    if config.cut_out != "given":
        photos, found = _cut_out(photos, subject.names, config.cut_out)
        notes += found
    if config.margin is not None and photos.masks is not None:
        photos = _framed(photos, config.margin, size)
    photos = _resized(photos, size)
    seen: tuple[str, ...] = ()
    if encoder is not None:
        seen = tuple(sides(encoder, on_white(photos), subject.class_prompt))
        if len(set(seen)) == 1:
            notes.append(
                f"all {len(seen)} photos seem to show the {seen[0]} of the {subject.noun} (judged by "
                f"{encoder.name}), so the other sides will be invented and may repeat it; photos from other sides help"
            )
    prompt = config.prompt.format(noun=subject.noun)
    captions = [prompt] * len(photos)
    if config.captions == "sides":
        if encoder is None:
            raise UserError("captions with sides need an encoder that tells them; use photos.captions plain")
        captions = [with_view(prompt, side) for side in seen]
    run.log(event="photos", names=list(subject.names), sides=list(seen), notes=notes)
    return Photos(photos.captioned(captions), subject.noun, subject.names, prompt, seen, tuple(notes))


def _cut_out(photos: CaptionedImages, names: Sequence[str], matting: Matting) -> tuple[CaptionedImages, list[str]]:
    """The photos with masks: their own where they have one that leaves something out, else found."""
    images, masks, notes = [], [], []
    for index, name in enumerate(names):
        image = photos.images([index])[0]
        own = None if photos.masks is None else photos.masks[index].float() / 255
        if own is not None and own.min() <= 0.5:
            images.append(image)
            masks.append(own)
            continue
        rgb, alpha, account = cut_out(image.permute(1, 2, 0).contiguous().numpy(), matting, name=name)
        notes += [f"{name}: {warning}" for warning in account.warnings]
        images.append(torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1))
        masks.append(torch.from_numpy(np.ascontiguousarray(alpha))[None])
    return CaptionedImages.from_images(torch.stack(images), photos.captions, torch.stack(masks)), notes


def _framed(photos: CaptionedImages, margin: float, size: int) -> CaptionedImages:
    """Every object centred, its longer side 1 - 2 `margin` of the picture."""
    assert photos.masks is not None
    masks = photos.masks.float() / 255
    framed = [frame_object(image, mask, size, margin) for image, mask in zip(photos.images(), masks, strict=True)]
    return CaptionedImages.from_images(
        torch.stack([prompt.image for prompt in framed]), photos.captions, torch.stack([p.mask for p in framed])
    )


def _resized(photos: CaptionedImages, size: int) -> CaptionedImages:
    """The photos at the prior's own size."""
    if photos.pixels.shape[-1] == size:
        return photos

    def smaller(tensor: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s s"]:
        resize = torch.nn.functional.interpolate
        return resize(tensor, (size, size), mode="bilinear", align_corners=False, antialias=True)

    masks = None if photos.masks is None else smaller(photos.masks.float() / 255)
    return CaptionedImages.from_images(smaller(photos.images()), photos.captions, masks)


@dataclass(frozen=True)
class LearnedSubject:
    """What a prior learned about a subject."""

    photos: Photos
    partial: Adapter
    """Half of the likeness, all of the viewpoints."""
    full: Adapter
    """The likeness."""
    class_pictures: CaptionedImages | None
    """What the prior thought of the class before; None where it is not kept."""

    def fingerprint(self) -> str:
        """Covers both models and the pictures."""
        return fingerprint((self.photos, self.partial, self.full, self.class_pictures))

    def save(self, folder: Path) -> None:
        """Write photos/, partial/, full/ and class/."""
        self.photos.save(folder / "photos")
        self.partial.save(folder / "partial")
        self.full.save(folder / "full")
        if self.class_pictures is not None:
            self.class_pictures.save(folder / "class")

    @classmethod
    def load(cls, folder: Path) -> LearnedSubject:
        """Read what `save` wrote. UserError where a part is missing or damaged."""
        kept = folder / "class"
        return cls(
            Photos.load(folder / "photos"),
            Adapter.load(folder / "partial"),
            Adapter.load(folder / "full"),
            CaptionedImages.load(kept) if kept.is_dir() else None,
        )


def keep_learned(
    photos: Photos, partial: Adapter, full: Adapter, class_pictures: CaptionedImages | None, *, run: Stage
) -> LearnedSubject:
    """The subject as one result of a run, where another run finds it (`find_learned`)."""
    run.log(event="learned", partial=partial.steps, full=full.steps)
    return LearnedSubject(photos, partial, full, class_pictures)


def find_learned(run_folder: Path) -> LearnedSubject:
    """The subject that a run learned. UserError for a folder without one."""
    folder = run_folder / "stages" / "subject" / "result"
    if not (run_folder / "stages" / "subject" / "stage.json").is_file():
        raise UserError(
            f"{run_folder} holds no subject that was learned; name a run of `maquette dreambooth3d` that came past "
            "its first stages"
        )
    return LearnedSubject.load(folder)


def sample_sides(
    models: Mapping[str, Prior], caption: str, count: int, config: SamplingConfig, *, run: Stage
) -> dict[str, CaptionedImages]:
    """`count` pictures of a caption for each of the four view words in the order of `VIEWS`, from each model.

    Picture k of every word and of every model begins from the same noise, so that only words and weights differ.
    """
    made = {}
    for name, prior in models.items():
        images, captions = [], []
        for view in VIEWS:
            generators = [run.generator(index, "sides", "cpu") for index in range(count)]
            asked = with_view(caption, view)
            images.append(draw_scenes(prior, words(prior, asked), None, config, generators, run)[:, 0])
            captions += [asked] * count
        made[name] = CaptionedImages.from_images(torch.cat(images), captions)
    return made
