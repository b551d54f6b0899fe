"""Which of two results do people prefer? A blinded page that records votes, and the share that the votes give.

`build_comparison` writes one self-contained HTML file: for each case the prompt and two turntables of equal size,
light and background, sides and order shuffled, and two questions as in the papers' user studies, geometry and
likeness. The page holds neither names nor which side is which; that is in a key file beside it, which voters do not
get. Votes stay in the voter's browser until they save them to a file; `tally` reads such files with the key.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from maquette.asset import load_mesh
from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.evaluation.quality import wilson_interval
from maquette.images import read_image
from maquette.rendering.lighting import Lighting
from maquette.rendering.raster import render_mesh
from maquette.run.files import write_json, write_text

QUESTIONS = {
    "geometry": "Which one has the better shape: whole, plausible from every side?",
    "likeness": "Which one looks more like the picture?",
}
CHOICES = ("left", "equal", "right")
_PAGE = Path(__file__).parent / "compare.html"


@dataclass(frozen=True)
class Comparison:
    """How the page shows the results."""

    frames: int = 24
    """Pictures of a turntable."""
    size: int = 256
    """Pixels a side."""
    elevation: float = 15.0
    """Degrees, of the turning camera."""
    seconds: float = 4.0
    """For one turn."""
    seed: int = 0
    """Decides sides and order."""


def build_comparison(
    first: str | Path,
    second: str | Path,
    out: str | Path = "compare.html",
    config: Comparison = Comparison(),
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the page `out` and, beside it, its key `<out>.key.json`; returns the key's path.

    Both arguments are run folders, or folders of them (the object benchmark's, a batch's), in which cases of equal
    name are compared. Both assets are normalised and rendered here alike, so that nothing but the object tells them
    apart. Raises UserError if there is nothing to compare, or a prompt is missing.
    """
    folders, out = (Path(first), Path(second)), Path(out)
    cases = find_cases(*folders)
    shuffle = random.Random(config.seed)
    names = sorted(cases)
    shuffle.shuffle(names)
    shown, key = [], []
    for index, name in enumerate(names):
        say(f"{index + 1}/{len(names)} {name}")
        pair = cases[name]
        swapped = shuffle.random() < 0.5
        sides = [turntable(folder / "asset.glb", config) for folder in pair]
        shown.append([prompt_picture(pair), *(reversed(sides) if swapped else sides)])
        key.append({"case": name, "left": "second" if swapped else "first"})
    page = hashlib.sha256(json.dumps([key, [str(folder.resolve()) for folder in folders]]).encode()).hexdigest()[:16]
    questions = {name: escape(text) for name, text in QUESTIONS.items()}
    content = json.dumps({"page": page, "cases": shown, "questions": questions, "choices": CHOICES})
    write_text(out, _PAGE.read_text(encoding="utf-8").replace("/*CONTENT*/null", content.replace("</", "<\\/")))
    key_path = out.with_suffix(".key.json")
    write_json(key_path, {"page": page, "first": folders[0].name, "second": folders[1].name, "cases": key})
    return key_path


def find_cases(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    """Run folders to compare, by name; UserError naming what is missing."""
    for folder in (first, second):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name two run folders, or two folders of them")
    if (first / "asset.glb").exists() and (second / "asset.glb").exists():
        return {"asset": (first, second)}
    found = [{path.parent.name: path.parent for path in folder.glob("*/asset.glb")} for folder in (first, second)]
    common = found[0].keys() & found[1].keys()
    if not common:
        counts = " and ".join(f"{len(runs)} in {folder}" for runs, folder in zip(found, (first, second), strict=True))
        raise UserError(f"no case is in both folders: there are {counts} with an asset.glb, none of equal name")
    return {name: (found[0][name], found[1][name]) for name in common}


def turntable(path: Path, config: Comparison) -> str:
    """One turn of an asset as a data URI (animated WebP), normalised, softly lit from the camera's side, on white."""
    from PIL import Image

    mesh = load_mesh(path).normalized()
    cameras = orbit(config.frames, elevation=config.elevation, height=config.size, width=config.size)
    # Shape must be visible, or a flat card with a good picture on it wins.
    seen = render_mesh(mesh, cameras, lighting=Lighting(ambient=0.55), samples=2).composite(torch.ones(3))
    frames = [Image.fromarray(frame) for frame in (seen * 255).round().to(torch.uint8).numpy()]
    buffer = io.BytesIO()
    duration = round(1000 * config.seconds / config.frames)
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=duration, loop=0, quality=85, method=4
    )
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def prompt_picture(pair: Sequence[Path]) -> str:
    """The prompt of a case as a data URI, on white; UserError if neither run kept it."""
    from PIL import Image

    for folder in pair:
        if (folder / "prompt.png").exists():
            image = read_image(folder / "prompt.png")
            if len(image) == 4:
                image = image[3:] * image[:3] + 1 - image[3:]
            pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    raise UserError(f"neither {pair[0]} nor {pair[1]} has a prompt.png to show beside the results")


