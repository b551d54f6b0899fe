"""01. Cameras and rays: where things are.

Four cameras stand around the object, the first one in front of it. The script prints where they are and what they are
called, shows that a ray and a projection are each other's inverse, and draws what the cameras see.

    python examples/01_cameras_and_rays.py --out runs/examples/01

writes `views.png` (front, left, back, right) and `views/` with `transforms.json`, which nerfstudio reads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from toy import toy_robot

from maquette import orbit, save_image
from maquette.images import sheet
from maquette.rendering import render_mesh
from maquette.rendering.rays import cast_rays
from maquette.stages.look import view_names


def main(out: Path) -> None:
    # World: +z up, the object faces +x. Azimuth 0 looks at its front and grows from +x to +y. Angles are degrees.
    cameras = orbit(num_views=4, elevation=15.0, fovy=40.0, height=128, width=128)
    for name, camera in zip(view_names(cameras), cameras, strict=True):
        x, y, z = camera.position.tolist()
        print(f"{name:>5}: azimuth {float(camera.azimuth):6.1f}, elevation {float(camera.elevation):4.1f}, "
              f"at ({x:5.2f}, {y:5.2f}, {z:5.2f})")  # fmt: skip

    # A ray goes from the camera's centre through the centre of a pixel; directions have unit length.
    rays = cast_rays(cameras)  # rays_o and rays_d are [4, 128, 128, 3]
    point = rays.rays_o + 2.0 * rays.rays_d
    pixels, depth = cameras.project(point.flatten(1, 2))
    column, row = pixels.reshape(4, 128, 128, 2)[0, 30, 100].tolist()
    print(f"the ray of row 30, column 100 comes back to pixel ({column:.1f}, {row:.1f}): centres lie at half pixels")
    print(f"depth is measured along the viewing axis: {float(depth.min()):.3f} to {float(depth.max()):.3f} of 2.000")

    # Pictures have straight colours and a mask; what stands behind the object is chosen afterwards.
    views = render_mesh(toy_robot(), cameras).views()
    views.save(out / "views")
    save_image(out / "views.png", sheet(views.composite(torch.tensor([0.85, 0.88, 0.92]))))
    print(f"wrote {out / 'views.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/examples/01"), help="folder for the pictures")
    main(parser.parse_args().out)
