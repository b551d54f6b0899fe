"""The ablations of USD: each variant changes what its name says, and the table compares what belongs together."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from maquette.asset import Mesh
from maquette.cameras import Cameras, orbit
from maquette.images import Views
from maquette.methods import usd
from maquette.rendering import render_mesh
from maquette.run import Run
from maquette.stages.translate import Attempt, TranslateConfig, Translated

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "usd.py"
spec = importlib.util.spec_from_file_location("usd_benchmark", FILE)
benchmark = importlib.util.module_from_spec(spec)
sys.modules["usd_benchmark"] = benchmark
spec.loader.exec_module(benchmark)
BASE = usd.nano("draft")


def test_the_main_variants_are_those_of_the_paper():
    made = {name: change(BASE) for name, change in benchmark.MAIN.items()}
    assert list(made) == ["sds", "lambda 0", "usd", "usd refined"]
    told = {name: (config.guidance.null, config.guidance.lambda_) for name, config in made.items()}
    assert told == {"sds": ("own", 1.0), "lambda 0": ("own", 0.0), "usd": ("free", 0.0), "usd refined": ("free", 0.0)}
    assert [config.recovery is None for config in made.values()] == [True, True, True, False]
    assert made["usd refined"] == BASE
    # All else is equal, so that stages before the radiance field are made once.
    for config in made.values():
        assert (config.pose, config.novel, config.warm_start, config.fit) == (
            BASE.pose, BASE.novel, BASE.warm_start, BASE.fit,
        )  # fmt: skip


def test_sweeps_change_one_thing_each():
    made = {name: change(BASE) for name, change in benchmark.SWEEPS.items()}
    assert [made[f"omega {omega:g}"].guidance.omega for omega in (1, 4, 7.5)] == [1, 4, 7.5]
    assert made["lambda 1, free null"].guidance.lambda_ == 1 and made["lambda 1, free null"].guidance.null == "free"
    assert made["one step"].refinement.steps == 1 and not made["no negatives"].refinement.negatives
    assert made["not refined"].refinement is None and made["not refined"].recovery is not None
    alone = made["reference score alone"], made["squared errors alone"], made["neither"]
    assert [(c.reference is None, c.prompt_view is None) for c in alone] == [(False, True), (True, False), (True, True)]
    assert made["squared errors alone"].prompt_view.measure == "l2"
    both = made["score and errors"]
    assert both.reference is not None and both.prompt_view == made["squared errors alone"].prompt_view
    assert not any(c.paint_prompt for c in (both, *alone)), "the picture itself would hide what the field learned"
    assert made["surface reference"] == replace(BASE, surface_reference=replace(BASE.reference, every=10))


@pytest.fixture
def figures(tmp_path):
    """Two objects with all variants and one without."""
    for number, (name, better) in enumerate([("horse", 1.0), ("robot", 3.0), ("half", 0.0)]):
        for variant in benchmark.MAIN if name != "half" else ["usd"]:
            psnr = 20.0 + number + (better if variant == "usd refined" else 0.0)
            path = benchmark.figures_file(tmp_path / name, variant)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"psnr": psnr, "ssim": 0.5}))
    return tmp_path


def test_the_table_compares_objects_that_have_everything(figures):
    text, data = benchmark.table(figures, ["horse", "robot", "half"], benchmark.MAIN, ("psnr", "ssim"))
    lines = text.splitlines()
    assert lines[0].startswith("| 2 objects | psnr | ssim | psnr against usd")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["sds", "lambda-0", "usd", "usd-refined"]
    assert data["objects"] == ["horse", "robot"]
    assert data["variants"]["usd-refined"]["difference"] == pytest.approx([2.0, 1.0, 3.0])
    assert data["variants"]["usd"]["mean"]["psnr"] == 20.5 and "| 20.50 | 0.500 | – |" in lines[4]


def work(run):
    """A stage that takes some time."""
    return sum(number**0.5 for number in range(200_000))


def test_a_variant_costs_what_its_stages_cost_whoever_made_them(tmp_path):
    costs = []
    for names in (["field", "mesh"], ["field", "mesh"], ["field"]):
        with Run.open(tmp_path / "run", quiet=True) as run:
            for name in names:
                run.stage(name, work)
            costs.append(benchmark.spent(run))
    whole, again, part = costs
    assert whole == again and 0 < part["processor"] < whole["processor"]


def test_main_and_sweeps_lie_in_one_folder_and_have_tables_of_their_own(figures):
    text, _ = benchmark.table(figures, ["horse", "robot"], benchmark.SWEEPS, ("psnr", "ssim"))
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["usd", "usd-refined"]


def test_views_of_one_object_agree_more_than_copies_of_one_view(tmp_path):
    """What the run of "usd refined" left there: raw views, more renderings, their first ones refined."""
    box = trimesh.creation.box((0.8, 0.5, 1.0))
    colours = np.clip(box.vertices + 0.5, 0, 1)
    mesh = Mesh(np.asarray(box.vertices), np.asarray(box.faces), vertex_colors=colours)
    around = orbit(6, elevation=20.0, height=32, width=32)
    seen = render_mesh(mesh, around).views()
    assert seen.masks is not None
    copied = Views(seen.images[[0] * 6], seen.masks[[0] * 6], around)
    stages = tmp_path / "run" / "stages"
    copied.save(stages / "views" / "result")
    more = render_mesh(mesh, Cameras.cat([around, orbit(2, elevation=40.0, height=32, width=32)])).views()
    more.save(stages / "renderings" / "result")
    attempts = (Attempt(view=0, attempt=0, seed=0, caption="", accepted=True, reason="the last"),)
    pictures = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    Translated(seen, tuple(range(6)), attempts, pictures, TranslateConfig()).save(stages / "refined" / "result")
    benchmark.agree(mesh, tmp_path)
    text, data = benchmark.table(tmp_path.parent, [tmp_path.name], benchmark.VARIANTS["agreement"], ("disagreement",))
    found = {name: variant["mean"]["disagreement"] for name, variant in data["variants"].items()}
    assert list(found) == ["raw-views", "renderings", "refined", "true-views"] and "| raw-views |" in text
    assert found["raw-views"] > 1.25 * found["true-views"] and found["renderings"] < 1.15 * found["true-views"]
    assert found["refined"] == pytest.approx(found["renderings"], abs=0.02)


def test_a_base_that_leaves_the_guidance_alone_with_the_field():
    options = argparse.Namespace(quality="draft", weights=None, free_weights=None, base="guided")
    config = benchmark.base_config(options)
    assert config.keep_views is None and config.fit.rate.first > BASE.fit.rate.first
    options.base = "nano"
    assert benchmark.base_config(options) == BASE