def tally(key: str | Path, votes: Sequence[str | Path]) -> dict[str, Any]:
    """What saved votes say: for each question the share of `first`, its 95 % Wilson interval, and the counts.

    A vote for "equal" counts half for each side. `by_case` has the majority of each case. Raises UserError for a file
    that is not of this page, and for two files of one voter's name.
    """
    known = _read_object(Path(key))
    voters: dict[str, Path] = {}
    counts: dict[str, list[dict[str, int]]] = {
        question: [dict.fromkeys(("first", "equal", "second"), 0) for _ in known["cases"]] for question in QUESTIONS
    }
    for path in map(Path, votes):
        answers = _read_object(path)
        if answers.get("page") != known["page"]:
            raise UserError(f"{path} holds votes for another page than {key}")
        voter = str(answers.get("voter", ""))
        if voter in voters:
            raise UserError(f"{path} and {voters[voter]} are both of the voter {voter!r}; leave one out")
        voters[voter] = path
        for vote in answers["votes"]:
            question, index, choice = vote["question"], vote["case"], vote["choice"]
            if question not in counts or choice not in CHOICES or not 0 <= index < len(known["cases"]):
                raise UserError(f"{path} holds a vote that this page cannot give: {vote}")
            left = known["cases"][index]["left"]
            other = "second" if left == "first" else "first"
            counts[question][index][{"left": left, "right": other, "equal": "equal"}[choice]] += 1
    report: dict[str, Any] = {"first": known["first"], "second": known["second"], "voters": len(voters)}
    for question, by_case in counts.items():
        total = {name: sum(case[name] for case in by_case) for name in ("first", "equal", "second")}
        number = sum(total.values())
        wins = total["first"] + total["equal"] / 2
        majority = {
            entry["case"]: "equal"
            if case["first"] == case["second"]
            else max(("first", "second"), key=case.__getitem__)
            for entry, case in zip(known["cases"], by_case, strict=True)
            if sum(case.values())
        }
        report[question] = {
            "share": wins / number if number else None,
            "interval": list(wilson_interval(wins, number)),
            "votes": number,
            **total,
            "by_case": majority,
        }
    return report


def describe(report: dict[str, Any]) -> list[str]:
    """A tally in lines for people."""
    lines = [f"{report['first']} (first) against {report['second']} (second), {report['voters']} voters"]
    for question in QUESTIONS:
        entry = report[question]
        if not entry["votes"]:
            lines.append(f"{question}: no votes")
            continue
        low, high = (100 * bound for bound in entry["interval"])
        lines.append(
            f"{question}: {100 * entry['share']:.0f} % prefer the first (95 % interval {low:.0f} to {high:.0f} %, "
            f"{entry['votes']} votes: {entry['first']} first, {entry['equal']} equal, {entry['second']} second)"
        )
    return lines


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
    wanted = ("page", "votes") if "votes" in value or "cases" not in value else ("page", "cases")
    if not isinstance(value, dict) or any(name not in value for name in wanted):
        raise UserError(f"{path} is neither a comparison's key nor a file of votes")
    return value
