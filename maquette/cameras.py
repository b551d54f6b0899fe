"""Where a picture was taken from: batches of pinhole cameras, orbits of them, and files of them.

World: right-handed, +z up, the object's front faces +x. Azimuth 0 looks at the front and grows from +x to +y;
elevation is positive above the horizon; both in degrees. Camera axes are OpenGL's: x right, y up, looking along -z.
Pixels: x to the right, y down, the centre of the top left pixel is (0.5, 0.5); square pixels, principal point at the
image's centre. `docs/conventions.md` draws all of this. Frames of published networks are converted beside their
priors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras that share an image size.

    Any number of leading axes, also none. `c2w` maps camera to world coordinates; its upper left 3x3 block is a
    rotation. Everything derived is differentiable in `c2w` and `fovy`.
    """

    c2w: Float[Tensor, "*b 4 4"]
    """Camera-to-world matrices, columns right, up, back, position."""
    fovy: Float[Tensor, "*b"]
    """Vertical field of view in degrees."""
    height: int
    """Rows of the image."""
    width: int
    """Columns of the image."""

    def __post_init__(self) -> None:
        if self.c2w.shape[-2:] != (4, 4) or self.c2w.shape[:-2] != self.fovy.shape:
            raise ValueError(
                f"Cameras expect c2w [*b, 4, 4] and fovy [*b], got {tuple(self.c2w.shape)} and {tuple(self.fovy.shape)}"
            )
        if self.height < 1 or self.width < 1:
            raise ValueError(f"an image has at least one pixel, got height={self.height}, width={self.width}")

    # Derived quantities

    @property
    def batch_shape(self) -> torch.Size:
        """The leading axes."""
        return self.fovy.shape

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.c2w.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of `c2w`."""
        return self.c2w.dtype

    @property
    def position(self) -> Float[Tensor, "*b 3"]:
        """Camera centres in the world."""
        return self.c2w[..., :3, 3]

    @property
    def forward(self) -> Float[Tensor, "*b 3"]:
        """Unit viewing directions in the world."""
        return -self.c2w[..., :3, 2]

    @property
    def distance(self) -> Float[Tensor, "*b"]:
        """Distance of the camera from the origin, in scene units."""
        return torch.linalg.vector_norm(self.position, dim=-1)

    @property
    def azimuth(self) -> Float[Tensor, "*b"]:
        """Degrees in (-180, 180], from the position; above or below the origin, from the camera's right axis."""
        position, right = self.position, self.c2w[..., :3, 0]
        horizontal = torch.linalg.vector_norm(position[..., :2], dim=-1)
        at_pole = horizontal <= 1e-6 * self.distance
        # An orbiting camera's right axis is (-sin a, cos a, 0) at any elevation, also where the position forgets a.
        y = torch.where(at_pole, -right[..., 0], position[..., 1])
        x = torch.where(at_pole, right[..., 1], position[..., 0])
        return torch.rad2deg(torch.atan2(y, x))

    @property
    def elevation(self) -> Float[Tensor, "*b"]:
        """Degrees in [-90, 90], from the position."""
        position = self.position
        return torch.rad2deg(torch.atan2(position[..., 2], torch.linalg.vector_norm(position[..., :2], dim=-1)))

    @property
    def w2c(self) -> Float[Tensor, "*b 4 4"]:
        """World-to-camera matrices, the inverse of `c2w` written out for a rigid motion."""
        rotation = self.c2w[..., :3, :3].transpose(-1, -2)
        translation = -rotation @ self.c2w[..., :3, 3:]
        return torch.cat([torch.cat([rotation, translation], dim=-1), self.c2w[..., 3:, :]], dim=-2)

    def intrinsics(self) -> Float[Tensor, "*b"]:
        """Focal length in pixels, the same in x and y: 0.5 height / tan(fovy / 2)."""
        return 0.5 * self.height / torch.tan(torch.deg2rad(self.fovy) / 2)

    def project(self, points: Float[Tensor, "*b n 3"]) -> tuple[Float[Tensor, "*b n 2"], Float[Tensor, "*b n"]]:
        """Pixels (x right, y down) and depth along the viewing axis of world points.

        Depth is positive in front of the camera. Pixels of points behind it are mirrored, of points in its plane
        infinite: look at the depth first. A point lands inside the image if 0 <= x < width and 0 <= y < height.
        """
        w2c = self.w2c
        local = points @ w2c[..., :3, :3].transpose(-1, -2) + w2c[..., None, :3, 3]
        depth = -local[..., 2]
        focal = self.intrinsics()[..., None]
        x = 0.5 * self.width + focal * local[..., 0] / depth
        y = 0.5 * self.height - focal * local[..., 1] / depth
        return torch.stack([x, y], dim=-1), depth

    # Batches

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("a single camera has no length; `cameras.reshape(1)` makes a batch of it")
        return self.batch_shape[0]

    def __getitem__(self, index: Any) -> Cameras:
        """Cameras chosen by anything that indexes a tensor of shape `batch_shape`."""
        chosen = torch.arange(self.fovy.numel(), device=self.device).reshape(self.batch_shape)[index]
        return replace(self, c2w=self.c2w.reshape(-1, 4, 4)[chosen], fovy=self.fovy.reshape(-1)[chosen])

    def __iter__(self) -> Iterator[Cameras]:
        return (self[i] for i in range(len(self)))

    def reshape(self, *batch: int) -> Cameras:
        """The same cameras with other leading axes; one of them may be -1."""
        fovy = self.fovy.reshape(batch)
        return replace(self, c2w=self.c2w.reshape(*fovy.shape, 4, 4), fovy=fovy)

    def flatten(self) -> Cameras:
        """The same cameras along one axis."""
        return self.reshape(self.fovy.numel())

    @staticmethod
    def cat(cameras: Sequence[Cameras]) -> Cameras:
        """Batches joined along their first axis; they must agree in image size."""
        if not cameras:
            raise ValueError("Cameras.cat expects at least one batch, got none")
        sizes = {(c.height, c.width) for c in cameras}
        if len(sizes) > 1:
            raise ValueError(f"Cameras.cat expects one image size, got {sorted(sizes)}; use `with_size` first")
        return replace(cameras[0], c2w=torch.cat([c.c2w for c in cameras]), fovy=torch.cat([c.fovy for c in cameras]))

    def to(self, *args: Any, **kwargs: Any) -> Cameras:
        """Moved or converted, with the arguments of `Tensor.to`."""
        return replace(self, c2w=self.c2w.to(*args, **kwargs), fovy=self.fovy.to(*args, **kwargs))

    def with_size(self, height: int, width: int) -> Cameras:
        """The same views at another resolution; the vertical field of view stays."""
        return replace(self, height=height, width=width)

    # Motions

    def turned(self, azimuth: float | Float[Tensor, "*b"]) -> Cameras:
        """The cameras carried around the world's z axis by `azimuth` degrees."""
        angle = torch.deg2rad(torch.as_tensor(azimuth, dtype=self.dtype, device=self.device)).expand(self.batch_shape)
        cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
        one = torch.ones_like(angle)
        turn = torch.stack(
            [cos, -sin, zero, zero, sin, cos, zero, zero, zero, zero, one, zero, zero, zero, zero, one], dim=-1
        ).reshape(*angle.shape, 4, 4)
        return replace(self, c2w=turn @ self.c2w)

    def relative_to(self, reference: Cameras) -> Float[Tensor, "*b 4 4"]:
        """Poses in the frame of `reference` (its batch broadcasts): inv(reference.c2w) c2w."""
        return reference.w2c @ self.c2w


