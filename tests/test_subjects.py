"""A subject from photos or a video: upright, square, whole, and one sentence for whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.images import Views, read_prompt
from maquette.subjects import CaptionedImages, read_subject
from maquette.videofiles import read_frames


def scene(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth picture [height, width, 3], different for every seed."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def write(folder, name, pixels, **options):
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


@pytest.fixture
def photos(tmp_path):
    """Four photos of different sizes, and things that are none."""
    folder = tmp_path / "photos"
    for index, size in enumerate(((40, 60), (60, 40), (50, 50), (33, 81))):
        write(folder, f"{index}.{'jpg' if index % 2 else 'png'}", scene(index, *size))
    (folder / "notes.txt").write_text("mine")
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder


def test_photos_become_squares(photos):
    subject = read_subject(photos, noun="dog", caption="a [v] dog asleep", size=32)
    assert subject.photos.pixels.shape == (4, 3, 32, 32) and subject.photos.masks is None
    assert subject.names == ("0.png", "1.jpg", "2.png", "3.jpg") and subject.notes == ()
    assert set(subject.photos.captions) == {"a photo of a [v] dog"} and subject.class_prompt == "a photo of a dog"
    middle = torch.from_numpy(scene(0)[:, 10:50].copy()).permute(2, 0, 1).float()
    expected = torch.nn.functional.interpolate(middle[None], (32, 32), mode="bilinear", antialias=True)[0]
    assert (subject.photos.pixels[0].float() - expected).abs().max() <= 1


def test_the_shipped_photos_of_a_duck_are_cut_out():
    """Real photos, on gravel, carpet, fabric and a beach: what is left is the duck's yellow and orange."""
    folder = Path(__file__).resolve().parents[1] / "examples" / "images" / "duck_toy"
    assert read_subject(folder, noun="toy", caption="a [v] toy").names == ("00.jpg", "01.jpg", "02.jpg", "03.jpg")
    for path in sorted(folder.iterdir()):
        picture = read_prompt(path).image
        assert picture is not None
        red, _, blue = picture.image[:, picture.mask[0] > 0.5]
        assert len(red) > 0.25 * picture.mask.numel()
        assert float((red > blue + 0.06).float().mean()) > 0.88


def test_the_cameras_orientation_is_applied(photos):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is stored must be turned clockwise
    write(photos, "4.png", np.rot90(scene(9, 60, 60), 1).copy(), exif=exif)
    write(photos, "5.png", scene(10, 60, 60))
    turned = read_subject(photos, noun="dog", size=60).photos.pixels[4]
    assert torch.equal(turned, torch.from_numpy(scene(9, 60, 60).copy()).permute(2, 0, 1))


def test_masks_come_from_alpha_or_from_files_and_keep_the_subject_whole(photos, tmp_path):
    coverage = np.zeros((40, 60), np.uint8)
    coverage[10:30, 44:58] = 255
    write(photos, "0.png", np.dstack([scene(0), coverage]))
    wide = np.zeros((33, 81), np.uint8)
    wide[12:20, 3:75] = 255
    write(tmp_path / "masks", "3.png", wide)
    subject = read_subject(photos, noun="dog", masks=tmp_path / "masks", size=81)
    assert subject.photos.masks is not None and "1.jpg, 2.png have no mask" in subject.notes[0]
    mask = subject.photos.masks[0, 0].float() / 255
    rows, columns = torch.nonzero(mask.any(dim=1))[:, 0], torch.nonzero(mask.any(dim=0))[:, 0]
    assert float(mask.mean()) == pytest.approx(20 * 14 / 40**2, rel=0.02), "the square follows the subject"
    assert abs(int(columns[0] + columns[-1]) / 2 - 40) < 25 and rows[0] > 0
    whole = subject.photos.masks[3, 0].float() / 255
    assert float(whole.sum()) == pytest.approx(8 * 72 * (81 / 72) ** 2, rel=0.05), "the longer side decides"
    assert bool((subject.photos.masks[1] == 255).all())


def test_many_photos_are_thinned_to_the_most_different(photos):
    for index in range(4, 9):
        write(photos, f"{index}.png", np.clip(scene(0).astype(int) + 4 * index, 0, 255).astype(np.uint8))
    subject = read_subject(photos, noun="dog", size=16, most=4)
    assert len(subject.photos) == 4 and {"1.jpg", "2.png", "3.jpg"} <= set(subject.names)
    assert "4 photos are enough" in subject.notes[0]


