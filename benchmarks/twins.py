"""Small priors that differ in one thing: `python benchmarks/twins.py PACKED VAL OBJECTS [--out FOLDER] [--steps 600]`.

ImageDream says that canonical cameras are better than ones relative to the prompt, and that resampling the encoder's
tokens keeps strong guidance from over-exposing. Each twin is trained from new weights on PACKED (`maquette render
--pack`), with the shipped encoders, the recipe of `maquette train nano`, the same budget and seed; nothing but what its
name says is changed. Then two tables are written to FOLDER/twins.md: errors of x0 on the packed renders VAL of other
objects, half of the prompts the exact front, as in `benchmarks/denoising.py` (each twin is told cameras as it was
taught); and sampled views of OBJECTS at several guidance scales (`maquette evaluate objects --method views`).

Everything is kept in FOLDER, and the same command goes on where it was. One process an invocation: `--names` splits the
training over several.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from denoising import errors, scenes_of

from maquette.priors.hub import load_prior
from maquette.training.data import PackedObjects
from maquette.training.encoders import EncoderTraining
from maquette.training.multiview import MultiViewTraining
from maquette.training.nano import NanoRecipe, packaged_encoders, train_nano
from maquette.training.validation import LEVELS
from maquette.training.weights import save_weights


def without_resampler(recipe: MultiViewTraining) -> MultiViewTraining:
    """The encoder's tokens go to the network one by one."""
    assert recipe.unet.image_prompt is not None
    return replace(recipe, unet=replace(recipe.unet, image_prompt=replace(recipe.unet.image_prompt, resample=False)))


TWINS: dict[str, Callable[[MultiViewTraining], MultiViewTraining]] = {
    "as shipped": lambda recipe: recipe,
    "relative cameras": lambda recipe: replace(recipe, relative_cameras=True),
    "no resampler": without_resampler,
}
FIGURES = {"psnr": "PSNR", "silhouette_iou": "silhouette IoU", "saturation_excess": "saturation excess"}


def recipe_of(name: str, steps: int, front_prompts: float) -> NanoRecipe:
    """The recipe of a twin: one chunk from new weights, its first third on fronts alone."""
    common = replace(NanoRecipe().prior, steps=steps, warmup=max(1, steps // 10), front_only=0.3, seed=7,
                     front_prompts=front_prompts)  # fmt: skip
    return NanoRecipe(prior=TWINS[name](common))


def folder_of(out: Path, name: str) -> Path:
    """Where a twin is trained."""
    return out / name.replace(" ", "-")


def train(name: str, packed: Path, out: Path, steps: int, front_prompts: float) -> None:
    """Train a twin, or go on with it; its package is then in the folder of `folder_of`."""
    folder = folder_of(out, name)
    if (folder / "package" / "card.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "encoders.safetensors").exists():
        save_weights(
            folder / "encoders.safetensors", packaged_encoders(None, EncoderTraining()), {"from": "the shipped package"}
        )
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        train_nano(
            packed, folder, recipe_of(name, steps, front_prompts),
            log=lambda entry: print(json.dumps(entry), file=log, flush=True),
        )  # fmt: skip


def denoising_table(names: list[str], val: Path, out: Path, scenes: int) -> str:
    """Errors of x0 in [-1, 1] times 1000."""
    data = PackedObjects.open(val)
    lines = ["| | " + " | ".join(f"t = {level}" for level in LEVELS) + " |", "| --- " * (len(LEVELS) + 1) + "|"]
    for name in names:
        prior = load_prior("nano", folder_of(out, name) / "package")
        relative = recipe_of(name, 1, 0.0).prior.relative_cameras
        found = errors(prior, scenes_of(data, prior, scenes, relative=relative))
        lines.append(f"| {name} | " + " | ".join(f"{1000 * found[level]:.1f}" for level in LEVELS) + " |")
    return "\n".join(lines)


def views_table(names: list[str], objects: Path, out: Path, limit: int, scales: list[float]) -> str:
    """Sampled views, a row a twin and guidance scale; the saturation is that beyond the truth's."""
    lines = ["| | guidance | " + " | ".join(FIGURES.values()) + " |", "| --- " * (len(FIGURES) + 2) + "|"]
    for name in names:
        for scale in scales:
            path = folder_of(out, name) / f"views-{scale:g}.json"
            subprocess.run(
                [
                    sys.executable, "-m", "maquette", "evaluate", "objects", str(objects), "--method", "views",
                    "--no-baselines", "--limit", str(limit), "--sampling.guidance-scale", str(scale),
                    "--weights", str(folder_of(out, name) / "package"), "--out", str(path),
                ],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            entries = json.loads(path.read_text(encoding="utf-8"))["objects"]
            means = [sum(entry[figure] for entry in entries) / len(entries) for figure in FIGURES]
            lines.append(f"| {name} | {scale:g} | " + " | ".join(f"{mean:.3g}" for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("objects", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/twins"))
    parser.add_argument("--steps", type=int, default=600, help="of 16 scenes, four views each")
    parser.add_argument("--front-prompts", type=float, default=0.5, help="share of prompts that show the exact front")
    parser.add_argument("--scenes", type=int, default=64, help="of the errors")
    parser.add_argument("--limit", type=int, default=12, help="objects of the sampled views")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.7, 3.0, 5.0, 8.0], help="of the guidance")
    parser.add_argument("--names", nargs="+", choices=TWINS, default=list(TWINS), help="train these alone, no tables")
    options = parser.parse_args()
    if 16 * options.steps > 40_000:
        parser.error(f"an ablation takes at most 40 000 scenes, {options.steps} steps are {16 * options.steps}")
    for name in options.names:
        train(name, options.packed, options.out, options.steps, options.front_prompts)
    if set(options.names) == set(TWINS):
        names = list(TWINS)
        text = denoising_table(names, options.val, options.out, options.scenes)
        text += "\n\n" + views_table(names, options.objects, options.out, options.limit, options.scales) + "\n"
        (options.out / "twins.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
