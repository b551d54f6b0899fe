"""What ImageDream's parts bring: `python benchmarks/ablations.py [OBJECTS] [--out FOLDER] [--groups ...] [--limit 4]`

Runs `maquette evaluate objects` once for every row of `GROUPS`, each with other settings of the method and everything
else equal, and writes one Markdown table a group to FOLDER/ablations.md. All that a row made is kept in FOLDER, so a
second call goes on where the first ended, and more objects can be asked for later. `--jobs 2` runs two rows at a time,
one thread each. Options after `--` go to every row, such as `-- --weights other/prior`.

A figure with a star differs from its group's first row: the 95 % bootstrap interval of the difference, object by
object, leaves out 0; with fewer than three objects there are none. Floaters: *left* is the volume of pieces that
nowhere meet the object, in volumes of it; *removed* the share of the extracted volume that cleaning took away before.
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

from maquette.evaluation.quality import bootstrap_interval


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    words: str = ""
    """Options of the method, as they are typed."""


@dataclass(frozen=True)
class Group:
    """Rows to compare with the first of them."""

    method: str
    rows: tuple[Row, ...]


PAPER = "--outlines none --warm-start none --keep-views none --paint-views none --prompt-view none"
CENTRES = "--warm-start.photometric.no-between --keep-views.no-between --prompt-view.photometric.no-between"
GROUPS = {
    "controllers": Group(
        "views",
        tuple(
            Row(control, f"--control {control}")
            for control in (
                "local+pixel", "global+local+pixel", "global+pixel", "global+local", "pixel", "local", "global", "none",
            )
        ),
    ),
    "guidance": Group(
        "views",
        tuple(Row(f"scale {scale}", f"--sampling.guidance-scale {scale}") for scale in (1.7, 1, 1.5, 2, 3, 5)),
    ),
    "sampling": Group(
        "views",
        (
            Row("averaged over 16, 2 steps"),
            Row("averaged over 4, 5 steps", "--sampling.steps 5 --sampling.draws 4"),
            Row("averaged over 1, 5 steps", "--sampling.steps 5 --sampling.draws 1"),
            Row("eta 0, 20 steps", "--sampling.sampler ddim --sampling.steps 20"),
            Row("eta 1, 20 steps", "--sampling.sampler ddim --sampling.steps 20 --sampling.eta 1"),
            Row("unconditional: a flat picture", "--sampling.unconditional flat"),
        ),
    ),
    "outlines": Group("views", (Row("one for opposite views"), Row("as drawn", "--outlines none"))),
    "background": Group("views", tuple(Row(name, f"--background {name}") for name in ("key", "white", "grey"))),
    "additions": Group(
        "imagedream",
        (
            Row("all"),
            Row("no distillation", "--distillation.weight.value 0"),
            Row("no warm start", "--warm-start none"),
            Row("views not kept", "--keep-views none"),
            Row("views not painted", "--paint-views none"),
            Row("no prompt view", "--prompt-view none"),
            Row("the prompt's camera searched", "--prompt-view.match none"),
            Row("not held to its outline", "--prompt-view.no-outline"),
            Row("pits left open", "--mesh.no-fill-pits"),
            Row("no blur", "--mesh.blur 0"),
            Row("rays through pixel centres", CENTRES),
            Row("no total variation", "--warm-start.fit.total-variation.value 0 --fit.total-variation.value 0"),
            Row("the whole cube", "--scene.field.radius 2"),
            Row("none, as in the paper", PAPER),
        ),
    ),
    "rings": Group("imagedream", tuple(Row(f"{k} of four views", f"--warm-start.rings {k}") for k in (1, 2, 4))),
    "alignment": Group(
        "imagedream",
        tuple(Row(name, f"{PAPER} --guidance.alignment {name}") for name in ("colour", "grey", "none")),
    ),
    "cameras": Group(
        "imagedream",
        tuple(
            Row(f"elevation {low} to {high}", f"{PAPER} --cameras.elevation {low} {high}")
            for low, high in ((-5, 30), (0, 5), (-60, 85))
        ),
    ),
    "control": Group(
        "imagedream",
        tuple(Row(c, f"--control {c}") for c in ("local+pixel", "global+local+pixel", "global+local", "global")),
    ),
}  # fmt: skip
COLUMNS = {
    "chamfer": "Chamfer",
    "volume_iou": "volume IoU",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "silhouette_iou": "silhouette IoU",
    "perceptual": "perceptual",
    "nano-judge_image": "likeness",
    "saturation_excess": "saturation excess",
    "floater_volume": "floaters left",
    "floaters_removed": "floaters removed",
    "seconds": "seconds",
}
FEW = 3
"""Objects from which on an interval says something."""


def file_of(out: Path, group: str, row: Row) -> Path:
    """Where a row's figures are."""
    return out / group / (re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-") + ".json")


def command(out: Path, group: str, row: Row, options: argparse.Namespace) -> list[str]:
    """The command that makes a row's figures."""
    method = GROUPS[group].method
    words = [sys.executable, "-m", "maquette", "evaluate", "objects", str(options.objects), "--method", method]
    words += ["--out", str(file_of(out, group, row)), "--quality", options.quality, "--seed", str(options.seed)]
    words += ["--no-baselines", "--limit", str(options.limit)]
    return [*words, *row.words.split(), *options.more]


def read_row(path: Path, ids: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Figures of a row's objects, those of `ids` only and in that order, with what cleaning removed."""
    objects = {entry["id"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["objects"]}
    chosen = [objects[id] for id in (objects if ids is None else ids)]
    return [{**entry, **removed(path.with_suffix("") / entry["id"] / "run" / "log.jsonl")} for entry in chosen]


def removed(log: Path) -> dict[str, float]:
    """The share of the extracted volume that cleaning took away, by a run's log; nothing where no mesh was made."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found = [entry for line in lines if (entry := json.loads(line)).get("event") == "mesh_quality"]
    return {"floaters_removed": found[-1]["floater_volume_share"]} if found else {}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: means over objects, a star where the difference to the first row has a sign."""
    first = next(iter(rows.values()))
    names = [name for name in COLUMNS if all(name in entry for row in rows.values() for entry in row)]
    lines = ["| | " + " | ".join(COLUMNS[name] for name in names) + " |", "| --- " * (len(names) + 1) + "|"]
    for row, entries in rows.items():
        cells = []
        for name in names:
            values, before = (torch.tensor([e[name] for e in es], dtype=torch.float64) for es in (entries, first))
            low, high = bootstrap_interval(values - before)
            star = "*" if name != "seconds" and len(values) >= FEW and (low > 0 or high < 0) else ""
            cells.append(f"{float(values.mean()):{'.0f' if name == 'seconds' else '.3g'}}{star}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(out: Path, groups: Sequence[str]) -> str:
    """The tables of all rows that are there, also to out/ablations.md."""
    parts = []
    for name in groups:
        paths = {row.name: file_of(out, name, row) for row in GROUPS[name].rows}
        paths = {row: path for row, path in paths.items() if path.exists()}
        if GROUPS[name].rows[0].name not in paths:
            continue
        known = [{entry["id"] for entry in read_row(path)} for path in paths.values()]
        first = [entry["id"] for entry in read_row(next(iter(paths.values())))]
        ids = [id for id in first if all(id in others for others in known)]
        if ids:
            rows = {row: read_row(path, ids) for row, path in paths.items()}
            parts.append(f"### {name} ({GROUPS[name].method}, {len(ids)} objects)\n\n{table(rows)}\n")
    text = "\n".join(parts)
    out.mkdir(parents=True, exist_ok=True)
    (out / "ablations.md").write_text(text, encoding="utf-8")
    return text


def main() -> int:
    shared = Path(os.environ.get("MAQUETTE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", type=Path, nargs="?", default=shared / "data" / "objects" / "val")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--limit", type=int, default=4, help="objects a row")
    parser.add_argument("--quality", default="draft", choices=("draft", "default", "high"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    before, _, after = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(sys.argv[1 : 1 + len(before.split())])
    options.more = after.split()
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {})
    failed = []

    def run(group: str, row: Row) -> None:
        path = file_of(options.out, group, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".log").open("w") as log:
            words = command(options.out, group, row, options)
            if subprocess.run(words, stdout=log, stderr=log, env=environment).returncode:
                failed.append(f"{group}, {row.name}: {path.with_suffix('.log')}")
        print(f"{group}: {row.name}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in pool.map(lambda item: run(*item), [(g, row) for g in options.groups for row in GROUPS[g].rows]):
            pass
    print(write(options.out, options.groups))
    print("\n".join(f"failed: {line}" for line in failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
