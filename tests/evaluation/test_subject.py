"""Figures of a personal subject: captions, fronts, turns and stand-ins, on objects whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette import cli
from maquette.asset import Asset, Mesh
from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.evaluation.stand_ins import ACCOUNT, StandIn, backdrop, make_stand_in
from maquette.evaluation.subject import (
    SubjectProtocol,
    against_truth,
    best_turn,
    candidates,
    described,
    evaluate_subject,
    further_fronts,
    mean_of,
    read_captions,
    reads_sides,
    sameness,
    turned_about_vertical,
)
from maquette.evaluation.truth import Protocol
from maquette.images import Views, read_image
from maquette.matting import cut_out
from maquette.subjects import CaptionedImages, read_subject
from tests.support.finished_run import pawn

SMALL = SubjectProtocol(
    num_views=12, size=32, truth=Protocol(view_size=32, num_azimuths=4, num_points=2000, resolution=32, samples=1)
)


class Stripes:
    """An encoder that sees how bright a picture is, on a half circle."""

    name = "stripes"

    def embed_images(self, images):
        angle = images.mean(dim=(1, 2, 3)) * 3.14159
        return torch.stack([angle.cos(), angle.sin()], dim=1)


class Texts(Stripes):
    """One that reads words, too: every caption is the angle of its length."""

    name = "texts"

    def embed_texts(self, texts):
        angle = torch.tensor([min(len(text), 99) / 99 for text in texts]) * 3.14159
        return torch.stack([angle.cos(), angle.sin()], dim=1)


class Sides(Stripes):
    """One that takes a picture of some brightness for a front, and of another for a side."""

    def __init__(self, **brightness) -> None:
        self.brightness = brightness

    def embed_texts(self, texts):
        return self.embed_images(bright([self.brightness.get(text.split()[-2], 0.5) for text in texts]))


def bright(values) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 4)


def spheres(values) -> Views:
    """A disc from all around, each view of one grey."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    mask = ((x - 15.5) ** 2 + (y - 15.5) ** 2 < 144).float().expand(len(values), 1, 32, 32)
    images = torch.tensor(values)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()
    return Views(images, mask.contiguous(), orbit(len(values), height=32, width=32))


def test_a_second_front_is_counted_and_the_first_is_not():
    one = spheres([0.9, 0.7, 0.5, 0.3, 0.2, 0.15, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7])
    two = spheres([0.9, 0.7, 0.5, 0.3, 0.5, 0.7, 0.88, 0.7, 0.5, 0.3, 0.5, 0.7])
    assert further_fronts(one, SMALL) == []
    assert further_fronts(two, SMALL) == [180.0]
    assert further_fronts(two, replace(SMALL, janus_sameness=0.99)) == []
    # An encoder that reads sides is asked whether it is a front at all.
    assert further_fronts(two, SMALL, Sides(front=0.9, side=0.1), "a ball") == [180.0]
    assert further_fronts(two, SMALL, Sides(front=0.1, side=0.9), "a ball") == []
    assert reads_sides([Stripes()]) is None and isinstance(reads_sides([Stripes(), Texts()]), Texts)


def test_sameness_is_outline_and_colour():
    views = spheres([0.5, 0.5, 0.6, 0.9])
    assert sameness(views).tolist() == pytest.approx([1.0, 1.0, 0.6, 0.0], abs=0.02)
    masks = views.masks.clone()
    masks[1, :, :, :16] = 0
    assert float(sameness(Views(views.images, masks, views.cameras))[1]) == pytest.approx(0.5, abs=0.03)


def test_the_own_caption_stands_first_and_once():
    assert candidates("A cup, blue", ["a dog", "a cup, blue.", "a dog"]) == ["a cup, blue.", "a dog."]
    assert described("a red [v] dog asleep", "dog", "small brown dog") == "a red small brown dog asleep"


def test_a_turned_object_is_found_and_measured(tmp_path):
    truth = pawn()
    Asset(truth).save(tmp_path / "pawn.glb")
    account = StandIn("pawn", "pawn", "a pawn", tmp_path / "pawn.glb", "")
    turned = turned_about_vertical(truth, -60.0)
    assert best_turn(turned, truth.normalized(), SMALL) == pytest.approx(60.0)
    figures = against_truth(turned, account, SMALL)
    assert figures["turn"] == pytest.approx(60.0)
    assert figures["turned_psnr"] > figures["psnr"] + 3 and figures["turned_volume_iou"] > 0.9
    assert figures["janus_truth"] == 0


