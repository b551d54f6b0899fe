"""What each part of USD does: `python benchmarks/usd.py PART [OBJECTS_FOLDER] [--out FOLDER] [--limit N]`.

PART is one of

    main        score distillation, lambda = 0 alone, USD, USD with refined views and a surface
    sweeps      omega; lambda = 1 with the free null; one step of specialisation, no negatives; the reference view's
                score against squared errors, and neither; the reference view's score for the surface, too
    views       the view prior's novel views without guidance, with its own null, with the free null
    elevation   the estimate of the picture's elevation at seven true ones
    agreement   by how much the view prior's raw views contradict each other, and the field's renderings, the refined
                ones and true renders from the same cameras; a table of what main measured on the way

For each object of the folder (a data pack's val; the first N with a front, shuffled by the seed) the variants share
one run folder, in which stages that do not differ are made once, and so do the parts main and sweeps. Figures are those
of the object benchmark and are kept one file a variant: the same command goes on where it was stopped, and prints a
Markdown table of all that is there. `processor` counts every stage that a result rests on, in processor seconds, also
those that an earlier variant made. `--shard 0/2` and `--shard 1/2` in two processes share the objects out. Ground truth
never reaches the method, apart from the elevation with `--given`.

`--base guided` takes away what holds nano's field to the sampled views after the warm start, and lets the guidance
move it further: with nano's own settings these views and the picture decide more than the guidance does.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maquette.asset import Mesh, load_mesh
from maquette.evaluation.objects import ObjectBenchmark, choose_objects
from maquette.evaluation.quality import bootstrap_interval
from maquette.evaluation.truth import Protocol, Truth
from maquette.images import CameraEstimate, ImagePrompt, Prompt, Views, save_image, sheet
from maquette.methods import usd
from maquette.priors.hub import load_free_prior, load_view_prior
from maquette.rendering import render_mesh
from maquette.run import Run, fingerprint
from maquette.run.files import write_json
from maquette.run.memory import keep_freed_memory
from maquette.run.record import read_log
from maquette.schedules import Constant, Linear
from maquette.stages.elevation import disagreement, estimate_elevation, shrink
from maquette.stages.novel import sample_novel_views
from maquette.stages.translate import Translated

FIGURES = ("psnr", "ssim", "perceptual", "silhouette_iou", "chamfer", "volume_iou")
TRUE_ELEVATIONS = (-15.0, 0.0, 15.0, 30.0, 45.0, 60.0, 70.0)
Change = Callable[[usd.Config], usd.Config]


def field_only(config: usd.Config) -> usd.Config:
    """The mesh of the radiance field itself, neither refined nor recovered."""
    return replace(config, refinement=None, recovery=None)


def guided_by(**changes: Any) -> Change:
    """Another guidance, and the field's own mesh."""
    return lambda config: field_only(replace(config, guidance=replace(config.guidance, **changes)))


def refined_with(**changes: Any) -> Change:
    """Another refinement."""

    def change(config: usd.Config) -> usd.Config:
        assert config.refinement is not None
        return replace(config, refinement=replace(config.refinement, **changes))

    return change


def picture_view(score: bool, errors: bool) -> Change:
    """The picture's own view by its score, by plain squared errors of colour and outline, by both or by neither; the
    picture is not painted onto the mesh, where it would hide what the field made of it."""

    def change(config: usd.Config) -> usd.Config:
        assert config.prompt_view is not None
        view = replace(config.prompt_view, measure="l2") if errors else None
        reference = config.reference if score else None
        return field_only(replace(config, reference=reference, prompt_view=view, paint_prompt=False))

    return change


def surface_reference(config: usd.Config) -> usd.Config:
    """The picture's own view also by its score while the surface is fitted, every tenth step, as in the paper."""
    assert config.reference is not None
    return replace(config, surface_reference=replace(config.reference, every=10))


