"""DreamBooth3D beside its baselines: `python benchmarks/subjects.py OBJECTS [--out FOLDER] [--quality draft]`

OBJECTS is a data pack of known objects (a folder with an index.jsonl). For each of the first `--limit` of `SUBJECTS`,
photos of the object are made up (five sides, varied backgrounds; no mask, no camera), and for each of its prompts every
variant makes an object of them with everything else equal: the caption, the seed, the learned models, the steps. Then
`maquette evaluate subject` measures all of them, and two tables are written to FOLDER/subjects.md: means over subjects
and prompts, a row a variant, with 95 % bootstrap intervals; and one row a case. FOLDER/subjects.json holds all figures.

Everything is kept in FOLDER and reused: a call that was broken off goes on where it was, and a second call may ask for
more subjects, prompts or variants. The subject is learned once, by the first variant; the others begin with
`--subject-from`. `--jobs 2` runs two cases at a time, one thread each. Options after `--` go to every run, such as
`-- --weights other/prior`.

Figures against the true object count for prompts that do not change its colours (`PLAIN`) and are left out elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maquette.asset import load_mesh
from maquette.evaluation.baselines import read_index
from maquette.evaluation.quality import bootstrap_interval
from maquette.evaluation.stand_ins import ACCOUNT, make_stand_in


@dataclass(frozen=True)
class Case:
    """An object of the pack as a subject."""

    id: str
    noun: str
    description: str
    """In words, in place of "[v] NOUN", for R-precision; the method never sees it."""
    prompts: tuple[str, ...]
    """Captions; the first asks for the subject as it is."""


SUBJECTS = (
    Case("kaykit_furniture__armchair_pillows", "armchair", "yellow armchair with a blue pillow",
         ("a [v] armchair", "a green [v] armchair")),
    Case("kenney_space__robot", "robot", "boxy red cleaning robot", ("a [v] robot", "a blue [v] robot")),
    Case("kenney_market__tractor", "tractor", "yellow tractor with a front bucket",
         ("a [v] tractor", "a red [v] tractor")),
    Case("quat_animals__horse", "horse", "brown horse", ("a [v] horse", "a white [v] horse")),
    Case("quat_survival__tent", "tent", "green camping tent", ("a [v] tent", "an orange [v] tent")),
    Case("kaykit_restaurant__fridge_a", "refrigerator", "green retro refrigerator with two doors",
         ("a [v] refrigerator", "a pink [v] refrigerator")),
)  # fmt: skip
VARIANTS = {
    "full": "",
    "one-stage": "--variant one-stage",
    "two-stage": "--pseudo-views none",
    "no-reconstruction": "--reconstruction none",
    "initial": "--variant initial",
    "latent-nerf": "--variant latent-nerf",
    "multi-view": "--guidance recon --guidance.guidance-scale 3 --guidance.rescale 0.5",
    "surface": "--final-scene surface --final-scene.samples.value 96",
    "warm-start": "--warm-start",
    "refined": "--refinement refinement",
    "classifier-score": "--guidance.lambda_ 0",
    "noise-free": "--guidance noise-free --guidance.guidance-scale 1.5",
    "perp-neg": "--guidance perp-neg --guidance.guidance-scale 1.5",
    "colours-alone": "--reconstruction.compare moments",
    "thin": "--distillation.resolution.value 64 --distillation.regularizers.sparsity.value 0 "
    "--final-scene.samples.value 192 --reconstruction.mask.value 0.5",
    "words-start": "--first-views.photo None",
    "empty-start": "--first-views none",
    "one-stage-empty": "--variant one-stage --first-views none",
}
"""Name -> options. The first learns the subject; two-stage is the method without stage 2."""
PLAIN = re.compile(r"a \[v\] \w+")
"""Prompts that ask for the subject as it is."""
SHOWN = ("nano-judge_subject", "nano-judge_precision", "nano-judge_text", "janus", "saturation", "turned_psnr",
         "turned_volume_iou", "pseudo_agreement", "seconds")  # fmt: skip
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make photos, objects and tables."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    extra = words[words.index("--") + 1 :] if "--" in words else []
    options = read_options(words[: words.index("--")] if "--" in words else words)
    cases = SUBJECTS[: options.limit]
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda case: list(one_subject(case, options, extra)), cases))
    rows = [row for part in done for row in part]
    (options.out / "subjects.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    text = describe(rows, options)
    (options.out / "subjects.md").write_text(text, encoding="utf-8")
    print(text)


def read_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/subjects"))
    parser.add_argument("--limit", type=int, default=4, help="subjects")
    parser.add_argument("--prompts", type=int, default=2, help="prompts a subject")
    parser.add_argument("--quality", default="draft", choices=("draft", "default", "high"))
    parser.add_argument("--variants", nargs="*", default=["full", "one-stage", "two-stage"], choices=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    return parser.parse_args(words)


def one_subject(case: Case, options: argparse.Namespace, extra: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of one subject."""
    photos = options.out / "photos" / case.id
    if not (photos / ACCOUNT).is_file():
        (row,) = [row for row in read_index(options.objects) if row["id"] == case.id]
        file = (options.objects / row["file"]).resolve()
        make_stand_in(load_mesh(file), photos, id=case.id, noun=case.noun, description=case.description, object=file)
    rows = []
    learned: Path | None = None
    for number, prompt in enumerate(case.prompts[: options.prompts]):
        for variant in options.variants:
            run = options.out / f"{options.quality}-{options.seed}" / f"{case.id}-{number}-{variant}"
            make(case, prompt, variant, run, photos, learned, options, extra)
            learned = learned or run
            rows.append(measure(case, prompt, variant, run, photos, options))
    return rows


