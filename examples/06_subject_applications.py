"""06. One subject, many objects: the applications of DreamBooth3D as commands.

Run `python examples/06_subject_applications.py [--photos FOLDER --subject NOUN] [--run NAME...] [--picture FILE]`.

What is done with a subject is said in the caption alone: another place, another pose, another colour or material, a
thing that it wears, another style. The subject is learned once, by the first command; the others begin with
`--subject-from`. This prints the commands twice, for Stable Diffusion on a GPU and for nano on a CPU, and for nano says
which words it was never taught, since it passes over those. `--run NAME...` makes some of them with nano, as drafts; by
default of the shipped photos of an armchair. `--picture FILE` puts them into one picture: the photos in the first row,
then a row for each name with four sides of what became of it. A cartoon becomes 3D the same way: put a few drawings of
the character into the folder, although all of them show its front.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import torch

from maquette import cli
from maquette.asset import load_mesh
from maquette.cameras import orbit
from maquette.images import save_image, sheet
from maquette.priors.nano.vocabulary import unknown_words
from maquette.rendering.raster import render_mesh
from maquette.subjects import read_subject
from maquette.wording import without_subject

PHOTOS = Path(__file__).parent / "images" / "yellow_armchair"
APPLICATIONS = {
    "as-it-is": ("the subject itself", "a [v] {noun}"),
    "place": ("recontextualisation", "a [v] {noun} in the snow"),
    "ground": ("recontextualisation", "a [v] {noun} on a purple rug"),
    "colour": ("colour editing", "a green [v] {noun}"),
    "material": ("material editing", "a wooden [v] {noun}"),
    "statue": ("material editing", "a stone statue of a [v] {noun}"),
    "hat": ("accessorisation", "a [v] {noun} wearing a red hat"),
    "outfit": ("accessorisation", "a [v] {noun} in a chef outfit"),
    "style": ("stylisation", "a low poly [v] {noun}"),
    "voxels": ("stylisation", "a voxel [v] {noun}"),
    "asleep": ("pose, for animals", "a [v] {noun} asleep"),
    "jumping": ("pose, for animals", "a [v] {noun} jumping"),
}
PAPER = "--preset paper --prior stable-diffusion-2.1-base"


def command(photos: Path, noun: str, name: str, settings: str, runs: str) -> str:
    """The command of one application; all but the first reuse the subject."""
    first = next(iter(APPLICATIONS))
    source = f"{shlex.quote(str(photos))} --subject {shlex.quote(noun)}"
    if name != first:
        source = f"--subject-from {runs}/{first}"
    caption = shlex.quote(APPLICATIONS[name][1].format(noun=noun))
    words = ["maquette dreambooth3d", source, f"--caption {caption}", settings, f"--out {runs}/{name}"]
    return " ".join(word for word in words if word)


def picture(photos: Path, noun: str, runs: list[Path], file: Path, size: int = 128) -> None:
    """Write the photos and, row by row, four sides of every run's object."""
    shown = read_subject(photos, noun=noun, size=size).photos.images()
    rows = [torch.cat([shown, torch.ones(4, 3, size, size)])[:4]]
    for run in runs:
        seen = render_mesh(
            load_mesh(run / "asset.glb"), orbit(4, elevation=15.0, azimuth=30.0, height=size, width=size)
        )
        rows.append(seen.composite(torch.ones(3)).movedim(-1, 1))
    save_image(file, sheet(torch.cat(rows), columns=4, gap=4))


def main() -> None:
    """Print the commands, and run one if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--subject", default="armchair")
    parser.add_argument("--run", nargs="+", choices=list(APPLICATIONS), default=[])
    parser.add_argument("--picture", type=Path, help="PNG of the photos and of what is run")
    options = parser.parse_args()
    for title, settings, runs in (
        ("Stable Diffusion 2.1 on a GPU", PAPER, "runs/subject"),
        ("nano on a CPU", "", "runs/nano-subject"),
    ):
        print(f"\n# {title}")
        for name, (kind, caption) in APPLICATIONS.items():
            strange = [] if settings else unknown_words(without_subject(caption.format(noun=options.subject)))
            note = f" (nano does not know {', '.join(strange)})" if strange else ""
            print(f"# {kind}{note}\n{command(options.photos, options.subject, name, settings, runs)}")
    drafts = Path("runs/draft-subject")
    first = next(iter(APPLICATIONS))
    names = options.run if not options.run or (drafts / first / "asset.glb").is_file() else [first, *options.run]
    for name in dict.fromkeys(names):
        words = shlex.split(command(options.photos, options.subject, name, "--quality draft", str(drafts)))
        if code := cli.main(words[1:]):
            raise SystemExit(code)
    if options.picture:
        picture(options.photos, options.subject, [drafts / name for name in options.run], options.picture)


if __name__ == "__main__":
    main()