def look_at(
    position: Float[Tensor, "*b 3"],
    target: Float[Tensor, "*#b 3"] | None = None,
    up: Float[Tensor, "*#b 3"] | None = None,
) -> Float[Tensor, "*b 4 4"]:
    """Camera-to-world matrices at `position` that look at `target` (the origin) with `up` (+z) upwards in the image.

    Looking straight along `up` leaves the roll open: it is then that of a camera which reached this place along
    azimuth 0, right axis towards +y (for another `up` than +z, some fixed direction across it). Differentiable away
    from there. Raises ValueError where a position coincides with its target.
    """
    target = position.new_zeros(3) if target is None else target
    up = position.new_tensor([0.0, 0.0, 1.0]) if up is None else up
    back = position - target
    length = torch.linalg.vector_norm(back, dim=-1, keepdim=True)
    if bool((length == 0).any()):
        raise ValueError(
            "look_at expects positions away from their target, got a camera at its target; move one of them"
        )
    back = back / length
    up = (up / torch.linalg.vector_norm(up, dim=-1, keepdim=True)).expand_as(back)
    right = torch.linalg.cross(up, back, dim=-1)
    sine = torch.linalg.vector_norm(right, dim=-1, keepdim=True)
    parallel = sine < 1e-6
    # Any axis across `up` will do; up x (+x) is +y for the usual up, which is what azimuth 0 has.
    helper = torch.where(up[..., :1].abs() < 0.9, up.new_tensor([1.0, 0.0, 0.0]), up.new_tensor([0.0, 0.0, 1.0]))
    spare = torch.nn.functional.normalize(torch.linalg.cross(up, helper, dim=-1), dim=-1)
    # The unused branch gets a harmless divisor, for the gradient's sake.
    right = torch.where(parallel, spare, right / torch.where(parallel, torch.ones_like(sine), sine))
    camera_up = torch.linalg.cross(back, right, dim=-1)
    top = torch.stack([right, camera_up, back, position], dim=-1)
    bottom = position.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*position.shape[:-1], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def fit_distance(fovy: float, radius: float = 0.75, fill: float = 0.8) -> float:
    """Distance at which a sphere of `radius` around the origin fills `fill` of the image's height.

    Exact for the sphere's silhouette, which the cone of half-angle asin(radius / distance) cuts out:
    tan(asin(radius / distance)) = fill tan(fovy / 2), so distance = radius / sin(atan(fill tan(fovy / 2))).

    >>> round(fit_distance(40.0), 4)
    2.6827
    """
    if not 0 < fovy < 180:
        raise UserError(f"a field of view is between 0 and 180 degrees, got fovy={fovy}")
    if not (radius > 0 and fill > 0):
        raise UserError(f"radius and fill are positive, got radius={radius}, fill={fill}")
    return radius / math.sin(math.atan(fill * math.tan(math.radians(fovy) / 2)))