def make(
    case: Case,
    prompt: str,
    variant: str,
    run: Path,
    photos: Path,
    learned: Path | None,
    options: argparse.Namespace,
    extra: Sequence[str],
) -> None:
    """One object; nothing to do where it is there."""
    if (run / "asset.glb").is_file() and (run / "provenance.json").is_file():
        return
    subject = [str(photos), "--subject", case.noun] if learned is None else ["--subject-from", str(learned)]
    settings = ["--quality", options.quality, "--seed", str(options.seed), "--device", "cpu", "--out", str(run)]
    maquette("dreambooth3d", *subject, "--caption", prompt, *settings, *VARIANTS[variant].split(), *extra)


def measure(
    case: Case, prompt: str, variant: str, run: Path, photos: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Figures of one object, measured once."""
    out = run.with_suffix(".json")
    if not out.is_file():
        plain = PLAIN.fullmatch(prompt) is not None
        truth = ["--photos", str(photos)] if plain else []
        maquette("evaluate", "subject", str(run), "--out", str(out), "--description", case.description,
                 "--distractors", str(options.objects), *truth)  # fmt: skip
    figures = json.loads(out.read_text(encoding="utf-8"))["runs"][0]["figures"]
    stages = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["stages"]
    figures["seconds"] = sum(stage["seconds"] for stage in stages.values())
    return {"id": case.id, "caption": prompt, "variant": variant, "quality": options.quality, **figures}


def maquette(*words: str) -> None:
    """Run a command; its last line on an error."""
    done = subprocess.run(
        [sys.executable, "-m", "maquette", *words], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SystemExit(f"maquette {' '.join(words[:2])}: {lines[-1] if lines else done.returncode}")


def describe(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Both tables."""
    cases = {(row["id"], row["caption"]) for row in rows}
    lines = [
        f"{len(cases)} cases of {len({id for id, _ in cases})} subjects, {options.quality} quality, seed "
        f"{options.seed}; one thread a run.",
        "",
        table("variant", [(name, [row for row in rows if row["variant"] == name]) for name in options.variants]),
        "",
        table("case", [(f"{row['id']}, {row['caption']}, {row['variant']}", [row]) for row in rows], single=True),
        "",
    ]
    return "\n".join(lines)


def table(head: str, groups: Sequence[tuple[str, Sequence[dict[str, Any]]]], single: bool = False) -> str:
    """Means of groups of rows."""
    names = [name for name in SHOWN if any(name in row for _, rows in groups for row in rows)]
    lines = [f"| {head} | " + " | ".join(name.replace("_", " ") for name in names) + " |"]
    lines.append("| --- |" + " --- |" * len(names))
    for title, rows in groups:
        cells = [cell([row[name] for row in rows if name in row], single) for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: Sequence[float], single: bool) -> str:
    """A mean with its interval over cases."""
    if not values:
        return "–"
    mean = sum(values) / len(values)
    if single or len(values) == 1:
        return f"{mean:.3g}"
    low, high = bootstrap_interval(torch.tensor(values, dtype=torch.float64))
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
