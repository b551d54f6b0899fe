"""02. Read a picture and cut the object out.

A prior sees one object on a flat background, centred. `read_prompt` makes that of any picture: it uses transparency
where there is some, removes a plain background by its colour, and separates the object from a photographed one with
GrabCut. Nothing is downloaded.

    python examples/02_cut_out.py --out runs/examples/02             # a toy before three backgrounds
    python examples/02_cut_out.py photo.jpg --out runs/examples/02   # your picture

The toy's true outline is known, so the script can say how well it was found. `cutouts.png` shows each picture above
what was cut out of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from toy import toy_robot

from maquette import ImagePrompt, fit_distance, orbit, read_image, read_prompt, save_image
from maquette.evaluation.image import mask_iou
from maquette.images import sheet
from maquette.rendering import render_mesh

SIZE = 256


def toy_pictures(folder: Path) -> tuple[list[Path], ImagePrompt]:
    """The toy seen from a quarter left, as three files, and the truth."""
    distance = fit_distance(40.0, fill=0.7)
    camera = orbit(1, azimuth=35.0, elevation=15.0, distance=distance, height=SIZE, width=SIZE)
    view = render_mesh(toy_robot(), camera).views()
    truth = ImagePrompt(view.images[0], view.masks[0])
    rows = torch.linspace(0.95, 0.75, SIZE)[None, :, None]
    wall = torch.tensor([0.93, 0.95, 1.0])[:, None, None] * rows.expand(3, SIZE, SIZE)
    # A room: wooden floor below, papered wall above, both patterned.
    floor = (torch.arange(SIZE) > 0.7 * SIZE).float()[None, :, None]
    pattern = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(3))
    pattern = F.interpolate(pattern, (SIZE, SIZE), mode="bicubic", align_corners=False)[0]
    wood, paper = (torch.tensor(colour)[:, None, None] for colour in ((0.55, 0.42, 0.30), (0.72, 0.78, 0.70)))
    room = (floor * wood + (1 - floor) * paper) * (0.8 + 0.25 * pattern)
    files = [folder / f"{name}.png" for name in ("transparent", "wall", "room")]
    save_image(files[0], truth.rgba())
    for file, behind in zip(files[1:], (wall, room), strict=True):
        save_image(file, truth.mask * truth.image + (1 - truth.mask) * behind)
    return files, truth


def main(pictures: list[Path], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    truth = None
    if not pictures:
        pictures, truth = toy_pictures(out)
    tiles = []
    for path in pictures:
        prompt = read_prompt(path, size=SIZE)  # cut out, centred; 10 % margin on the longer side
        assert prompt.image is not None and prompt.cutout is not None
        print(f"{path.name}: cut out by {prompt.cutout.method}, {prompt.cutout.coverage:.0%} of the picture is object")
        for warning in prompt.cutout.warnings:
            print(f"  look at it: {warning}")
        if truth is not None:
            kept = read_prompt(path, size=SIZE, crop=False)  # the picture's own framing, to compare with the truth
            print(f"  overlap with the true outline: {float(mask_iou(kept.image.mask, truth.mask, 0.49)):.3f}")
        save_image(out / f"{path.stem}-prompt.png", prompt.image.rgba())
        shown = read_image(path)
        shown = ImagePrompt(shown[:3], shown[3:] if len(shown) == 4 else torch.ones_like(shown[:1])).resized(SIZE)
        tiles.append((shown.composite(torch.ones(3)), prompt.image.composite(torch.tensor([0.25, 0.5, 1.0]))))
    rows = [tile for row in zip(*tiles, strict=True) for tile in row]
    save_image(out / "cutouts.png", sheet(torch.stack(rows), columns=len(tiles), gap=4))
    print(f"wrote {out / 'cutouts.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="*", help="pictures to cut out; without any, a toy")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/02"), help="folder for the results")
    options = parser.parse_args()
    main(options.pictures, options.out)
