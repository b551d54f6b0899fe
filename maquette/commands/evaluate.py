"""`maquette evaluate`: how good results are, against known objects, against their prompts, and in people's eyes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from maquette.asset import Asset
from maquette.cameras import Cameras
from maquette.commands.arguments import choose, parse
from maquette.commands.method import Method, method_options, starting_config, word_after
from maquette.errors import UserError
from maquette.evaluation.compare import Comparison, build_comparison, describe, tally
from maquette.evaluation.encoders import ImageEncoder
from maquette.evaluation.gso import Placement
from maquette.evaluation.gso_benchmark import GsoBenchmark, evaluate_gso
from maquette.evaluation.inception import InceptionClassifier
from maquette.evaluation.judge import SHIPPED, NanoJudge
from maquette.evaluation.lpips import Lpips
from maquette.evaluation.objects import ObjectBenchmark, evaluate_objects, evaluate_views
from maquette.evaluation.prompt_cameras import PromptCameras, evaluate_cameras
from maquette.evaluation.prompts import PromptBenchmark, evaluate_prompts
from maquette.evaluation.published import ClipEncoder, DinoEncoder
from maquette.evaluation.stand_ins import StandIn
from maquette.evaluation.subject import evaluate_subject, read_captions
from maquette.evaluation.truth import Protocol
from maquette.images import CameraEstimate, Prompt, Views
from maquette.methods import imagedream
from maquette.priors.cards import CARD_FILE
from maquette.priors.hub import SHIPPED as SHIPPED_PRIORS
from maquette.priors.hub import find_card
from maquette.run import Run, fingerprint
from maquette.run.files import write_json
from maquette.run.settings import plain

METHODS = {
    "imagedream": "maquette.commands.imagedream",
    "usd": "maquette.commands.usd",
    "views": "maquette.commands.views",
}
"""What can be evaluated: method -> the module whose METHOD it is."""


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


@dataclass(frozen=True)
class ObjectOptions:
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Objects with an index.jsonl, as in a data pack's val."""
    method: Literal["imagedream", "usd", "views"] = "imagedream"
    """What is evaluated."""
    out: Path = Path("metrics.json")
    """The figures; everything behind them is kept in a folder of the same name beside it."""
    limit: int | None = None
    """Take the first so many objects with a front, in an order shuffled by the seed."""
    ids: tuple[str, ...] = ()
    """Take exactly these objects instead."""
    train: Path | None = None
    """Folder of training objects: adds the nearest of them as a baseline."""
    baselines: bool = True
    """Measure baselines too; the comparison of a method's settings can do without."""
    elevation: float = 5.0
    """Degrees above the horizon of the prompt's camera."""
    judges: Judges = Judges()
    """Networks that compare pictures with the prompt."""
    seed: int = 0
    """Of the order, of the measurements and of the method."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the method computes."""
    preset: Literal["nano", "paper"] = "nano"
    """The method's settings to start from."""
    quality: Literal["draft", "default", "high"] = "default"
    """How much time the method spends on an object."""
    overwrite: bool = False
    """Replace results of other settings in that place."""


@dataclass(frozen=True)
class PromptOptions:
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Pictures, with captions in an index.jsonl if there is one."""
    method: Literal["imagedream", "usd", "views"] = "imagedream"
    """What is evaluated."""
    out: Path = Path("prompts.json")
    """The figures; everything behind them is kept in a folder of the same name beside it."""
    limit: int | None = None
    """Only the first so many prompts."""
    judges: Judges = Judges()
    """Networks that compare pictures with the prompt and its caption."""
    inception: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of an Inception-v3 classifier (safetensors): adds the quality-only inception score."""
    seed: int = 0
    """Of the intervals and of the method."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the method computes."""
    preset: Literal["nano", "paper"] = "nano"
    """The method's settings to start from."""
    quality: Literal["draft", "default", "high"] = "default"
    """How much time the method spends on a prompt."""
    overwrite: bool = False
    """Replace results of other settings in that place."""