def test_faults_are_one_sentence(photos, tmp_path):
    def fault(match, source=photos, **options):
        with pytest.raises(UserError, match=match) as caught:
            read_subject(source, **{"noun": "dog", **options})
        assert "\n" not in str(caught.value)

    fault("does not say where the subject is", caption="a dog asleep")
    fault("needs a word for what it is", noun=" ")
    fault("neither a folder of photos nor a video", source=tmp_path / "nothing")
    fault("the list holds 2 photos, and a subject needs at least 3", source=sorted(photos.glob("*.png")))
    fault("no folder of masks at", masks=tmp_path / "nothing")
    Image.open(photos / "0.png").resize((120, 80)).save(photos / "again.jpg", quality=80)
    fault(r"again.jpg and 0.png are the same photo")
    (photos / "again.jpg").write_bytes(b"no picture")
    (photos / "phone.heic").write_bytes(b"ftypheic")
    fault(r"2 of 6 photos cannot be used: .*again.jpg is not an image.*phone.heic is not an image")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="is not a video"):
        read_subject(tmp_path / "clip.mp4", noun="dog")


def clip(path, frames):
    import cv2

    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    if not writer.isOpened():
        pytest.skip("needs an OpenCV that can write MJPG videos")
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def test_a_video_gives_its_sharp_and_different_frames(tmp_path):
    def textured(seed):
        noise = np.random.default_rng(seed).integers(-40, 40, (64, 96, 1))
        return np.clip(scene(seed, 64, 96).astype(int) + noise, 0, 255).astype(np.uint8)

    blurred = [np.asarray(Image.fromarray(textured(seed)).resize((12, 8)).resize((96, 64))) for seed in (5, 6, 7)]
    stay = [textured(1)] * 4
    path = clip(tmp_path / "orbit.avi", [*stay, blurred[0], textured(2), blurred[1], textured(3), blurred[2]])
    taken = read_frames(path, 3)
    assert [number for number, _ in taken][1:] == [5, 7] and taken[0][0] < 4
    assert np.abs(taken[1][1] * 255 - textured(2)).mean() < 8, "the colours are in order"
    subject = read_subject(path, noun="dog", size=32, most=3)
    assert subject.names[1:] == ("frame 5", "frame 7") and "3 frames were taken" in subject.notes[0]
    with pytest.raises(UserError, match="has 9 readable frames, and 20 are wanted"):
        read_frames(path, 20)


def test_pictures_survive_the_disk(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.rand(3, 3, 8, 8, generator=generator), torch.rand(3, 1, 8, 8, generator=generator)
    plain = CaptionedImages.from_images(images, ["a", "b", "c"])
    masked = plain.joined(CaptionedImages.from_images(images[:1], ["d"]), share=0.25)
    for index, value in enumerate((plain, masked, CaptionedImages.from_images(images, ["ä"] * 3, masks))):
        value.save(tmp_path / str(index))
        again = CaptionedImages.load(tmp_path / str(index))
        assert torch.equal(again.pixels, value.pixels)
        assert (again.captions, again.shares) == (value.captions, value.shares)
        assert (again.masks is None) == (value.masks is None)
        if value.masks is not None:
            assert torch.equal(again.masks, value.masks)
    assert masked.shares == pytest.approx((1 / 12, 1 / 12, 1 / 12, 0.75))
    with pytest.raises(UserError, match="captions.json is missing"):
        CaptionedImages.load(tmp_path)


def test_objects_go_onto_any_background():
    views = Views(torch.full((2, 3, 4, 4), 0.2), torch.zeros(2, 1, 4, 4), orbit(2, height=4, width=4))
    pictures = CaptionedImages.from_views(views, ["front", "back"])
    colours = torch.tensor([[1.0, 0.0, 0.5]])
    assert torch.equal(pictures.composite([1], colours), colours[:, :, None, None].expand(1, 3, 4, 4))
    bare = CaptionedImages(pictures.pixels, pictures.captions)
    assert torch.equal(bare.composite([0], colours), bare.images([0]))


def test_pictures_with_masks_are_not_joined_to_pictures_without():
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    cut = CaptionedImages(pixels, ("a", "b"), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8))
    whole = CaptionedImages(pixels + 9, ("c", "d"))
    both = cut.joined(cut)
    assert len(both) == 4 and both.masks is not None and both.masks.shape == (4, 1, 8, 8)
    assert whole.joined(whole).masks is None
    for one, other in ((cut, whole), (whole, cut)):
        with pytest.raises(ValueError, match="cannot be joined"):
            one.joined(other)