def test_stand_ins_are_photos_that_a_person_could_have_taken(tmp_path):
    Asset(pawn()).save(tmp_path / "pawn.glb")
    about = {"id": "pawn", "noun": "pawn", "description": "white pawn", "object": tmp_path / "pawn.glb"}
    first = make_stand_in(pawn(), tmp_path / "photos", **about, size=96)
    again = make_stand_in(pawn(), tmp_path / "again", **about, size=96)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    subject = read_subject(tmp_path / "photos", noun="pawn", size=96)
    assert len(subject.photos) == 5 and subject.photos.masks is None
    _, alpha, _ = cut_out(read_image(first[0])[:3].permute(1, 2, 0).contiguous().numpy())
    assert 0.03 < alpha.mean() < 0.6
    found = StandIn.read(tmp_path / "photos")
    assert found is not None and found.description == "white pawn"
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="not there"):
        StandIn.read(tmp_path / "photos", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "pawn.glb").write_bytes(b"other")
    with pytest.raises(UserError, match="another object"):
        StandIn.read(tmp_path / "photos", tmp_path / "elsewhere")
    assert StandIn.read(tmp_path) is None and json.loads((tmp_path / "photos" / ACCOUNT).read_text())["id"] == "pawn"
    assert backdrop(8, torch.Generator().manual_seed(0)).shape == (3, 8, 8)


def finished(folder: Path, mesh: Mesh, caption: str = "a [v] pawn") -> Path:
    """A run folder with what the evaluation reads."""
    (folder / "stages" / "subject" / "result").mkdir(parents=True)
    inputs = {"caption": caption, "subject": "pawn"}
    (folder / "config.json").write_text(json.dumps({"inputs": inputs}))
    photos = CaptionedImages.from_images(torch.rand(3, 3, 8, 8), [""] * 3)
    photos.save(folder / "stages" / "subject" / "result" / "photos")
    Asset(mesh).save(folder / "asset.glb")
    return folder


def test_runs_are_measured_and_averaged(tmp_path):
    runs = [finished(tmp_path / name, pawn(), f"a {name} [v] pawn") for name in ("red", "blue")]
    report = evaluate_subject(
        runs, encoders=[Stripes(), Texts()], distractors=["a dog", "a much longer caption of something"],
        description="chess pawn", protocol=SMALL, out=tmp_path / "out.json",
    )  # fmt: skip
    assert [row["own_caption"] for row in report["runs"]] == ["a red chess pawn", "a blue chess pawn"]
    figures = report["runs"][0]["figures"]
    assert set(figures) >= {"stripes_subject", "texts_subject", "texts_text", "texts_precision", "janus", "saturation"}
    assert "stripes_text" not in figures and 0 <= figures["texts_precision"] <= 1
    assert report["mean"]["janus_rate"] in (0.0, 0.5, 1.0)
    assert json.loads((tmp_path / "out.json").read_text())["mean"] == report["mean"]
    assert mean_of([{"janus": 0.0}, {"janus": 3.0}]) == {"janus": 1.5, "janus_rate": 0.5}
    round_one = evaluate_subject(runs[:1], encoders=[Stripes()], symmetric=True, protocol=SMALL)
    assert "janus" not in round_one["mean"]


def test_captions_are_read_from_a_pack(tmp_path):
    (tmp_path / "index.jsonl").write_text('{"id": "a", "caption": "a cup"}\n{"id": "b", "caption": ""}\n')
    assert read_captions(tmp_path) == read_captions(tmp_path / "index.jsonl") == ["a cup"] and read_captions(None) == []
    with pytest.raises(UserError, match=r"index\.jsonl"):
        read_captions(tmp_path / "nowhere")


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished(tmp_path / "run", pawn())
    words = ["evaluate", "subject", str(run), "--judges.nano", "off"]
    assert cli.main(words) == 0
    out, error = capsys.readouterr()
    assert "saturation" in out and "no R-precision" in error
    assert json.loads((tmp_path / "subject.json").read_text())["runs"][0]["run"] == "run"
    assert cli.main(["evaluate", "subject", str(tmp_path)]) == 2
    assert "is no run of `maquette dreambooth3d`" in capsys.readouterr().err
    (run / "asset.glb").unlink()
    assert cli.main(words) == 2
    assert "holds no finished object" in capsys.readouterr().err
