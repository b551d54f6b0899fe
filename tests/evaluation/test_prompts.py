"""The ImageDream protocol on methods whose scores are known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from maquette.asset import Asset
from maquette.cameras import orbit
from maquette.errors import RunFailed, UserError
from maquette.evaluation.prompts import PromptBenchmark, evaluate_prompts, find_prompts
from maquette.images import Views, save_image
from tests.evaluation.conftest import box_mesh

SMALL = PromptBenchmark(prompt_size=32, num_renders=2, render_size=32)
HUES = {"red": (0.9, 0.1, 0.1), "blue": (0.1, 0.1, 0.9)}


@pytest.fixture
def folder(tmp_path):
    """Two prompts with captions; a third picture is not in the index."""
    folder, rows = tmp_path / "prompts", []
    folder.mkdir()
    for name in ("red", "blue", "extra"):
        picture = torch.zeros(4, 40, 40)
        picture[:3] = torch.tensor(HUES.get(name, (0, 1, 0)))[:, None, None]
        picture[3, 8:32, 8:32] = 1
        save_image(folder / f"{name}.png", picture)
        rows.append({"file": f"{name}.png", "caption": f"a {name} cube"})
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    return folder


class Hue:
    """Embeds what is not white by its hue; captions by the hue they name."""

    name = "hue"

    def embed_images(self, images):
        return torch.nn.functional.normalize((1 - images).mean((-2, -1)) + 1e-6, dim=-1)

    def embed_texts(self, texts):
        hues = [
            next((1 - torch.tensor(value) for name, value in HUES.items() if name in text), torch.ones(3))
            for text in texts
        ]
        return torch.nn.functional.normalize(torch.stack(hues), dim=-1)


class Certain:
    """Four classes; certain of red things, at a loss about others."""

    name = "certain4"

    def logits(self, images):
        red = (images[:, 0] - images[:, 2]).amax((-2, -1)) > 0.3
        return torch.where(red[:, None], torch.tensor([50.0, 0, 0, 0]), torch.zeros(4))


def sample(prompt, folder):
    """Four copies of the prompt."""
    image, mask = prompt.image.image, prompt.image.mask
    cameras = orbit(4, height=32, width=32)
    return Views(image.expand(4, -1, -1, -1), mask.expand(4, -1, -1, -1), cameras)


def reconstruct(prompt, folder):
    """A cube in the prompt's colour, with the copies as its views."""
    colour = prompt.image.image[:, prompt.image.mask[0] > 0.9].mean(1).tolist()
    return Asset(box_mesh((1, 1, 1), colour), views=sample(prompt, folder))


def test_scores_of_perfect_copies(folder, tmp_path):
    out = tmp_path / "p.json"
    report = evaluate_prompts(
        folder, sample=sample, encoders=[Hue()], classifier=Certain(), config=SMALL, out=out, method={"name": "copy"}
    )
    assert json.loads(out.read_text()) == report and "rendered" not in report
    assert report["diffused"]["hue_image"]["mean"] == pytest.approx(100, abs=1e-3)
    assert report["diffused"]["hue_text"]["mean"] == pytest.approx(100, abs=0.5)
    # Red is certain (4 of 4 classes' worth), blue is not (1).
    assert report["diffused"]["qis_certain4"]["mean"] == pytest.approx(2.5, rel=1e-4)
    assert report["diffused"]["qis_certain4"]["std"] == pytest.approx(1.5, rel=1e-4)
    assert report["diffused"]["qis_certain4"]["count"] == 2
    assert report["prompt"]["hue_image"]["mean"] == pytest.approx(100, abs=1e-3)
    assert report["encoders"] == ["hue"] and report["classifier"] == "certain4"
    assert [case["id"] for case in report["cases"]] == ["red", "blue"]
    assert out.with_suffix(".png").exists() and len(Views.load(tmp_path / "p" / "red" / "views")) == 4


def test_assets_are_scored_as_diffused_and_as_rendered_again(folder, tmp_path):
    report = evaluate_prompts(folder, reconstruct=reconstruct, encoders=[Hue()], config=SMALL, out=tmp_path / "p.json")
    assert report["rendered"]["hue_image"]["mean"] > 99 and report["diffused"]["hue_image"]["mean"] > 99
    assert (tmp_path / "p" / "red" / "asset.glb").exists()


def test_how_prompts_are_cut_out_is_a_part_of_the_protocol(folder, tmp_path):
    """The pictures are half transparent, of one colour otherwise, and cut out by that colour they are empty."""
    with pytest.raises(UserError, match="one uniform colour"):
        config = replace(SMALL, matting="plain")
        evaluate_prompts(folder, sample=sample, encoders=[Hue()], config=config, out=tmp_path / "plain.json")
    out = tmp_path / "p.json"
    report = evaluate_prompts(folder, sample=sample, encoders=[Hue()], config=SMALL, out=out)
    assert report["protocol"]["matting"] == "auto"
    with pytest.raises(UserError, match="matting"):
        evaluate_prompts(folder, sample=sample, encoders=[Hue()], config=replace(SMALL, matting="alpha"), out=out)


def test_a_second_call_answers_nothing_again(folder, tmp_path):
    calls = []

    def counted(prompt, run):
        calls.append(prompt)
        if len(calls) == 2:
            raise RuntimeError("tired")
        return sample(prompt, run)

    arguments = {"encoders": [Hue()], "config": SMALL, "out": tmp_path / "p.json"}
    first = evaluate_prompts(folder, sample=counted, **arguments)
    assert len(first["cases"]) == 1 and first["failures"] == [{"id": "blue", "error": "RuntimeError: tired"}]
    second = evaluate_prompts(folder, sample=counted, **arguments)
    assert len(calls) == 3 and len(second["cases"]) == 2 and second["failures"] == []
    assert calls[0].caption == "a red cube"


def test_all_failing_is_an_error(folder, tmp_path):
    def never(prompt, run):
        raise RuntimeError("no")

    with pytest.raises(RunFailed, match="red: RuntimeError: no"):
        evaluate_prompts(folder, sample=never, encoders=[Hue()], config=SMALL, out=tmp_path / "p.json")


def test_something_must_measure_and_something_must_answer(folder, tmp_path):
    with pytest.raises(UserError, match="nothing measures"):
        evaluate_prompts(folder, sample=sample, config=SMALL, out=tmp_path / "p.json")
    for methods in ({}, {"sample": sample, "reconstruct": reconstruct}):
        with pytest.raises(UserError, match="either"):
            evaluate_prompts(folder, encoders=[Hue()], config=SMALL, out=tmp_path / "p.json", **methods)


def test_prompts_are_found_by_index_or_by_name(folder, tmp_path):
    assert [(path.name, caption) for path, caption in find_prompts(folder)] == [
        ("red.png", "a red cube"), ("blue.png", "a blue cube"),
    ]  # fmt: skip
    assert len(find_prompts(folder, limit=1)) == 1
    (folder / "index.jsonl").unlink()
    assert [path.name for path, _ in find_prompts(folder)] == ["blue.png", "extra.png", "red.png"]
    assert {caption for _, caption in find_prompts(folder)} == {""}
    (folder / "red.webp").write_bytes(b"")
    with pytest.raises(UserError, match="two prompts named 'red'"):
        find_prompts(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no prompt images"):
        find_prompts(tmp_path / "empty")


def test_without_a_caption_there_is_no_text_score(folder, tmp_path):
    (folder / "index.jsonl").unlink()
    report = evaluate_prompts(folder, sample=sample, encoders=[Hue()], config=SMALL, out=tmp_path / "p.json")
    assert set(report["diffused"]) == {"hue_image"}