# Variants that share stages stand beside each other, for a run folder keeps the newest result of a stage.
MAIN: dict[str, Change] = {
    "sds": guided_by(null="own", lambda_=1.0),
    "lambda 0": guided_by(null="own"),
    "usd": field_only,
    "usd refined": lambda config: config,
}
SWEEPS: dict[str, Change] = {
    "usd": field_only,
    "usd refined": lambda config: config,
    "one step": refined_with(steps=1),
    "no negatives": refined_with(negatives=False),
    "not refined": lambda config: replace(config, refinement=None),
    "surface reference": surface_reference,
    "omega 1": guided_by(omega=1.0),
    "omega 4": guided_by(omega=4.0),
    "omega 7.5": guided_by(omega=7.5),
    "lambda 1, free null": guided_by(lambda_=1.0),
    "score and errors": picture_view(score=True, errors=True),
    "reference score alone": picture_view(score=True, errors=False),
    "squared errors alone": picture_view(score=False, errors=True),
    "neither": picture_view(score=False, errors=False),
}


def base_config(options: argparse.Namespace) -> usd.Config:
    """What all variants start from."""
    config = replace(usd.nano(options.quality), weights=options.weights, free_weights=options.free_weights)
    if options.base == "guided":
        fit = replace(config.fit, rate=Linear(0.5, 0.05), total_variation=Constant(1.0))
        config = replace(config, keep_views=None, fit=fit)
    return config


def reconstruct(
    truth: Truth, folder: Path, base: usd.Config, variants: Mapping[str, Change], seed: int, given: bool
) -> None:
    """Make and measure variants of an object."""
    camera = CameraEstimate(0.0, truth.protocol.elevation, 1.0, 0.0, True) if given else None
    inputs = {"prompt": fingerprint(truth.prompt), "given": given}
    for name in variants:
        with Run.open(folder / "run", config=base, seed=seed, method="usd", inputs=inputs, quiet=True) as run:
            asset = usd.usd(Prompt(truth.prompt, camera=camera), variants[name](base), run)
            cost = spent(run)
        asset.save(figures_file(folder, name).with_suffix(".glb"))
        cameras = truth.protocol.circle(4, 20.0, 128, azimuth=30.0)
        seen = [render_mesh(mesh, cameras, samples=2).views() for mesh in (truth.mesh, truth.aligned(asset.mesh))]
        rows = torch.cat([views.composite(torch.ones(3)) for views in seen])
        save_image(figures_file(folder, name).with_suffix(".png"), sheet(rows, columns=4))
        if name == "usd refined":
            agree(truth.mesh, folder)
        write_json(figures_file(folder, name), {**truth.score(asset.mesh), **cost})
        report(folder, name)


def spent(run: Run) -> dict[str, float]:
    """Seconds, and processor seconds, of all stages that the newest result of a run rests on, whoever made them."""
    stages = {stage.name for stage in run.times}
    lines = [line for line in read_log(run.folder) if line.get("event") == "finished" and line["stage"] in stages]
    return {"seconds": sum(line["took"] for line in lines), "processor": sum(line["processor"] for line in lines)}


def sample_views(truth: Truth, folder: Path, base: usd.Config, seed: int) -> None:
    """Novel views around the object at the picture's true height, which is given here, against the object's own."""
    camera = CameraEstimate(0.0, truth.protocol.elevation, 1.0, 0.0, True)
    view, free = load_view_prior(base.prior, base.weights), load_free_prior(base.free_prior, base.free_weights)
    condition = view.condition(Prompt(truth.prompt, camera=camera), torch.ones(3))
    cameras = usd.ring_cameras(base, truth.protocol.elevation, view.codec.image_size)
    sampling = base.novel.sampling
    for name, null, scale in (
        ("no guidance", None, 1.0),
        ("own null", None, sampling.guidance_scale),
        ("free null", free, sampling.guidance_scale),
        ("own null 3", None, 3.0),
        ("free null 3", free, 3.0),
    ):
        if figures_file(folder, name).exists():
            continue
        with Run.open(folder / "run", config=base, seed=seed, method="usd", quiet=True) as run:
            settings = replace(sampling, guidance_scale=scale)
            views = run.stage(name.replace(" ", "_"), sample_novel_views, view, null, condition, cameras, settings)
        save_image(figures_file(folder, name).with_suffix(".png"), sheet(views.composite(torch.ones(3))))
        write_json(figures_file(folder, name), truth.score_views(views)[0])
        report(folder, name)


