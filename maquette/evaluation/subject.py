"""How good a personal subject became: like its photos, as it was asked for, with one front, and like the true object.

The runs' assets are rendered from all around on white. No figure says all: likeness rewards a copy of the photos from
every side, R-precision a caption's colours, and both forgive a second face, which is why the Janus index stands beside
them; what people would prefer is none of these. Figures carry the name of the network that made them.

- `<encoder>_subject`: 100 cos between renders and photos, mean over all pairs; `<encoder>_photos` is that of the photos
  among themselves, which a perfect copy reaches.
- `<encoder>_precision`: share of renders that are nearer to their own caption than to every distractor.
- `<encoder>_text`: 100 cos between renders and their own caption.
- `<encoder>_smoothness`: 100 cos of neighbouring renders; jumps are sides that do not belong together.
- `janus`: further fronts: views that look the same as the front view (`sameness`, at a local maximum above
  `janus_sameness` and further than `janus_apart` degrees from it); with an encoder that reads sides, only where "front
  view" is also the nearest of the class's three captions. `janus_rate` is the share of objects with at least one, and
  `janus_truth`, for stand-ins, how many the true object has. Objects that look the same from all sides (a vase) have no
  front and are left out by `symmetric`.
- `saturation`: mean of (max - min) / max over the object's pixels; strong guidance over-exposes.
- `pseudo_agreement`: PSNR of the pseudo views' objects against the asset at their cameras: how far the pictures agree
  on one object.
- for stand-ins, the object benchmark's figures as they are, and (`turned_...`) after the best turn about the vertical.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maquette import __version__
from maquette.asset import Mesh, load_mesh
from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.evaluation import image as image_metrics
from maquette.evaluation.baselines import read_jsonl
from maquette.evaluation.encoders import ImageEncoder, ImageTextEncoder
from maquette.evaluation.judge import NanoJudge
from maquette.evaluation.quality import normalise_caption
from maquette.evaluation.stand_ins import StandIn
from maquette.evaluation.truth import Protocol, Truth
from maquette.images import Views
from maquette.rendering.raster import render_mesh
from maquette.run.files import write_json
from maquette.run.record import read_json
from maquette.subjects import CaptionedImages
from maquette.wording import without_subject

WHITE = torch.ones(3)
TRUE = ("psnr", "ssim", "silhouette_iou", "chamfer", "volume_iou")
"""Figures of the object benchmark that are kept for stand-ins."""


@dataclass(frozen=True)
class SubjectProtocol:
    """How assets are looked at."""

    num_views: int = 36
    """Renders around the object; a Janus index needs one every 10 degrees."""
    elevation: float = 10.0
    """Degrees above the horizon."""
    size: int = 128
    """Pixels along the side of a render."""
    janus_sameness: float = 0.85
    """Sameness with the front view from which a local maximum counts as another front. Of six objects of the
    validation pack only the tent, whose two ends are alike, has one; the others reach 0.31 to 0.79."""
    janus_apart: float = 60.0
    """Degrees that it is at least away from the front."""
    truth: Protocol = field(default_factory=Protocol)
    """Of the true object, for stand-ins."""

    def __post_init__(self) -> None:
        if self.num_views < 4 or self.size < 16:
            raise ValueError(f"a look all around has at least 4 views of 16 px, got {self.num_views} of {self.size}")


@dataclass(frozen=True)
class SubjectRun:
    """What is read of a finished run."""

    folder: Path
    caption: str
    noun: str
    photos: CaptionedImages
    pseudo: Views | None

    @classmethod
    def read(cls, folder: Path) -> SubjectRun:
        """UserError for a folder that holds no finished run with a subject."""
        settings = read_json(folder / "config.json")
        kept = folder / "stages" / "subject" / "result" / "photos"
        if settings is None or not kept.is_dir():
            raise UserError(f"{folder} is no run of `maquette dreambooth3d`")
        if not (folder / "asset.glb").is_file():
            raise UserError(f"{folder} holds no finished object; the same command as before finishes it")
        inputs = settings["inputs"]
        views = folder / "views"
        pseudo = Views.load(views) if (views / "transforms.json").is_file() else None
        return cls(folder, str(inputs["caption"]), str(inputs["subject"]), CaptionedImages.load(kept), pseudo)


def read_captions(path: Path | None) -> list[str]:
    """Captions of a data pack (its index.jsonl, or the folder that holds one); none without a path."""
    if path is None:
        return []
    file = path / "index.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no captions at {file}; expected the index.jsonl of a data pack")
    return [str(row["caption"]) for row in read_jsonl(file, ("caption",)) if row.get("caption")]


def described(caption: str, noun: str, description: str) -> str:
    """The caption with words in place of [v] and the noun, as somebody would write who does not know the subject.

    >>> described("a [v] robot in the snow", "robot", "boxy red robot"), described("a [v] dog asleep", "dog", "")
    ('a boxy red robot in the snow', 'a dog asleep')
    """
    if not description:
        return without_subject(caption)
    return re.sub(rf"\[v\d?\]\s+{re.escape(noun)}", lambda _: description, caption, flags=re.IGNORECASE)


def evaluate_subject(
    runs: Sequence[Path],
    *,
    encoders: Sequence[ImageEncoder | ImageTextEncoder] = (),
    distractors: Sequence[str] = (),
    stand_in: StandIn | None = None,
    description: str = "",
    symmetric: bool = False,
    protocol: SubjectProtocol | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Figures of one or more finished runs of one subject, and their means; written to `out` where given."""
    protocol = protocol or SubjectProtocol()
    rows = []
    for folder in runs:
        figures = measure_run(
            SubjectRun.read(folder), encoders, distractors, stand_in, description, symmetric, protocol
        )
        rows.append({"run": folder.name, **figures})
        say(f"{folder}: " + "  ".join(f"{name} {value:.3g}" for name, value in figures["figures"].items()))
    report = {
        "runs": rows,
        "mean": mean_of([row["figures"] for row in rows]),
        "encoders": [encoder.name for encoder in encoders],
        "distractors": len(distractors),
        "stand_in": None if stand_in is None else stand_in.id,
        "version": __version__,
    }
    if out is not None:
        write_json(out, report)
    return report


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over rows of the figures that any row has; `janus` becomes `janus_rate` beside it."""
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        means[name] = float(np.mean(values))
        if name == "janus":
            means["janus_rate"] = float(np.mean([value >= 1 for value in values]))
    return means


def measure_run(
    run: SubjectRun,
    encoders: Sequence[ImageEncoder | ImageTextEncoder],
    distractors: Sequence[str],
    stand_in: StandIn | None,
    description: str,
    symmetric: bool,
    protocol: SubjectProtocol,
) -> dict[str, Any]:
    """Everything that is measured of one run; see the top of this file."""
    mesh = load_mesh(run.folder / "asset.glb")
    views = look_around(mesh, protocol)
    images = views.composite(WHITE)
    photos = run.photos.composite(range(len(run.photos)), torch.ones(len(run.photos), 3))
    wish = described(run.caption, run.noun, description or (stand_in.description if stand_in else ""))
    assert views.masks is not None, "renders of a mesh have masks"
    figures = {"saturation": float(image_metrics.saturation(views.images, views.masks).mean())}
    for encoder in encoders:
        seen, known = encoder.embed_images(images).double(), encoder.embed_images(photos).double()
        figures[f"{encoder.name}_subject"] = 100 * float((seen @ known.T).mean())
        figures[f"{encoder.name}_photos"] = 100 * _among(known)
        figures[f"{encoder.name}_smoothness"] = 100 * float((seen * seen.roll(1, 0)).sum(-1).mean())
        if isinstance(encoder, ImageTextEncoder):
            texts = candidates(wish, distractors)
            similarity = seen @ encoder.embed_texts(texts).double().T
            figures[f"{encoder.name}_text"] = 100 * float(similarity[:, 0].mean())
            if len(texts) > 1:
                figures[f"{encoder.name}_precision"] = float((similarity.argmax(1) == 0).double().mean())
    if not symmetric:
        figures["janus"] = float(len(further_fronts(views, protocol, reads_sides(encoders), f"a {run.noun}")))
    if run.pseudo is not None and run.pseudo.masks is not None:
        again = render_mesh(mesh, run.pseudo.cameras, samples=2).views()
        both = (again.composite(WHITE), run.pseudo.composite(WHITE))
        figures["pseudo_agreement"] = float(image_metrics.psnr(*both, ceiling=image_metrics.PSNR_CEILING).mean())
    if stand_in is not None:
        figures |= against_truth(mesh, stand_in, protocol)
    return {"caption": run.caption, "own_caption": wish, "figures": figures}


def look_around(mesh: Mesh, protocol: SubjectProtocol) -> Views:
    """Renders of an asset, brought to the size that objects have in the scene."""
    cameras = orbit(protocol.num_views, elevation=protocol.elevation, height=protocol.size, width=protocol.size)
    return render_mesh(mesh.normalized(), cameras, samples=2).views()


def candidates(own: str, distractors: Sequence[str]) -> list[str]:
    """The own caption first, then all distractors that are not the same."""
    texts = [normalise_caption(own)]
    return texts + [text for text in dict.fromkeys(map(normalise_caption, distractors)) if text != texts[0]]


def _among(embedded: Float[Tensor, "n d"]) -> float:
    """Mean cosine over pairs of different pictures; 1 for a single one."""
    count = len(embedded)
    return 1.0 if count < 2 else (float((embedded @ embedded.T).sum()) - count) / (count * (count - 1))


def further_fronts(
    views: Views, protocol: SubjectProtocol, encoder: ImageTextEncoder | None = None, noun: str = ""
) -> list[float]:
    """Azimuths of further fronts of an object seen at equal steps of azimuth, the first at its front.

    An encoder that reads sides is asked whether they are fronts at all.
    """
    alike = sameness(views)
    front = torch.ones(len(views), dtype=torch.bool)
    if encoder is not None:
        sides = encoder.embed_texts([f"{noun}, {side} view" for side in ("front", "side", "back")]).double()
        front = (encoder.embed_images(views.composite(WHITE)).double() @ sides.T).argmax(dim=1) == 0
    peaks = (alike >= alike.roll(1)) & (alike >= alike.roll(-1)) & (alike > protocol.janus_sameness) & front
    azimuth = torch.arange(len(views)) * (360.0 / len(views))
    away = torch.minimum(azimuth, 360 - azimuth)
    found: list[float] = []
    for angle in azimuth[peaks & (away > protocol.janus_apart)].tolist():
        if all(abs(angle - other) > protocol.janus_apart / 2 for other in found):
            found.append(angle)
    return found


def sameness(views: Views, size: int = 24, tolerance: float = 0.25) -> Float[Tensor, " v"]:
    """How far each view shows the same as the first, in [0, 1]: overlap of the outlines times agreement of the colours.

    1 for equal views; 0 where outlines are apart, or colours differ by `tolerance` in the mean over both outlines. At
    `size` px, so that only what is seen from afar counts. An encoder does not serve here: one that was trained on many
    views of each object, as nano-judge, finds all of them alike (0.79 to 0.99 for true objects).
    """
    assert views.masks is not None, "renders of a mesh have masks"
    images, masks = (torch.nn.functional.interpolate(x, (size, size), mode="area") for x in (views.images, views.masks))
    both = masks * masks[:1]
    apart = (both * (images - images[:1]).abs().mean(1, keepdim=True)).sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1)
    overlap = torch.minimum(masks, masks[:1]).sum((1, 2, 3)) / torch.maximum(masks, masks[:1]).sum((1, 2, 3))
    return overlap * (1 - apart / tolerance).clamp(min=0)


def reads_sides(encoders: Sequence[ImageEncoder | ImageTextEncoder]) -> ImageTextEncoder | None:
    """The first encoder that can be asked for sides; nano-judge was taught no words for them."""
    for encoder in encoders:
        if isinstance(encoder, ImageTextEncoder) and not isinstance(encoder, NanoJudge):
            return encoder
    return None


def against_truth(mesh: Mesh, stand_in: StandIn, protocol: SubjectProtocol) -> dict[str, float]:
    """The object benchmark's figures, as the asset stands and after its best turn about the vertical."""
    truth = Truth.read(stand_in.object, protocol.truth, id=stand_in.id)
    turn = best_turn(mesh, truth.mesh, protocol)
    plain, turned = truth.score(mesh), truth.score(turned_about_vertical(mesh, turn))
    figures = {name: plain[name] for name in TRUE}
    figures["janus_truth"] = float(len(further_fronts(look_around(truth.mesh, protocol), protocol)))
    return {**figures, **{f"turned_{name}": turned[name] for name in TRUE}, "turn": turn}


def best_turn(mesh: Mesh, truth: Mesh, protocol: SubjectProtocol) -> float:
    """Degrees about the vertical by which a result looks most like the object, in steps of the look around."""
    small = replace(protocol, size=48)
    ours, theirs = (look_around(each, small).composite(WHITE) for each in (mesh, truth))
    # Turning the object by one step shows from camera k what camera k - 1 saw.
    errors = torch.stack([(ours.roll(k, 0) - theirs).square().mean() for k in range(len(ours))])
    return float(errors.argmin()) * 360.0 / len(ours)


def turned_about_vertical(mesh: Mesh, degrees: float) -> Mesh:
    """The mesh turned from +x towards +y."""
    a = math.radians(degrees)
    matrix = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]], np.float32)
    normals = None if mesh.normals is None else mesh.normals @ matrix.T
    return replace(mesh, vertices=mesh.vertices @ matrix.T, normals=normals)
