"""The part of the page about a personal subject: its photos, what was learned, what was made of it on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.images import Views, read_image
from maquette.report.markup import folded, image_uri, paragraphs, section
from maquette.report.record import RunRecord
from maquette.report.turntable import to_bytes
from maquette.stages.learned import Photos
from maquette.stages.translate import Translated
from maquette.subjects import CaptionedImages
from maquette.wording import VIEWS, view_word

COLUMNS = 10
"""Small pictures in a row."""
MODELS = {
    "base": ("Before", "the prior, which does not know the subject and takes [v] for any word"),
    "partial": ("Half learned", "the partial model, which makes the first field"),
    "full": ("Fully learned", "the full model, which repaints the renderings"),
}


def subject_sections(run: RunRecord) -> list[str]:
    """Sections of a run that learned a subject; none for other runs."""
    parts = [_photos(run), _learned(run), _pseudo_views(run)]
    return [part for part in parts if part]


def _result(run: RunRecord, stage: str) -> Path | None:
    """Folder of a finished stage's result."""
    folder = run.folder / "stages" / stage / "result"
    return folder if any(s.name == stage and s.done for s in run.stages) and folder.is_dir() else None


def _photos(run: RunRecord) -> str:
    if (folder := _result(run, "subject")) is None:
        return ""
    photos = Photos.load(folder / "photos")
    notes = [f"seems to show the {side}" for side in photos.sides] or [""] * len(photos.names)
    uris = _uris(photos.pictures)
    content = _grid([(uri, name, note) for uri, name, note in zip(uris, photos.names, notes, strict=True)])
    content += paragraphs(*(f"Note: {note}." for note in photos.notes))
    text = paragraphs(
        f"The photos of the {photos.noun} as the prior was shown them. What no photo shows has to be invented."
    )
    return section("photos", "The photos", text, content)


def _learned(run: RunRecord) -> str:
    if (folder := _result(run, "samples")) is None:
        return ""
    record = json.loads((folder.parent / "stage.json").read_text(encoding="utf-8"))
    content = ""
    for number, (name, _) in enumerate(record["result"]["items"]):
        title, note = MODELS.get(name, (name, ""))
        pictures = CaptionedImages.load(folder / str(number))
        each = len(pictures) // len(VIEWS)
        asked = [view for view in VIEWS for _ in range(each)]
        cells = [(uri, word, "") for uri, word in zip(_uris(pictures), asked, strict=True)]
        content += _grid(cells, len(cells), f"{title}: {note}")
    text = paragraphs(
        "What the prior paints for the subject, asked for each side in words, from the same noise in every row.",
        "A model that has learned too much shows the side of the photos whatever it is asked for; that is why a half "
        "learned one makes the first field.",
    )
    return section("learned", "Learning the subject", text, content)


def _pseudo_views(run: RunRecord) -> str:
    content = _round(run, "renderings", "pseudo_views", "The first field", "the full model")
    if not content:
        return ""
    again = _round(run, "final_renderings", "final_pseudo_views", "The final field", "the multi-view model")
    text = [
        "Renderings of the first field are noised in part and painted clean by the full model. They keep their "
        "viewpoint and gain the subject's look, but differ from one another in detail, so the final field resembles "
        "them only weakly."
    ]
    if again:
        text.append("The same was done once more, gently, with the final field, whose colours then followed.")
    return section("pseudo-views", "Pseudo views", paragraphs(*text), content + again)


def _round(run: RunRecord, before: str, after: str, title: str, painter: str) -> str:
    """Renderings and what was painted over them; nothing where these stages were not run."""
    renderings, pseudo = _result(run, before), _result(run, after)
    if renderings is None or pseudo is None:
        return ""
    seen, made = Views.load(renderings), Translated.load(pseudo)
    angles = list(zip(seen.cameras.azimuth.tolist(), seen.cameras.elevation.tolist(), strict=True))
    words = [view_word(*pair) for pair in angles]
    white = seen.composite(torch.ones(3))
    content = _grid(
        [(uri, word, "") for uri, word in zip(_pictures(white), words, strict=True)],
        COLUMNS,
        f"{title}, from all around",
    )
    taken = [
        (uri, words[number], f"view {number}")
        for uri, number in zip(_pictures(made.views.images), made.numbers, strict=True)
    ]
    content += _grid(taken, COLUMNS, f"Painted over by {painter}: {len(taken)} of {len(seen)} views were accepted")
    refused = [
        (image_uri(to_bytes(read_image(pseudo / "attempts" / file).movedim(0, -1))), words[entry.view], entry.reason)
        for entry in made.attempts
        if not entry.accepted and (pseudo / "attempts" / (file := f"{entry.view:03d}_{entry.attempt}.png")).is_file()
    ]
    if refused:
        content += folded(f"{len(refused)} attempts were not taken, and why", _grid(refused, 5))
    return content


def _uris(pictures: CaptionedImages) -> list[str]:
    """Pictures as addresses that hold them, masked ones without their background."""
    images = pictures.images()
    if pictures.masks is not None:
        images = torch.cat([images, pictures.masks.float() / 255], dim=1)
    return _pictures(images)


def _pictures(images: Float[Tensor, "n c h w"]) -> list[str]:
    return [image_uri(to_bytes(image.movedim(0, -1)), lossless=True) for image in images]


def _grid(cells: Sequence[tuple[str, str, str]], columns: int = 6, title: str = "") -> str:
    """Pictures (address, name, note) in rows."""
    head = f'<p class="row">{escape(title)}</p>' if title else ""
    body = ""
    for uri, name, note in cells:
        image = f'<img src="{uri}" alt="{escape(name)}">'
        hover = f' title="{escape(note, quote=True)}"' if note else ""
        body += f'<figure class="plate"{hover}>{image}<figcaption>{escape(name)}</figcaption></figure>'
    return f'<div class="sides" style="--columns:{max(1, min(columns, len(cells)))}">{head}{body}</div>'
