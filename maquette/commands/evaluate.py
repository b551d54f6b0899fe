"""`maquette evaluate`: how good results are, against known objects, against their prompts, and in people's eyes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from maquette.asset import Asset
from maquette.cameras import Cameras
from maquette.commands.arguments import choose, parse
from maquette.commands.evaluate_options import (
    CameraOptions,
    CompareOptions,
    GsoOptions,
    ObjectOptions,
    PromptOptions,
    SubjectOptions,
    TallyOptions,
)
from maquette.commands.inputs import announce_matting
from maquette.commands.method import Method, method_options, starting_config, word_after
from maquette.errors import UserError
from maquette.evaluation.compare import build_comparison, describe, tally
from maquette.evaluation.gso import Placement
from maquette.evaluation.gso_benchmark import GsoBenchmark, evaluate_gso
from maquette.evaluation.inception import InceptionClassifier
from maquette.evaluation.lpips import Lpips
from maquette.evaluation.objects import ObjectBenchmark, evaluate_objects, evaluate_views
from maquette.evaluation.prompt_cameras import PromptCameras, evaluate_cameras
from maquette.evaluation.prompts import PromptBenchmark, evaluate_prompts
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
    announce_matting(options.matting)
    answer = Answering(method, config, options.seed, options.device)
    report = evaluate_prompts(
        options.folder, sample=answer if options.method == "views" else None,
        reconstruct=None if options.method == "views" else answer, encoders=options.judges.load(),
        classifier=None if options.inception is None else InceptionClassifier(options.inception),
        config=PromptBenchmark(limit=options.limit, matting=options.matting, seed=options.seed), out=options.out,
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
    if options.true_views < 0:
        raise UserError(f"--true-views: expected pixels a side, or 0 for the prior's own, got {options.true_views}")
    protocol = PromptCameras(limit=options.limit, prompts=options.prompts, seed=options.seed)
    true_views = None
    if size := options.true_views:
        azimuths = imagedream.ring_azimuths(config)
        true_views = Cameras.cat([imagedream.ring_cameras(config, size, azimuth) for azimuth in azimuths])
    report = evaluate_cameras(
        options.folder, Locating(Answering(method, config, options.seed, options.device), config), protocol,
        true_views=true_views, out=options.out,
        method=_identity(method, config), overwrite=options.overwrite, say=_say,
    )  # fmt: skip
    print(_table({kind: report[kind] for kind in ("all", "reliable")}))
    print(f"{options.out}: case by case, {len(report['failures'])} failures")
    return 0


def gso(arguments: list[str]) -> int:
    """SyncDreamer's protocol."""
    options, method, config = _read(GsoOptions, arguments, "maquette evaluate gso")
    if options.given and (options.results is not None or method.name != "usd"):
        raise UserError("--given tells usd the elevation of its input; leave it out with --results and other methods")
    placement: Placement = "box" if options.results is None else "as-is"
    report = evaluate_gso(
        options.folder,
        GsoBenchmark(
            objects=options.objects, placement=placement if options.placement == "auto" else options.placement,
            told=options.given, seed=options.seed,
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
            inputs={"prompt": fingerprint(prompt.image), "caption": prompt.caption}
            | ({} if prompt.camera is None else {"elevation": prompt.camera.elevation}), quiet=True,
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
                seen = imagedream.canonical_views(imagedream.prior_of(config, run), prompt, config, run)
                matched = imagedream.match(seen, prompt, config, run)
            else:
                # True views stand before no background, and the question is what the search finds on them.
                seen, matched = [views], None
            scene = imagedream.first_scene(seen, matched, config, run)
            located = matched or imagedream.locate(scene, prompt, config, run)
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
