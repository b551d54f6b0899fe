"""What a run adds to its paper's method and leaves out of it: the lists against the presets themselves."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatch

import pytest

from maquette.methods import dreambooth3d, imagedream, usd
from maquette.report.additions import ADDITIONS, METHODS, OMISSIONS, added, left_out
from maquette.run import settings
from maquette.schedules import Constant

MODULES = {"imagedream": imagedream, "usd": usd, "dreambooth3d": dreambooth3d}
SCALES = (
    # Which weights, how many steps, pixels, samples and pictures, how fast, how strongly, from where.
    "prior", "free_prior", "encoder", "fovy", "distance", "cameras.*", "*.cameras.*", "*steps", "*_rate", "*.rate",
    "*.rate.*", "*.count", "*.size", "*.batch", "*.keep", "*.draws", "*.every", "*.resolution", "*.resolution.value",
    "*.scenes", "*.interval", "*.warmup", "*.samples.value", "*.weight.value", "*.noise_range.*", "*.rank",
    "*.max_faces", "*.texture_size", "*.smoothing", "*.checkpoint_seconds", "*.elevations", "*.fovy", "*.distance",
    "*.retries", "*.candidates", "*.min_mask_iou", "*.strength", "*guidance_scale", "*.rescale", "*.omega",
    "*.random_background", "*.weight_decay", "*.rgb.value", "*.mask.value", "*.sparsity.value",
    "*.total_variation.value",
    # The same thing in another form: encodings and networks of another size, lists of noise levels, normals of planes.
    "*.encoding", "*.hidden", "*.layers", "*.features", "*.texture.*", "*.normals", "*.anneal.end", "*.spacing",
    "*.clip", "*.eta", "*.frame", "*.sampler", "*.orientation_per", "*.shading.soft", "*.background", "*.levels",
    "*.measure", "*.mask_measure", "*.curvature", "mesh.threshold",
    # How photos are read and words are put, and tests that a small encoder cannot make.
    "view_words.*", "words.*", "photos.*", "*.keep_likeness", "*.refuse_fronts", "*.matting", "*.weighting",
)  # fmt: skip


def differences(before, after, name=""):
    """Names of the settings in which two configs differ."""
    if type(before) is not type(after) or not is_dataclass(before):
        return [] if before == after else [name]
    return [
        found
        for field in fields(before)
        for found in differences(
            getattr(before, field.name), getattr(after, field.name), f"{name}.{field.name}".lstrip(".")
        )
    ]


def plain(config):
    """A config as reports read it."""
    return json.loads(json.dumps(settings.plain(config)))


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_preset_adds_nothing_and_leaves_nothing_out(method):
    config = plain(MODULES[method].paper())
    assert [name for name, _ in added(method, config)] == [] == [name for name, _ in left_out(method, config)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quality", ["draft", "default", "high"])
def test_what_differs_from_the_paper_is_listed_or_a_mere_size(method, quality):
    nano, paper = MODULES[method].nano(quality), MODULES[method].paper()
    config = plain(nano)
    listed = {name for name, _ in (*added(method, config), *left_out(method, config))}
    assert len(listed) >= 5
    for name in differences(paper, nano):
        named = any(name == field or name.startswith(f"{field}.") for field in listed)
        assert named or any(fnmatch(name, scale) for scale in SCALES), name


def test_every_part_is_a_setting_of_some_preset_and_shows_in_some_run():
    shown = set()
    for method, module in MODULES.items():
        config = plain(module.nano("default"))
        shown |= {part.title for _, part in (*added(method, config), *left_out(method, config))}
    options = {"Only what was learned is painted"}
    assert {part.title for part in (*ADDITIONS, *OMISSIONS)} - options <= shown


def test_what_is_switched_off_is_not_listed():
    nano = imagedream.nano("draft")
    off = replace(
        nano, warm_start=None, keep_views=None, mesh=replace(nano.mesh, blur=0.0),
        fit=replace(nano.fit, total_variation=Constant(0.0)),
    )  # fmt: skip
    before, after = ({name for name, _ in added("imagedream", plain(config))} for config in (nano, off))
    assert before - after == {"warm_start", "keep_views", "keep_views.between", "mesh.blur", "fit.total_variation"}
    assert added("text", plain(nano)) == [] == left_out("text", plain(nano))
