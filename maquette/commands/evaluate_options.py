"""The options of `maquette evaluate`, a dataclass for each of its words."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from maquette.evaluation.compare import Comparison
from maquette.evaluation.encoders import ImageEncoder
from maquette.evaluation.judge import SHIPPED, NanoJudge
from maquette.evaluation.published import ClipEncoder, DinoEncoder
from maquette.matting import Matting
from maquette.priors.cards import CARD_FILE


@dataclass(frozen=True)
class Judges:
    """Networks that see how alike two pictures are; every figure carries the name of the one that made it."""

    nano: Literal["auto", "on", "off"] = "auto"
    """nano-judge, which takes no part in making results: used where the package has its weights, always, or never."""
    clip: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """A CLIP model in Hugging Face's layout (needs the extra `published`)."""
    dino: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """A DINO model in Hugging Face's layout (needs the extra `published`)."""

    def load(self) -> tuple[ImageEncoder, ...]:
        """The networks themselves; UserError naming the file that is missing or wrong."""
        shipped = (SHIPPED / CARD_FILE).is_file()
        if self.nano == "auto" and not shipped:
            print("note: nano-judge's weights are not in this package, so its figures are left out", file=sys.stderr)
        encoders: list[ImageEncoder] = (
            [NanoJudge.load()] if self.nano == "on" or (self.nano == "auto" and shipped) else []
        )
        if self.clip is not None:
            encoders.append(ClipEncoder(self.clip))
        if self.dino is not None:
            encoders.append(DinoEncoder(self.dino))
        return tuple(encoders)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What the benchmarks that run a method have in common; the method's own settings are options too."""

    seed: int = 0
    """Of all draws: of what is measured, and of the method."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the method computes."""
    preset: Literal["nano", "paper"] = "nano"
    """The method's settings to start from."""
    quality: Literal["draft", "default", "high"] = "default"
    """How much time the method spends on each object or picture."""
    overwrite: bool = False
    """Replace results of other settings in that place."""


@dataclass(frozen=True)
class ObjectOptions(BenchmarkOptions):
    """Against known objects."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Objects with an index.jsonl, as in a data pack's val."""
    method: Literal["imagedream", "usd", "views"] = "imagedream"
    """What is evaluated."""
    out: Path = Path("metrics.json")
    """The figures; everything behind them is kept in a folder of the same name beside it."""
    limit: int | None = None
    """Take the first so many objects with a front, in an order shuffled by the seed."""
    ids: tuple[str, ...] = ()
    """Take exactly these objects instead; "twelve" is the list of the committed tables."""
    train: Path | None = None
    """Folder of training objects: adds the nearest of them as a baseline."""
    baselines: bool = True
    """Measure baselines too; the comparison of a method's settings can do without."""
    elevation: float = 5.0
    """Degrees above the horizon of the prompt's camera."""
    judges: Judges = Judges()
    """Networks that compare pictures with the prompt."""


@dataclass(frozen=True)
class PromptOptions(BenchmarkOptions):
    """Without ground truth."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Pictures, with captions in an index.jsonl if there is one."""
    method: Literal["imagedream", "usd", "views"] = "imagedream"
    """What is evaluated."""
    out: Path = Path("prompts.json")
    """The figures; everything behind them is kept in a folder of the same name beside it."""
    limit: int | None = None
    """Only the first so many prompts."""
    matting: Matting = "auto"
    """How objects are cut out of their pictures, as in `maquette imagedream --help`."""
    judges: Judges = Judges()
    """Networks that compare pictures with the prompt and its caption."""
    inception: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of an Inception-v3 classifier (safetensors): adds the quality-only inception score."""


@dataclass(frozen=True)
class CameraOptions(BenchmarkOptions):
    """The prompt's own camera."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Objects with an index.jsonl, as in a data pack's val."""
    out: Path = Path("cameras.json")
    """The figures; everything behind them is kept in a folder of the same name beside it."""
    limit: int | None = None
    """Take the first so many objects with a front, in an order shuffled by the seed."""
    prompts: int = 2
    """Pictures of each object, from random places before it."""
    true_views: int = 0
    """Show the method true views of so many pixels instead of those that its prior imagines."""


@dataclass(frozen=True)
class GsoOptions(BenchmarkOptions):
    """Thirty scanned objects."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """The scans: alarm.glb, backpack.obj ..., or folders of these names with one mesh in each; not glTF means +z up."""
    method: Literal["imagedream", "usd"] = "imagedream"
    """What is evaluated."""
    results: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Measure the meshes in this folder, named as the scans are, instead of running a method."""
    renders: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """The published pictures, alarm/000.png ...; by default scans are rendered here, unlit."""
    placement: Literal["auto", "as-is", "box"] = "auto"
    """Compare results as they are in the frame of the renders, as published tables do, or give them the scan's bounding
    box; auto: as they are for --results, the box for a method of this package, which has a frame of its own."""
    given: bool = False
    """Tell the method that the input was taken from 30 degrees above the horizon (usd; without, it estimates that)."""
    out: Path = Path("gso.json")
    """The figures; everything behind them is kept in a folder of the same name beside it."""
    objects: tuple[str, ...] = ()
    """Only these of the thirty."""
    lpips: Annotated[tuple[Path, Path] | None, arg(metavar="VGG LPIPS")] = None
    """Weights of VGG-16 (torchvision's file) and of the lpips package's heads (weights/v0.1/vgg.pth): adds LPIPS."""


@dataclass(frozen=True)
class SubjectOptions:
    """Finished runs of one subject."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")]
    """Folders of finished runs of `maquette dreambooth3d`, all of one subject."""
    out: Path = Path("subject.json")
    """The figures."""
    description: str = ""
    """The subject in words, in place of "[v] NOUN" in the caption that is looked for among the distractors."""
    distractors: Annotated[Path | None, arg(metavar="FILE")] = None
    """Captions to tell the own one from: the index.jsonl of a data pack. Without, R-precision is left out."""
    photos: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """The folder of photos; where it holds a stand_in.json, results are compared with the true object."""
    objects: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where the true object lies, if it was moved."""
    symmetric: bool = False
    """The subject looks alike from all sides, so it has no front that could be doubled."""
    judges: Judges = Judges()
    """Networks that compare pictures with photos and captions."""


@dataclass(frozen=True)
class CompareOptions:
    """Two results side by side."""

    runs: Annotated[Positional[tuple[Path, Path]], arg(metavar="RUN RUN")]
    """Two run folders, or two folders of them with cases of equal names."""
    out: Path = Path("compare.html")
    """The page; its key, which tells left from right, goes beside it."""
    config: Annotated[Comparison, arg(name="")] = Comparison()
    """How results are shown."""


@dataclass(frozen=True)
class TallyOptions:
    """The votes of such a page."""

    key: Annotated[Positional[Path], arg(metavar="KEY")]
    """The key of a comparison page."""
    votes: Annotated[Positional[tuple[Path, ...]], arg(metavar="VOTES...")]
    """Files of votes that the page saved."""
    out: Path | None = None
    """Write the counts as JSON too."""