def from_angles(
    azimuth: Float[Tensor, "*#b"],
    elevation: Float[Tensor, "*#b"],
    distance: Float[Tensor, "*#b"],
    fovy: Float[Tensor, "*#b"],
    *,
    height: int,
    width: int,
) -> Cameras:
    """Cameras that look at the origin from azimuth and elevation (degrees), at a distance (scene units), upright.

    Position distance (cos e cos a, cos e sin a, sin e), right axis (-sin a, cos a, 0): no up vector is involved, so
    the poles are ordinary places and elevations beyond them come out upside down. The arguments broadcast;
    differentiable in all of them.
    """
    azimuth, elevation, distance, fovy = torch.broadcast_tensors(azimuth, elevation, distance, fovy)
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    cos_a, sin_a, cos_e, sin_e, zero = torch.cos(a), torch.sin(a), torch.cos(e), torch.sin(e), torch.zeros_like(a)
    right = torch.stack([-sin_a, cos_a, zero, zero], dim=-1)
    up = torch.stack([-sin_e * cos_a, -sin_e * sin_a, cos_e, zero], dim=-1)
    back = torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e, zero], dim=-1)
    corner = back.new_tensor([0.0, 0.0, 0.0, 1.0])
    return Cameras(torch.stack([right, up, back, distance[..., None] * back + corner], dim=-1), fovy, height, width)


def orbit(
    num_views: int = 4,
    *,
    elevation: float = 0.0,
    azimuth: float = 0.0,
    distance: float | None = None,
    fovy: float = 40.0,
    height: int = 64,
    width: int = 64,
    span: float = 360.0,
) -> Cameras:
    """Cameras [num_views] on a circle around the origin, view k at azimuth + k span / num_views.

    Angles in degrees. Without a distance, `fit_distance(fovy)`: a normalised object fills 80 % of the height. float32,
    CPU.
    """
    if num_views < 1:
        raise UserError(f"an orbit has at least one view, got num_views={num_views}")
    if not -90 <= elevation <= 90:
        raise UserError(f"elevation is between -90 and 90 degrees, got {elevation}")
    distance = fit_distance(fovy) if distance is None else distance
    if distance <= 0:
        raise UserError(f"a camera's distance is positive, got {distance}")
    azimuths = azimuth + torch.arange(num_views, dtype=torch.float64) * (span / num_views)
    rest = (torch.tensor(value, dtype=torch.float64) for value in (elevation, distance, fovy))
    return from_angles(azimuths, *rest, height=height, width=width).to(torch.float32)


Range = tuple[float, float]
Spread = Literal["degrees", "area", "released"]