@dataclass(frozen=True)
class CameraOptions:
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
    seed: int = 0
    """Of the order, of the cameras and of the method."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the method computes."""
    preset: Literal["nano", "paper"] = "nano"
    """ImageDream's settings to start from."""
    quality: Literal["draft", "default", "high"] = "default"
    """How much time the method spends on a picture."""
    overwrite: bool = False
    """Replace results of other settings in that place."""


@dataclass(frozen=True)
class GsoOptions:
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
    out: Path = Path("gso.json")
    """The figures; everything behind them is kept in a folder of the same name beside it."""
    objects: tuple[str, ...] = ()
    """Only these of the thirty."""
    lpips: Annotated[tuple[Path, Path] | None, arg(metavar="VGG LPIPS")] = None
    """Weights of VGG-16 (torchvision's file) and of the lpips package's heads (weights/v0.1/vgg.pth): adds LPIPS."""
    seed: int = 0
    """Of the intervals and of the method."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the method computes."""
    preset: Literal["nano", "paper"] = "nano"
    """The method's settings to start from."""
    quality: Literal["draft", "default", "high"] = "default"
    """How much time the method spends on an object."""
    overwrite: bool = False
    """Replace results of other settings in that place."""


@dataclass(frozen=True)
class SubjectOptions:
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
    runs: Annotated[Positional[tuple[Path, Path]], arg(metavar="RUN RUN")]
    """Two run folders, or two folders of them with cases of equal names."""
    out: Path = Path("compare.html")
    """The page; its key, which tells left from right, goes beside it."""
    config: Annotated[Comparison, arg(name="")] = Comparison()
    """How results are shown."""


@dataclass(frozen=True)
class TallyOptions:
    key: Annotated[Positional[Path], arg(metavar="KEY")]
    """The key of a comparison page."""
    votes: Annotated[Positional[tuple[Path, ...]], arg(metavar="VOTES...")]
    """Files of votes that the page saved."""
    out: Path | None = None
    """Write the counts as JSON too."""


def run(arguments: list[str]) -> int:
    """Measure what the first word names."""
    choices = {
        "objects": (objects, "shape and looks against objects that are known from all sides"),
        "prompts": (prompts, "likeness and quality of what is made of pictures, without ground truth"),
        "cameras": (cameras, "how well ImageDream finds out from where a picture was taken"),
        "gso": (gso, "SyncDreamer's protocol on thirty scanned objects, for a method or for meshes that are there"),
        "subject": (subject, "a personal subject: its likeness, its caption, its fronts, and the true object if known"),
        "compare": (compare, "a blinded page on which people choose between two results"),
        "votes": (votes, "what the votes of such a page say"),
    }
    return choose(choices, arguments, "maquette evaluate")


def objects(arguments: list[str]) -> int:
    """The object benchmark."""
    options, method, config = _read(ObjectOptions, arguments, "maquette evaluate objects")
    benchmark = ObjectBenchmark(Protocol(elevation=options.elevation), options.limit, options.ids, options.seed)
    evaluate: Callable[..., dict[str, Any]] = evaluate_views if options.method == "views" else evaluate_objects
    report = evaluate(
        options.folder, Answering(method, config, options.seed, options.device), benchmark, out=options.out,
        train=options.train, baselines=options.baselines, encoders=options.judges.load(),
        method=_identity(method, config), overwrite=options.overwrite, say=_say,
    )  # fmt: skip
    rows = {method.name: report["mean"], **{name: entry["mean"] for name, entry in report["baselines"].items()}}
    print(_table(rows))
    print(f"{options.out}: {len(report['objects'])} objects, {len(report['failures'])} failures")
    return 0