def estimate(mesh: Mesh, elevation: float, folder: Path, base: usd.Config, seed: int) -> None:
    """The estimate of the picture's elevation, and by how much it is wrong."""
    name = f"true {elevation:g}"
    if figures_file(folder, name).exists():
        return
    assert base.pose is not None
    seen = render_mesh(mesh, Protocol(elevation=elevation).prompt_camera(), samples=3).views()
    assert seen.masks is not None
    prompt = Prompt(ImagePrompt(seen.images[0], seen.masks[0]))
    view, free = load_view_prior(base.prior, base.weights), load_free_prior(base.free_prior, base.free_weights)
    with Run.open(folder / "run", config=base, seed=seed, method="usd", quiet=True) as run:
        null = free if base.novel.rectified else None
        found = run.stage("elevation", estimate_elevation, view, null, prompt, base.pose)
    error = abs(found.camera.elevation - elevation)
    figures = {"found": found.camera.elevation, "error": error, "reliable": float(found.camera.reliable)}
    write_json(figures_file(folder, name), figures)
    report(folder, name)


def agree(mesh: Mesh, folder: Path) -> None:
    """The disagreement of views around the object, as the search for the elevation measures it, in an object's run."""
    stages = folder / "run" / "stages"
    raw = Views.load(stages / "views" / "result")
    sets = {
        "raw views": raw,
        "renderings": Views.load(stages / "renderings" / "result")[: len(raw)],
        "refined": Translated.load(stages / "refined" / "result").views[: len(raw)],
        "true views": render_mesh(mesh, raw.cameras, samples=3).views(),
    }
    for name, views in sets.items():
        assert views.masks is not None
        pictures = shrink(torch.cat([views.composite(torch.ones(3)), views.masks], dim=1), 32)
        value = disagreement(pictures, views.cameras.with_size(32, 32))
        write_json(figures_file(folder, name), {"disagreement": float(value)})


def figures_file(folder: Path, name: str) -> Path:
    """Where the figures of a variant of an object are kept."""
    return folder / f"{name.replace(' ', '-').replace(',', '')}.json"


def report(folder: Path, name: str) -> None:
    """One line about what was just measured."""
    figures = json.loads(figures_file(folder, name).read_text("utf-8"))
    shown = [f"{key} {value:.3g}" for key, value in figures.items() if key in (*FIGURES, "found", "seconds")]
    print(folder.name, name, " ".join(shown), flush=True)