def elevation_at(u: Float[Tensor, "*n"], bounds: Range, spread: Spread) -> Float[Tensor, "*n"]:
    """Elevations in degrees for uniform draws u in [0, 1]: uniform in degrees, or in area on the sphere's band.

    The area between two elevations grows with the difference of their sines (Archimedes). "released" is what the
    published codes draw instead: asin(2p - 1) with p linear in degrees, (elevation + 90) / 180. That makes -6.4..30 of
    the range -10..45 (USD), and 0..3.18 of 0..5 (ImageDream).
    """
    low, high = (math.radians(bound) for bound in bounds)
    if spread == "degrees":
        radians = torch.lerp(torch.full_like(u, low), torch.full_like(u, high), u)
    elif spread == "area":
        radians = torch.asin(math.sin(low) + (math.sin(high) - math.sin(low)) * u)
    else:
        p = (bounds[0] + 90 + (bounds[1] - bounds[0]) * u) / 180
        radians = torch.asin(2 * p - 1)
    return torch.rad2deg(radians)


@dataclass(frozen=True)
class OrbitSampler:
    """Draws scenes of cameras on a common circle; the ranges are ImageDream's "camera alignment" (section 3.4).

    All views of a scene share elevation, field of view and distance, and stand 360 / num_views degrees apart.
    """

    elevation: Range = (0.0, 5.0)
    """Degrees above the horizon."""
    fovy: Range = (45.0, 50.0)
    """Vertical field of view in degrees."""
    relative_distance: Range = (0.6, 0.85)
    """Half-height visible at the origin, r in distance = r / tan(fovy / 2). The released code has (0.6, 0.75)."""
    distance: Range | None = None
    """Distance from the origin in scene units; if given, it replaces `relative_distance`."""
    azimuth: Range = (-180.0, 180.0)
    """Degrees, of the first view."""
    num_views: int = 4
    """Views of a scene."""
    area_uniform_probability: float = 0.5
    """How often the elevation is uniform in area on the sphere rather than in degrees."""

    def __post_init__(self) -> None:
        ranges = {"elevation": self.elevation, "fovy": self.fovy, "relative_distance": self.relative_distance,
                  "distance": self.distance, "azimuth": self.azimuth}  # fmt: skip
        for name, bounds in ranges.items():
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise UserError(f"OrbitSampler.{name} is a range (low, high) with low <= high, got {bounds}")
        if not -90 <= self.elevation[0] <= self.elevation[1] <= 90:
            raise UserError(f"OrbitSampler.elevation is within -90 and 90 degrees, got {self.elevation}")
        if not 0 < self.fovy[0] <= self.fovy[1] < 180:
            raise UserError(f"OrbitSampler.fovy is between 0 and 180 degrees, got {self.fovy}")
        for name in ("relative_distance", "distance"):
            bounds = ranges[name]
            if bounds is not None and bounds[0] <= 0:
                raise UserError(f"OrbitSampler.{name} is positive, got {bounds}")
        if self.num_views < 1:
            raise UserError(f"OrbitSampler.num_views is at least 1, got {self.num_views}")
        if not 0 <= self.area_uniform_probability <= 1:
            raise UserError(
                f"OrbitSampler.area_uniform_probability is between 0 and 1, got {self.area_uniform_probability}"
            )

    def covering(self, elevation: float, limits: Range = (-90.0, 90.0)) -> OrbitSampler:
        """The same sampler whose elevations also reach `elevation`, degrees, or the nearest of `limits` to it.

        The range never becomes narrower, even where it goes beyond `limits` already.
        """
        wanted = min(max(elevation, limits[0]), limits[1])
        return replace(self, elevation=(min(self.elevation[0], wanted), max(self.elevation[1], wanted)))

    def sample(self, num_scenes: int, height: int, width: int, generator: torch.Generator) -> Cameras:
        """Cameras [num_scenes, num_views] of this image size, on the generator's device, float32."""
        draws = torch.rand(num_scenes, 5, generator=generator, device=generator.device)
        which, u_elevation, u_fovy, u_distance, u_azimuth = draws.unbind(-1)
        in_degrees = elevation_at(u_elevation, self.elevation, "degrees")
        # Differs from the released code, whose area is not one (see `elevation_at`).
        in_area = elevation_at(u_elevation, self.elevation, "area")
        elevation = torch.where(which < self.area_uniform_probability, in_area, in_degrees)
        fovy = self.fovy[0] + (self.fovy[1] - self.fovy[0]) * u_fovy
        near, far = self.relative_distance if self.distance is None else self.distance
        distance = near + (far - near) * u_distance
        if self.distance is None:
            distance = distance / torch.tan(torch.deg2rad(fovy) / 2)
        first = self.azimuth[0] + (self.azimuth[1] - self.azimuth[0]) * u_azimuth
        azimuth = first[:, None] + torch.arange(self.num_views, device=first.device) * (360.0 / self.num_views)
        return from_angles(azimuth, elevation[:, None], distance[:, None], fovy[:, None], height=height, width=width)