def prompts(arguments: list[str]) -> int:
    """The ImageDream protocol."""
    options, method, config = _read(PromptOptions, arguments, "maquette evaluate prompts")
    answer = Answering(method, config, options.seed, options.device)
    report = evaluate_prompts(
        options.folder, sample=answer if options.method == "views" else None,
        reconstruct=None if options.method == "views" else answer, encoders=options.judges.load(),
        classifier=None if options.inception is None else InceptionClassifier(options.inception),
        config=PromptBenchmark(limit=options.limit, seed=options.seed), out=options.out,
        method=_identity(method, config), overwrite=options.overwrite, say=_say,
    )  # fmt: skip
    kinds = [kind for kind in ("prompt", "diffused", "rendered") if kind in report]
    print(_table({kind: {name: figure["mean"] for name, figure in report[kind].items()} for kind in kinds}))
    print(f"{options.out}: all figures, case by case")
    return 0


def cameras(arguments: list[str]) -> int:
    """The error of the prompt's camera."""
    options, method, config = _read(CameraOptions, arguments, "maquette evaluate cameras")
    if config.warm_start is None or config.prompt_view is None:
        raise UserError(
            "a prompt's camera is searched on a first field: neither --warm-start nor --prompt-view is none"
        )
    protocol = PromptCameras(limit=options.limit, prompts=options.prompts, seed=options.seed)
    size = options.true_views
    rings = [imagedream.ring_cameras(config, size, azimuth) for azimuth in imagedream.ring_azimuths(config)]
    report = evaluate_cameras(
        options.folder, Locating(Answering(method, config, options.seed, options.device), config), protocol,
        true_views=Cameras.cat(rings) if size else None, out=options.out,
        method=_identity(method, config), overwrite=options.overwrite, say=_say,
    )  # fmt: skip
    print(_table({kind: report[kind] for kind in ("all", "reliable")}))
    print(f"{options.out}: case by case, {len(report['failures'])} failures")
    return 0


def gso(arguments: list[str]) -> int:
    """SyncDreamer's protocol."""
    options, method, config = _read(GsoOptions, arguments, "maquette evaluate gso")
    placement: Placement = "box" if options.results is None else "as-is"
    report = evaluate_gso(
        options.folder,
        GsoBenchmark(
            objects=options.objects, placement=placement if options.placement == "auto" else options.placement,
            seed=options.seed,
        ),
        reconstruct=None if options.results is not None else Answering(method, config, options.seed, options.device),
        results=options.results, renders=options.renders,
        lpips=None if options.lpips is None else Lpips.load(*options.lpips), out=options.out,
        method={} if options.results is not None else _identity(method, config), overwrite=options.overwrite, say=_say,
    )  # fmt: skip
    print(_table({method.name if options.results is None else options.results.name: report["mean"]}))
    print(f"{options.out}: {len(report['objects'])} objects, {len(report['failures'])} failures")
    return 0


def subject(arguments: list[str]) -> int:
    """Runs of one subject."""
    options = parse(SubjectOptions, arguments, "maquette evaluate subject", about="What became of a subject.")
    if not options.runs:
        raise UserError("RUN is missing: name one or more finished runs of `maquette dreambooth3d`")
    captions = read_captions(options.distractors)
    if not captions:
        print("note: without --distractors there is no R-precision", file=sys.stderr)
    report = evaluate_subject(
        options.runs, encoders=options.judges.load(), distractors=captions,
        stand_in=None if options.photos is None else StandIn.read(options.photos, options.objects),
        description=options.description, symmetric=options.symmetric, out=options.out,
    )  # fmt: skip
    names = list(dict.fromkeys(name for row in report["runs"] for name in row["figures"]))
    width = max(map(len, names))
    columns = [*((row["run"], row["figures"]) for row in report["runs"]), ("mean", report["mean"])]
    columns = columns if len(report["runs"]) > 1 else columns[:1]
    print(" " * width + "".join(f"  {title[-24:]:>24}" for title, _ in columns))
    for name in names:
        print(f"{name:<{width}}" + "".join(f"  {figures.get(name, float('nan')):>24.4f}" for _, figures in columns))
    print(f"{options.out}: all figures")
    return 0


