"""The turntable: a whole turn from the front, lit and transparent, the same bytes every time."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from finished_run import pawn
from PIL import Image

from maquette.errors import RunFailed
from maquette.report import turntable
from maquette.report.turntable import Turntable, render_turn, save_mp4, save_webp, write_turntable

SMALL = Turntable(frames=8, size=48, seconds=1.0)


@pytest.fixture(scope="module")
def frames():
    return render_turn(pawn(), SMALL)


def test_it_begins_at_the_front_and_shows_every_side(frames):
    assert frames.shape == (8, 48, 48, 4) and frames.dtype == np.uint8
    middle = frames[:, 24, 24].astype(int)
    assert (middle[:, 3] == 255).all()
    front, left, back, right = (196, 98, 62), (226, 190, 92), (72, 120, 108), (70, 84, 130)
    for frame, colour in ((0, front), (2, right), (4, back), (6, left)):  # the camera goes round to its left
        near = [np.abs(middle[frame, :3] - other).sum() for other in (front, left, back, right)]
        assert near.index(min(near)) == (front, left, back, right).index(colour)
    assert (frames[:, 0, :, 3] == 0).all()


def test_the_file_is_an_endless_animation_of_one_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(turntable, "find_encoder", lambda: None)
    (path,) = write_turntable(tmp_path, pawn())
    with Image.open(path) as file:
        assert (file.format, file.size, file.n_frames, file.info["loop"]) == ("WEBP", (256, 256), 36, 0)
        total = 0
        for index in range(file.n_frames):
            file.seek(index)
            file.load()
            total += file.info["duration"]
            assert file.mode == "RGBA"
    assert total == 4500
    again = tmp_path / "again"
    again.mkdir()
    write_turntable(again, pawn())
    assert (again / "turntable.webp").read_bytes() == path.read_bytes()


def test_the_video_gets_every_frame_on_paper(frames, tmp_path):
    received = tmp_path / "received"
    encoder = tmp_path / "encoder"
    encoder.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(received)!r}, 'wb').write(sys.stdin.buffer.read())\n"
    )
    encoder.chmod(0o755)
    save_mp4(tmp_path / "t.mp4", frames[:, :47, :45], 1.0, str(encoder), turns=3)  # odd sides lose a row and a column
    data = np.frombuffer(received.read_bytes(), np.uint8).reshape(3 * 8, 46, 44, 3)
    assert (data[0] == data[8]).all() and (data[0, 0, 0] == turntable.PAPER).all()
    solid = frames[:, :46, :44, 3] == 255
    assert (data[:8][solid] == frames[:, :46, :44, :3][solid]).all()


def test_a_failing_encoder_is_a_sentence(frames, tmp_path):
    false = shutil.which("false")
    if false is None:
        pytest.skip("needs the command `false`")
    with pytest.raises(RunFailed, match=r"ffmpeg could not write t\.mp4"):
        save_mp4(tmp_path / "t.mp4", frames, 1.0, false)


def test_a_real_video(frames, tmp_path):
    encoder = turntable.find_encoder()
    if encoder is None:
        pytest.skip("needs imageio-ffmpeg; install maquette[video]")
    save_mp4(tmp_path / "t.mp4", frames, 1.0, encoder)
    assert (tmp_path / "t.mp4").read_bytes()[4:8] == b"ftyp"


def test_opaque_frames_and_refusals(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    save_webp(tmp_path / "t.webp", noise, 1.0)
    with Image.open(tmp_path / "t.webp") as file:
        assert file.n_frames == 3
    with pytest.raises(ValueError, match="2 frames"):
        Turntable(frames=1)