# Files: transforms.json as nerfstudio writes and reads it (its world is +z up and its cameras are OpenGL's, like ours)


def write_transforms(path: str | Path, cameras: Cameras, files: Sequence[str]) -> None:
    """Write cameras [V] and their images' names (relative to the file's folder) as a nerfstudio transforms.json."""
    if len(cameras.batch_shape) != 1 or len(files) != len(cameras):
        raise ValueError(
            f"write_transforms expects one file a camera, got cameras {tuple(cameras.batch_shape)}, {len(files)} files"
        )
    focal = Cameras.intrinsics(cameras.to("cpu", torch.float64)).tolist()
    poses = cameras.c2w.detach().to("cpu", torch.float64).tolist()
    frames = [
        {"file_path": str(file), "fl_x": f, "fl_y": f, "transform_matrix": pose}
        for file, f, pose in zip(files, focal, poses, strict=True)
    ]
    document = {
        "camera_model": "OPENCV",
        "w": cameras.width,
        "h": cameras.height,
        "cx": cameras.width / 2,
        "cy": cameras.height / 2,
        "frames": frames,
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_transforms(path: str | Path) -> tuple[Cameras, list[str]]:
    """Cameras [V] and image names of a transforms.json, as nerfstudio's or (with `camera_angle_x`) the NeRF data sets'.

    Names stay as written. An image size that the file leaves out is read from the first image. Raises UserError for a
    file that is missing or not such a file, for views of several sizes, and for lenses we do not have: non-square
    pixels, an off-centre principal point, distortion.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        frames = document["frames"]
        files = [str(frame["file_path"]) for frame in frames]
        c2w = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)
    except FileNotFoundError:
        raise UserError(f"no camera file at {path}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a transforms.json with frames of file_path and transform_matrix ({error})"
        ) from None
    if not frames:
        raise UserError(f"{path} lists no frames")
    if c2w.shape[1:] != (4, 4):
        raise UserError(f"{path}: every transform_matrix is 4x4, got shape {list(c2w.shape[1:])}")

    def value(frame: dict[str, Any], key: str) -> float | None:
        found = frame.get(key, document.get(key))
        return None if found is None else float(found)

    sizes = {(value(frame, "h"), value(frame, "w")) for frame in frames}
    if len(sizes) > 1:
        raise UserError(
            f"{path}: all views have one image size here, got {sorted(sizes, key=str)}; resize the images first"
        )
    height, width = sizes.pop()
    if height is None or width is None:
        width, height = _image_size(path.parent / files[0])
    fovy = []
    for frame in frames:
        focal_x, focal_y, angle = value(frame, "fl_x"), value(frame, "fl_y"), value(frame, "camera_angle_x")
        if focal_x is None and angle is not None:
            focal_x = 0.5 * width / math.tan(angle / 2)
        focal = focal_x if focal_y is None else focal_y
        if focal is None:
            raise UserError(f"{path}: a view has neither fl_x, fl_y nor camera_angle_x; add its focal length in pixels")
        if focal_x is not None and abs(focal_x - focal) > 0.01 * focal:
            raise UserError(
                f"{path}: pixels are square here, got fl_x {focal_x} and fl_y {focal}; undistort the images first"
            )
        for key, middle in (("cx", width / 2), ("cy", height / 2)):
            centre = value(frame, key)
            if centre is not None and abs(centre - middle) > 0.01 * middle:
                raise UserError(
                    f"{path}: the principal point is the image's centre here, got {key}={centre} for {middle}"
                )
        if any(value(frame, key) for key in ("k1", "k2", "k3", "k4", "p1", "p2")):
            raise UserError(f"{path}: lens distortion is not modelled here; undistort the images first")
        fovy.append(math.degrees(2 * math.atan(0.5 * height / focal)))
    return (
        Cameras(c2w.to(torch.float32), torch.tensor(fovy, dtype=torch.float32), int(height), int(width)),
        files,
    )


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height from an image file's header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise UserError(f"the camera file gives no image size and {path} cannot be read ({error})") from None
