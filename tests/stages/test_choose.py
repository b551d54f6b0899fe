"""Which checkpoint is partial and which is full: the rule on tables, and a table that was really sampled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.errors import UserError
from maquette.priors.adapters import Lora
from maquette.run import Run, Stage
from maquette.stages.choose import Choice, ChooseConfig, Row, choose_checkpoints, decide
from maquette.stages.likeness import OwnEncoder
from maquette.stages.look import SamplingConfig
from maquette.stages.personalize import PersonalizeConfig, personalize
from maquette.subjects import CaptionedImages, Subject
from tests.priors.tiny import tiny_prior

CONFIG = ChooseConfig(images=1, sampling=SamplingConfig(steps=2))


def table(*rows):
    """Rows of (step, likeness, view score, class score)."""
    return [Row(step, subject, views, 0.5, of_class) for step, subject, views, of_class in rows]


BASE = (0, 0.2, 0.8, 0.5)


def test_the_earliest_with_half_of_the_likeness():
    rows = table(BASE, (50, 0.3, 0.8, 0.5), (100, 0.45, 0.75, 0.5), (150, 0.55, 0.75, 0.5), (200, 0.6, 0.4, 0.5))
    assert decide(rows, CONFIG)[:2] == (100, 200)
    assert decide(rows, replace(CONFIG, share=0.8))[:2] == (150, 200)
    assert decide(list(reversed(rows)), CONFIG)[:2] == (100, 200), "the order of the table says nothing"


def test_views_come_before_likeness():
    rows = table(BASE, (50, 0.3, 0.8, 0.5), (100, 0.35, 0.74, 0.5), (150, 0.55, 0.5, 0.5), (200, 0.6, 0.4, 0.5))
    partial, full, reason = decide(rows, CONFIG)
    assert (partial, full) == (100, 200) and "the latest that keeps the views" in reason
    partial, _, reason = decide(table(BASE, (50, 0.3, 0.5, 0.5), (100, 0.6, 0.4, 0.5)), CONFIG)
    assert partial == 50 and "none keeps the views" in reason


def test_the_full_model_still_knows_its_class():
    rows = table(BASE, (50, 0.4, 0.8, 0.5), (100, 0.6, 0.8, 0.46), (150, 0.9, 0.8, 0.2))
    assert decide(rows, CONFIG)[:2] == (50, 100)
    partial, full, reason = decide(table(BASE, (50, 0.4, 0.8, 0.1), (100, 0.6, 0.8, 0.1)), CONFIG)
    assert full == 100 and "none still knows its class" in reason


def test_a_table_is_sampled_and_kept(tmp_path, monkeypatch):
    prior, generator = tiny_prior(), torch.Generator().manual_seed(0)
    photos = CaptionedImages.from_images(torch.rand(3, 3, 16, 16, generator=generator), ["a photo of a [v] chair"] * 3)
    subject = Subject(photos, "chair", ("a", "b", "c"))
    learn = PersonalizeConfig(adapter=Lora(rank=2), steps=2, keep=(0, 1), learning_rate=1e-2)

    def run_in(folder):
        with Run.open(folder, device="cpu", quiet=True) as run:
            made = run.stage("personal", personalize, prior, photos, None, learn)
            return run.stage("choice", choose_checkpoints, prior, made, subject, OwnEncoder(prior), CONFIG)

    choice = run_in(tmp_path / "whole")
    assert isinstance(choice, Choice) and [row.step for row in choice.table] == [0, 1, 2]
    assert {choice.partial, choice.full} <= {1, 2} and choice.table[0].subject != choice.table[2].subject
    assert (choice.partial, choice.full, choice.reason) == decide(list(choice.table), CONFIG)
    with monkeypatch.context() as patch:
        checkpoint = Stage.checkpoint

        def stop(self, step, *args, **options):
            checkpoint(self, step, *args, **options)
            if self.name == "choice" and step == 2:
                raise KeyboardInterrupt

        patch.setattr(Stage, "checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "broken")
    assert run_in(tmp_path / "broken") == choice


def test_settings_are_validated():
    with pytest.raises(UserError, match="images is at least 1"):
        ChooseConfig(images=0)
    with pytest.raises(UserError, match="shares lie between 0 and 1"):
        ChooseConfig(share=1.5)