def table(out: Path, ids: list[str], variants: Collection[str], columns: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Means over the objects that have each of the `variants` that any has, as Markdown and as data, with the paired
    difference of the first figure from the variant "usd" where there is one (95 % bootstrap intervals).
    """
    files = {figures_file(Path(), name).stem: name for name in variants}
    found = {
        id: {p.stem: json.loads(p.read_text("utf-8")) for p in (out / id).glob("*.json") if p.stem in files}
        for id in ids
    }
    names = [name for name in files if any(name in measured for measured in found.values())]
    whole = [id for id in ids if names and all(name in found[id] for name in names)]
    compared = "usd" in names
    last = [f"{columns[0]} against usd"] if compared else ["median error"] if "error" in columns else []
    lines = ["| " + " | ".join([f"{len(whole)} objects", *columns, *last]) + " |"]
    lines.append("| --- " * (1 + len(columns) + len(last)) + "|")
    data: dict[str, Any] = {"objects": whole, "variants": {}}
    for name in names if whole else []:
        values = {c: torch.tensor([found[id][name][c] for id in whole], dtype=torch.float64) for c in columns}
        means = {c: float(value.mean()) for c, value in values.items()}
        beside = ["–"] if compared else []
        if compared and name != "usd":
            usual = torch.tensor([found[id]["usd"][columns[0]] for id in whole], dtype=torch.float64)
            difference = values[columns[0]] - usual
            low, high = bootstrap_interval(difference, 0)
            beside = [f"{float(difference.mean()):+.2f} [{low:+.2f}, {high:+.2f}]"]
            data["variants"][name] = {"mean": means, "difference": [float(difference.mean()), low, high]}
        else:
            data["variants"][name] = {"mean": means}
        if "error" in columns:
            median = data["variants"][name]["median error"] = float(values["error"].median())
            beside = [f"{median:.1f}"]
        cells = [f"{means[c]:.3f}" if c != "psnr" else f"{means[c]:.2f}" for c in columns]
        lines.append("| " + " | ".join([name, *cells, *beside]) + " |")
    return "\n".join(lines), data


VARIANTS: dict[str, Collection[str]] = {
    "main": MAIN,
    "sweeps": SWEEPS,
    "views": ("no guidance", "own null", "free null", "own null 3", "free null 3"),
    "elevation": tuple(f"true {elevation:g}" for elevation in TRUE_ELEVATIONS),
    "agreement": ("raw views", "renderings", "refined", "true views"),
}
"""Part -> its variants, in the order of the table."""


def main(options: argparse.Namespace) -> None:
    """Measure what is missing, and print what is there."""
    rows = choose_objects(options.folder, ObjectBenchmark(limit=options.limit, seed=options.seed))
    base = base_config(options)
    shard, shards = (int(part) for part in options.shard.split("/"))
    settings = [*([options.base] if options.base != "nano" else []), *["given"] * options.given]
    # The estimates at all elevations of an object stand beside each other; other parts have a folder an elevation.
    settings += [] if options.part == "elevation" else [f"{options.elevation:g}"]
    kind = "objects" if options.part in ("main", "sweeps", "agreement") else options.part
    out = options.out / "-".join([kind, *settings, options.quality])
    for index, row in enumerate(rows):
        if index % shards != shard or options.part == "agreement":  # which main has measured on the way
            continue
        folder = out / row["id"]
        mesh = load_mesh(options.folder / row["file"]).normalized()
        if options.part == "elevation":
            for elevation in TRUE_ELEVATIONS:
                estimate(mesh, elevation, folder, base, options.seed)
            continue
        everything = {name: change for name, change in {**MAIN, **SWEEPS}.items() if name in chosen_variants(options)}
        missing = {name: change for name, change in everything.items() if not figures_file(folder, name).exists()}
        if options.part != "views" and not missing:
            continue
        truth = Truth.of(mesh, Protocol(elevation=options.elevation), options.seed, row["id"])
        if options.part == "views":
            sample_views(truth, folder, base, options.seed)
        else:
            reconstruct(truth, folder, base, missing, options.seed, options.given)
    columns = {
        "views": ("psnr", "ssim", "perceptual", "silhouette_iou"),
        "elevation": ("found", "error", "reliable"),
        "agreement": ("disagreement",),
    }
    shown = columns.get(options.part, (*FIGURES, "processor"))
    text, data = table(out, [row["id"] for row in rows], chosen_variants(options), shown)
    write_json(out / f"{options.part}.json", data)
    print(text)


def chosen_variants(options: argparse.Namespace) -> Collection[str]:
    """The variants of the part, or those of them that were asked for."""
    everything = VARIANTS[options.part]
    if unknown := [name for name in options.variants or () if name not in everything]:
        raise SystemExit(f"{options.part} has no variant {unknown[0]!r}; it has {', '.join(everything)}")
    return [name for name in everything if options.variants is None or name in options.variants]


def arguments() -> argparse.Namespace:
    """The options."""
    repository = Path(__file__).resolve().parent.parent
    shared = Path(os.environ.get("MAQUETTE_SHARED", repository.parent / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(VARIANTS))
    parser.add_argument("folder", nargs="?", type=Path, default=shared / "data" / "objects" / "val")
    parser.add_argument("--out", type=Path, default=Path("runs/usd"), help="folder for figures, pictures and runs")
    parser.add_argument("--limit", type=int, default=12, help="objects")
    parser.add_argument("--elevation", type=float, default=30.0, help="of the prompt's camera, degrees")
    parser.add_argument("--given", action="store_true", help="tell the method the elevation")
    parser.add_argument("--quality", choices=("draft", "default", "high"), default="draft")
    parser.add_argument("--base", choices=("nano", "guided"), default="nano", help="what variants start from")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of main or sweeps, only these")
    parser.add_argument("--weights", type=Path, help="another package of the view prior")
    parser.add_argument("--free-weights", type=Path, help="another package of the free prior")
    parser.add_argument("--shard", default="0/1", help="I/N: only every N-th object, from the I-th on")
    parser.add_argument("--seed", type=int, default=0, help="of the order, of the method and of the intervals")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = arguments()
    keep_freed_memory()
    torch.set_num_threads(chosen.threads)
    main(chosen)
