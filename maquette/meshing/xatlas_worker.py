"""Unwraps one mesh with xatlas; run as a process of its own, so that it can be stopped (see `maquette.meshing.unwrap`).

Arguments: input .npz (vertices, faces, normals), output .npz (vmapping, faces, uv in texels, width, height),
resolution, padding, processor seconds allowed (0: unlimited).
"""

import sys


def main(source: str, target: str, resolution: int, padding: int, seconds: int) -> None:
    """Read, unwrap, write; the operating system ends the process when its processor time is used up."""
    if seconds > 0:
        try:
            import resource
        except ImportError:  # Windows: the parent's wall clock alone bounds the time
            pass
        else:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    import numpy as np
    import xatlas

    data = np.load(source)
    atlas = xatlas.Atlas()
    atlas.add_mesh(data["vertices"], data["faces"].astype(np.uint32), data["normals"])
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = resolution, padding, True
    atlas.generate(chart, pack, False)
    mapping, faces, uv = atlas.get_mesh(0)
    np.savez(
        target, mapping=mapping, faces=faces, uv=uv * (atlas.width, atlas.height), size=(atlas.width, atlas.height)
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