def compare(arguments: list[str]) -> int:
    """Write the page."""
    options = parse(CompareOptions, arguments, "maquette evaluate compare", about="A blinded side-by-side page.")
    key = build_comparison(*options.runs, options.out, options.config, say=_say)
    print(f"{options.out}: open it in a browser, vote, and save the votes")
    print(f"{key}: keep it away from the voters; `maquette evaluate votes {key} VOTES...` counts")
    return 0


def votes(arguments: list[str]) -> int:
    """Count votes."""
    options = parse(TallyOptions, arguments, "maquette evaluate votes", about="What saved votes say.")
    report = tally(options.key, options.votes)
    print("\n".join(describe(report)))
    if options.out is not None:
        write_json(options.out, report)
    return 0


class Answering:
    """A method as the benchmarks call it: a prompt and a folder in, the result out; resumable in that folder."""

    def __init__(self, method: Method, config: Any, seed: int, device: str) -> None:
        self._method, self._config, self._seed, self._device = method, config, seed, device

    def __call__(self, prompt: Prompt, folder: Path) -> Any:
        """The asset, or the views, that the method makes of `prompt`."""
        with self.open(prompt, folder) as run:
            result: Asset | Views = self._method.make(prompt, self._config, run)
        return result

    def open(self, prompt: Prompt, folder: Path) -> Run:
        """The run of a prompt in its folder."""
        return Run.open(
            folder, config=self._config, seed=self._seed, device=self._device, method=self._method.name,
            inputs={"prompt": fingerprint(prompt.image), "caption": prompt.caption}, quiet=True,
        )  # fmt: skip


class Locating:
    """ImageDream up to the search of the prompt's camera: views (or true ones), a first field, the camera."""

    def __init__(self, method: Answering, config: imagedream.Config) -> None:
        self._method, self._config = method, config

    def __call__(self, prompt: Prompt, views: Views | None, folder: Path) -> CameraEstimate:
        """Where `prompt` was taken from."""
        config = self._config
        with self._method.open(prompt, folder) as run:
            if views is None:
                imagined = imagedream.canonical_views(imagedream.prior_of(config, run), prompt, config, run)
            scene = imagedream.first_scene(imagined if views is None else [views], config, run)
            located = imagedream.locate(scene, prompt, config, run)
        assert located is not None, "the command refuses settings without a search"
        return located.estimate


def _read(kind: type[Any], arguments: list[str], command: str) -> tuple[Any, Method, Any]:
    """Options of a benchmark, the method that they name and its config, whose fields are options too."""
    name = word_after(arguments, "--method", tuple(METHODS), "imagedream")
    method: Method = import_module(METHODS[name]).METHOD
    options: Any = parse(method_options(kind, starting_config(method, arguments)), arguments, command)
    return options, method, options.config


def _identity(method: Method, config: Any) -> dict[str, Any]:
    """What results are kept under: the method, its settings, and which weights their names stand for today.

    The shipped weights change from version to version under one name; answers of other ones must not be taken for
    theirs. Published files do not change, and hashing gigabytes for each call would cost more than it tells.
    """
    identity = {"name": method.name, "config": plain(config)}
    name, weights = getattr(config, "prior", ""), getattr(config, "weights", None)
    if name in SHIPPED_PRIORS or (weights is not None and (Path(weights) / CARD_FILE).is_file()):
        identity["weights"] = find_card(name, weights).sha256
    return identity


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _table(rows: dict[str, dict[str, float]]) -> str:
    """Figures in columns, one row a method or baseline."""
    names = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"  {name:>16}" for name in names)]
    for row, figures in rows.items():
        cells = "".join(f"  {figures[name]:>16.4f}" if name in figures else f"  {'-':>16}" for name in names)
        lines.append(f"{row:<{width}}{cells}")
    return "\n".join(lines)
