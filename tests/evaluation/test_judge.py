"""nano-judge: it learns, it is repeatable, it survives a kill, and its files are verified."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from maquette.errors import RunFailed, UserError
from maquette.evaluation.encoders import ImageTextEncoder
from maquette.evaluation.judge import SHIPPED, JudgeConfig, NanoJudge
from maquette.evaluation.judge_training import JudgeTraining, Renders, augment, measure, train_judge, vocabulary

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 210, 20)}
SHAPES = ("ball", "bar")
NETWORK = JudgeConfig(image_size=32, widths=(16, 32), blocks=1, word_width=16, embedding_dim=16)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Eight objects, two shapes in four colours, two arrays of three pictures each at 32 px."""
    folder, rng = tmp_path_factory.mktemp("packed"), np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    meta, arrays = [], {"canonical": [], "free": []}
    for shape in SHAPES:
        for name, colour in COLOURS.items():
            meta.append(
                {
                    "id": f"{name}-{shape}",
                    "caption": f"a {name} {shape}",
                    "family": f"{name}-{shape}",
                    "licence": "CC0-1.0",
                }
            )
            for array in arrays.values():
                views = np.zeros((3, 32, 32, 4), np.uint8)
                for view in views:
                    dx, dy = rng.integers(-4, 5, 2)
                    r = (x - 16 - dx) ** 2 + (y - 16 - dy) ** 2
                    inside = r < 80 if shape == "ball" else (abs(x - 16 - dx) < 4) & (abs(y - 16) < 14)
                    view[inside] = (*colour, 255)
                array.append(views)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.stack(array))
    (folder / "meta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in meta))
    return folder


def training(**changes):
    settings = {"network": NETWORK, "steps": 60, "batch": 8, "warmup": 5, "minimum_count": 1, "forget": 0.0}
    return JudgeTraining(**{**settings, **changes})


@pytest.fixture(scope="module")
def trained(packed, tmp_path_factory):
    out, entries = tmp_path_factory.mktemp("judge"), []
    judge = train_judge(packed, out, training(), val_folder=packed, log=entries.append)
    return judge, out, entries


def test_it_learns_to_tell_objects_apart(trained):
    judge, out, entries = trained
    assert entries[-1]["loss"] < 0.6 * entries[0]["loss"]
    card = json.loads((out / "card.json").read_text())
    measured = card["measured"]
    assert measured["picture_to_caption"] >= 0.75 and measured["picture_to_picture"] >= 0.75
    assert measured["chance"] == pytest.approx(1 / 8)
    assert card["data"] == {"objects": 8, "licences": {"CC0-1.0": 8}} and card["pictures_seen"] == 2 * 8 * 60
    assert card["recipe"]["seed"] == 20260 and card["licence"] == "Apache-2.0"


def test_the_package_holds_the_same_judge(trained, generator):
    judge, out, _ = trained
    loaded = NanoJudge.load(out)
    assert isinstance(loaded, ImageTextEncoder) and loaded.name == "nano-judge"
    images = torch.rand(3, 3, 50, 70, generator=generator)
    # Stored in half precision.
    torch.testing.assert_close(loaded.embed_images(images), judge.embed_images(images), atol=5e-3, rtol=0)
    torch.testing.assert_close(loaded.embed_texts(["a red ball"]), judge.embed_texts(["a red ball"]), atol=5e-3, rtol=0)
    assert not (out / "training.safetensors").exists()


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(trained, generator):
    judge, _, _ = trained
    images = torch.rand(70, 3, 32, 32, generator=generator)
    vectors = judge.embed_images(images)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(70))
    torch.testing.assert_close(judge.embed_images(images[66:67]), vectors[66:67], atol=1e-5, rtol=1e-4)
    texts = ["a red ball", "bar", "a strange yellow, thing!", ""]
    words = judge.embed_texts(texts)
    torch.testing.assert_close(words.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(judge.embed_texts(texts[1:2]), words[1:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(judge.embed_texts(["A RED  ball."])[0], words[0])


def test_a_killed_training_ends_with_the_same_weights(packed, tmp_path):
    class Killed(BaseException):
        pass

    def kill(entry):
        if entry["step"] == 50:
            raise Killed

    whole = train_judge(packed, tmp_path / "whole", training(steps=56, checkpoint_every=20))
    with pytest.raises(Killed):
        train_judge(packed, tmp_path / "cut", training(steps=56, checkpoint_every=20), log=kill)
    assert (tmp_path / "cut" / "training.safetensors").exists()
    resumed = train_judge(packed, tmp_path / "cut", training(steps=56, checkpoint_every=20))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_a_checkpoint_of_another_recipe_is_not_continued(packed, tmp_path):
    def stop(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_judge(
            packed, tmp_path, training(steps=3, checkpoint_every=1), log=lambda e: stop(e) if e["step"] else None
        )
    fresh = train_judge(packed, tmp_path, training(steps=2, seed=5))
    other = train_judge(packed, tmp_path / "other", training(steps=2, seed=5))
    torch.testing.assert_close(fresh.log_scale, other.log_scale, rtol=0, atol=0)


def test_training_stops_at_nan_with_the_step(packed, tmp_path):
    with pytest.raises(RunFailed, match=r"loss of nan at step [1-9]"):
        train_judge(packed, tmp_path, training(steps=20, learning_rate=1e30, warmup=1))


def test_damaged_and_foreign_packages_are_refused(trained, tmp_path):
    _, out, _ = trained
    for name in ("card.json", "nano-judge.safetensors"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    (tmp_path / "nano-judge.safetensors").write_bytes((out / "nano-judge.safetensors").read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        NanoJudge.load(tmp_path)
    card = json.loads((out / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "kind": "multiview"}))
    with pytest.raises(UserError, match="kind judge"):
        NanoJudge.load(tmp_path)
    with pytest.raises(UserError, match="no weights at"):
        NanoJudge.load(tmp_path / "absent")


def test_packed_folders_say_what_is_wrong(packed, tmp_path):
    with pytest.raises(ValueError, match=r"no meta\.jsonl"):
        Renders.open(tmp_path, "cpu")
    (tmp_path / "meta.jsonl").write_text((packed / "meta.jsonl").read_text())
    with pytest.raises(ValueError, match=r"canonical\.npy"):
        Renders.open(tmp_path, "cpu")
    np.save(tmp_path / "free.npy", np.zeros((3, 2, 8, 8, 4), np.uint8))
    with pytest.raises(ValueError, match="8 objects"):
        Renders.open(tmp_path, "cpu")


def test_pictures_are_taken_from_all_arrays(packed):
    data = Renders.open(packed, "cpu")
    assert data.num_views == 6
    rows, views = torch.tensor([0, 3, 7, 7]), torch.tensor([0, 2, 3, 5])
    found = data.take(rows, views)
    sources = [np.load(packed / f"{name}.npy") for name in ("canonical", "free")]
    for picture, row, view in zip(found, rows.tolist(), views.tolist(), strict=True):
        expected = torch.from_numpy(sources[view // 3][row, view % 3]).movedim(-1, 0).float() / 255
        torch.testing.assert_close(picture, expected)


def test_augmentation_keeps_the_object_and_changes_what_should_not_matter(packed, generator):
    data = Renders.open(packed, "cpu")
    rgba = data.take(torch.zeros(32, dtype=torch.long), torch.zeros(32, dtype=torch.long))
    pictures = augment(rgba, 32, generator)
    assert pictures.shape == (32, 3, 32, 32) and bool(((pictures >= 0) & (pictures <= 1)).all())
    assert float(pictures.std(0).mean()) > 0.05
    # A red ball stays redder than it is green, wherever it lies.
    centre = pictures[:, :, 12:20, 12:20].mean((2, 3))
    assert bool((centre[:, 0] > centre[:, 1]).float().mean() > 0.9)


def test_the_vocabulary_is_of_words_that_recur():
    assert vocabulary(["a red ball", "a blue ball", "one-eyed ball"], 2) == ("a", "ball")
    assert vocabulary(["red red red"], 2) == ()


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="divisible by 16"):
        JudgeConfig(image_size=40)
    with pytest.raises(ValueError, match="multiples of 8"):
        JudgeConfig(widths=(12,))
    with pytest.raises(ValueError, match="batch"):
        JudgeTraining(batch=1)


def test_training_needs_nothing_but_torch_numpy_pillow_and_safetensors():
    code = (
        "import sys, maquette.evaluation.judge_training\n"
        "heavy = {'scipy', 'skimage', 'trimesh', 'embreex', 'cv2', 'xatlas', 'tyro', 'jaxtyping', 'einops', 'rich'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not (SHIPPED / "card.json").exists(), reason="the shipped judge is not in this checkout")
def test_the_shipped_judge_knows_colours_and_things():
    judge = NanoJudge.load()
    card = json.loads((SHIPPED / "card.json").read_text())
    assert card["measured"]["picture_to_picture"] > 20 * card["measured"]["chance"]
    red, blue = torch.ones(2, 3, 64, 64)
    red[1:, 16:48, 16:48], blue[:2, 16:48, 16:48] = 0.1, 0.1
    words = judge.embed_texts(["a red crate", "a blue crate"])
    likeness = judge.embed_images(torch.stack([red, blue])) @ words.T
    assert likeness[0, 0] > likeness[0, 1] and likeness[1, 1] > likeness[1, 0]


def test_measure_counts_families_as_one(packed):
    judge = NanoJudge(JudgeConfig(image_size=32, widths=(16,), blocks=1, word_width=8, embedding_dim=8))
    data = Renders.open(packed, "cpu")
    one_family = Renders([{**row, "family": "all"} for row in data.meta], data.arrays, "cpu")
    assert measure(judge, one_family, 0)["picture_to_caption"] == 1.0
