"""A prior learns a subject, its base does not; the steps are functions of seed and number alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette.diffusion.losses import min_snr_weight
from maquette.errors import RunFailed, UserError
from maquette.priors.adapters import Adapter, Full, Lora
from maquette.priors.placement import Placement, loading, placed
from maquette.run import Run, Stage, read_log
from maquette.stages import personalize as module
from maquette.stages.class_images import ClassImagesConfig, class_images
from maquette.stages.look import SamplingConfig
from maquette.stages.personalize import PersonalizeConfig, denoising_error, draw_indices, personalize, words
from maquette.stages.specialize import SpecializeConfig, first_pictures, second_pictures
from maquette.subjects import CaptionedImages
from tests.priors.tiny import noisy, tiny_prior, tiny_published, tiny_stable_diffusion

SHORT = PersonalizeConfig(adapter=Lora(rank=2), steps=6, keep=(2,), learning_rate=1e-2, checkpoint_seconds=1e9)


def pictures(count=3, caption="a photo of a [v] chair", seed=0, masked=False) -> CaptionedImages:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 16, 16, generator=generator)
    masks = torch.rand(count, 1, 16, 16, generator=generator) if masked else None
    return CaptionedImages.from_images(images, [caption] * count, masks)


SUBJECT, OTHERS = pictures(), pictures(4, "a photo of a chair", 1)


@pytest.fixture
def stage(tmp_path: Path):
    with Run.open(tmp_path / "run", device="cpu", quiet=True) as run:
        yield Stage(run, "personal", "")


def said(prior, caption="a photo of a [v] chair"):
    return prior.predict(noisy(prior, views=1), torch.tensor([300, 700]), words(prior, caption)).x0


def same(one: Adapter, other: Adapter) -> bool:
    return one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("config", [SHORT, replace(SHORT, adapter=Full(), learning_rate=1e-3)])
@pytest.mark.parametrize("make", [tiny_prior, tiny_published, tiny_stable_diffusion])
def test_it_learns_the_subject_and_leaves_the_base_alone(make, config, stage):
    prior = make()
    before, error = {k: v.clone() for k, v in prior.network.state_dict().items()}, denoising_error(prior, SUBJECT)
    made = personalize(prior, SUBJECT, OTHERS, replace(config, steps=30, keep=(), batch=3), run=stage)
    assert list(made) == [30] and made[30].steps == 30
    assert denoising_error(prior.adapted(made[30]), SUBJECT) < 0.97 * error
    assert all(torch.equal(value, before[name]) for name, value in prior.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in prior.network.parameters())


def test_all_checkpoints_of_one_run(stage):
    prior = tiny_prior()
    config = replace(SHORT, keep=(0, 1), keep_every=2)
    made = personalize(prior, SUBJECT, None, config, run=stage)
    assert list(made) == [0, 1, 2, 4, 6]
    assert torch.equal(said(prior.adapted(made[0])), said(prior))
    short = personalize(prior, SUBJECT, None, replace(config, steps=2, keep_every=0), run=stage)
    assert same(short[2], made[2]), "an early checkpoint is what a shorter run ends with"
    assert not (stage.folder / "kept").exists()


def test_going_on_from_an_adapter(stage):
    prior = tiny_prior()
    partial = personalize(prior, SUBJECT, None, SHORT, run=stage)[2]
    before = partial.fingerprint()
    nothing = personalize(prior, OTHERS, None, replace(SHORT, steps=0, keep=()), partial, run=stage)
    assert list(nothing) == [0] and torch.equal(said(prior.adapted(nothing[0])), said(prior.adapted(partial)))
    multi = personalize(prior, SUBJECT.joined(OTHERS), None, SHORT, partial, run=stage)[6]
    assert multi.steps == 8 and not same(multi, partial) and partial.fingerprint() == before
    with pytest.raises(ValueError, match="cannot go on as Full"):
        personalize(prior, SUBJECT, None, replace(SHORT, adapter=Full()), partial, run=stage)


@pytest.mark.parametrize("adapter", [Lora(rank=2), Full(text_encoder=True)])
def test_killed_and_resumed_it_ends_with_the_same_bytes(adapter, tmp_path, monkeypatch):
    prior, config = tiny_prior(), replace(SHORT, adapter=adapter, keep=(2, 3))

    def run_in(folder):
        with Run.open(folder, device="cpu", quiet=True) as run:
            return run.stage("personal", personalize, prior, SUBJECT, OTHERS, config)

    whole = run_in(tmp_path / "whole")
    with monkeypatch.context() as patch:
        calls = iter(range(100))
        patch.setattr(Stage, "keep_going", lambda self: next(calls) < 3)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "broken")
    assert (tmp_path / "broken" / "stages" / "personal" / "kept" / "000003").is_dir()
    resumed = run_in(tmp_path / "broken")
    assert any(line.get("event") == "resumed" for line in read_log(tmp_path / "broken"))
    assert list(resumed) == list(whole) == [2, 3, 6] and all(same(resumed[step], whole[step]) for step in whole)

    files = [folder / "stages" / "personal" / "result" for folder in (tmp_path / "whole", tmp_path / "broken")]
    names = sorted(path.relative_to(files[0]) for path in files[0].rglob("*.safetensors"))
    assert len(names) == 3 and all((files[0] / name).read_bytes() == (files[1] / name).read_bytes() for name in names)


def test_a_checkpoint_without_its_kept_adapters_is_not_believed(tmp_path, stage, monkeypatch):
    prior = tiny_prior()
    whole = personalize(prior, SUBJECT, None, SHORT, run=stage)
    stage.save_checkpoint(4, {"tensors": {}, "optimizer": {}, "skipped": 0, "kept": [2]})
    assert same(personalize(prior, SUBJECT, None, SHORT, run=stage)[6], whole[6])


class Steps(module._Batches):
    """One step's loss, to be looked at from outside."""

    def __init__(self, prior, subject, others, config, run):
        super().__init__(prior, subject, others, config, run, None)


@pytest.mark.parametrize("make", [tiny_prior, lambda: tiny_prior("v"), tiny_published, tiny_stable_diffusion])
@pytest.mark.parametrize("weighting", ["uniform", "min-snr", "min-snr-both"])
def test_the_loss_is_dreambooths(make, weighting, stage):
    """|pred - target|^2 of the subject and lambda times that of the class, one picture at a time."""
    prior, config = make(), replace(SHORT, batch=2, prior_weight=0.3, weighting=weighting)
    steps = Steps(prior, SUBJECT, OTHERS, config, stage)
    schedule, expected = prior.noise_schedule, 0.0
    for role, shown, factor in (("subject", SUBJECT, 1.0), ("others", OTHERS, 0.3)):
        captions, latents, t, eps = steps.draw(shown, 3, role)
        for k in range(2):
            x_t = schedule.add_noise(latents[k : k + 1], eps[k : k + 1], t[k : k + 1])
            out = prior.predict(x_t, t[k : k + 1], words(prior, captions[k]))
            x0, noise = latents[k : k + 1], eps[k : k + 1]
            sides = {
                "eps": (out.eps, noise),
                "x0": (out.x0, x0),
                "v": (schedule.v_from(out.x0, out.eps, t[k : k + 1]), schedule.v_from(x0, noise, t[k : k + 1])),
            }
            pred, target = sides[schedule.predicts]
            snr = schedule.snr(t[k : k + 1], x0[:, 0, 0, 0, 0])
            weighted = weighting == "min-snr-both" or (weighting == "min-snr" and role == "subject")
            weight = float(min_snr_weight(snr, 5.0, schedule.predicts)) if weighted else 1.0
            expected += factor * weight * float((pred - target).square().mean()) / 2
    loss, parts = steps.loss(3)
    assert float(loss) == pytest.approx(expected, rel=1e-4) and set(parts) == {"subject", "others"}


def test_without_weight_the_class_changes_nothing(stage):
    prior = tiny_prior()
    plain = personalize(prior, SUBJECT, None, SHORT, run=stage)[6]
    silent = personalize(prior, SUBJECT, OTHERS, replace(SHORT, prior_weight=0.0), run=stage)[6]
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(silent.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    loud = personalize(prior, SUBJECT, OTHERS, SHORT, run=stage)[6]
    assert max(float((loud.tensors[name] - tensor).abs().max()) for name, tensor in plain.tensors.items()) > 1e-3


def test_memory_options_change_nothing_but_memory(stage):
    prior = tiny_prior()
    plain = personalize(prior, SUBJECT, OTHERS, replace(SHORT, steps=3), run=stage)[3]
    saving = personalize(prior, SUBJECT, OTHERS, replace(SHORT, steps=3, checkpointing=True), run=stage)[3]
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(saving.tensors[name], tensor, rtol=1e-4, atol=1e-6)
    assert torch.isfinite(said(prior.adapted(saving))).all(), "the network can be used afterwards"
    learning = Steps(prior.adapted(plain), SUBJECT, OTHERS, replace(SHORT, accumulate=3), stage)
    for parameter in learning.model.network.parameters():
        parameter.requires_grad_(True)
    figures = learning.accumulate(2)
    turns = [float(learning.loss(turn)[0].detach()) for turn in (6, 7, 8)]
    assert figures["loss"] == pytest.approx(sum(turns) / 3, rel=1e-5)


@pytest.mark.parametrize("adapter", [Lora(rank=2), Full()])
def test_a_run_in_little_memory_recomputes_and_a_base_in_half_learns_in_float32(adapter, stage, monkeypatch):
    """As `--low-memory --precision bfloat16` load a published prior."""
    blocks = []
    monkeypatch.setattr(module, "checkpoint", lambda function, *args, **_: blocks.append(1) or function(*args))
    config = replace(SHORT, adapter=adapter, steps=2, keep=())
    with loading(Placement("bfloat16", low_memory=True)):
        prior = placed(tiny_stable_diffusion().to("cpu", torch.bfloat16))
        made = personalize(prior, SUBJECT, OTHERS, config, run=stage)[2]
    assert blocks and {tensor.dtype for tensor in made.tensors.values()} == {torch.float32}
    assert torch.isfinite(said(prior.adapted(made))).all()
    assert not prior.config.batch_conditions
    blocks.clear()
    personalize(prior, SUBJECT, None, config, run=stage)
    assert not blocks


def test_weights_can_be_kept_near_where_they_were(stage):
    prior = tiny_prior()
    config = replace(SHORT, adapter=Full(), learning_rate=1e-3)

    def moved(preserve):
        made = personalize(prior, SUBJECT, None, replace(config, preserve=preserve), run=stage)[6]
        old = dict(prior.network.named_parameters())
        return sum(float((t - old[name.removeprefix("network.")]).abs().sum()) for name, t in made.tensors.items())

    assert moved(1e6) < 0.9 * moved(0.0)
    lines = [line for line in read_log(stage._run.folder) if "drift" in line]
    assert lines[0]["drift"] == 0 and lines[1]["drift"] > 0


def test_nan_stops_it_with_the_last_good_state(stage, monkeypatch):
    prior, config = tiny_prior(), replace(SHORT, steps=8, max_skipped=3)
    good = personalize(prior, SUBJECT, None, replace(config, steps=4, keep=()), run=stage)[4]
    draw = module._Batches.draw

    def spoiled(self, shown, turn, role):
        captions, latents, t, eps = draw(self, shown, turn, role)
        return captions, latents * (float("nan") if turn >= 4 else 1.0), t, eps

    monkeypatch.setattr(module._Batches, "draw", spoiled)
    with pytest.raises(RunFailed, match=r"NaN or infinite in 3 steps, last in step 6; the last good state, .* is kept"):
        personalize(prior, SUBJECT, None, config, run=stage)
    step, state = stage.load_checkpoint()
    assert step == 6 and state["skipped"] == 3
    assert all(torch.equal(state["tensors"][name], tensor) for name, tensor in good.tensors.items())


def test_every_picture_is_seen_once_a_pass(stage):
    seen = [index for turn in range(6) for index in draw_indices(OTHERS, turn, 2, stage, "others")]
    assert [sorted(seen[k : k + 4]) for k in (0, 4, 8)] == [[0, 1, 2, 3]] * 3 and seen[:4] != seen[4:8]
    shares = SUBJECT.joined(OTHERS, share=0.8)
    drawn = [index for turn in range(100) for index in draw_indices(shares, turn, 2, stage, "subject")]
    assert 0.7 < sum(index < 3 for index in drawn) / 200 < 0.9


def test_masked_objects_get_other_backgrounds(stage):
    prior, masked = tiny_prior(), pictures(masked=True)
    config = replace(SHORT, background="random")
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    one, two = (module.encode(prior, masked, [0], config, generator) for generator in generators)
    assert not torch.equal(one, two)
    white = module.encode(prior, masked, [0], SHORT, generators[0])
    assert torch.equal(white, prior.codec.encode(masked.composite([0], torch.ones(1, 3))[:, None]))


@pytest.mark.parametrize("make", [tiny_prior, tiny_published])
def test_what_is_encoded_once_is_what_would_be_encoded_again(make, stage):
    prior = make()
    steps = Steps(prior, SUBJECT, OTHERS, SHORT, stage)
    for _ in range(2):
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        once = steps.latents(SUBJECT, 1, "subject", generators[0])
        torch.testing.assert_close(once, module.encode(prior, SUBJECT, [1], SHORT, generators[1]))
    assert len(steps.posteriors) == 1


def test_pictures_of_the_class_come_from_the_base_and_are_kept(tmp_path, monkeypatch):
    prior = tiny_prior()
    config = ClassImagesConfig(count=5, sampling=SamplingConfig(steps=2), batch=2)
    captions = ("a photo of a chair, front view", "a photo of a chair, back view")

    def run_in(folder, count=5):
        with Run.open(folder, device="cpu", quiet=True) as run:
            return run.stage("class", class_images, prior, captions, replace(config, count=count))

    made = run_in(tmp_path / "whole")
    assert made.captions == (*captions, *captions, captions[0]) and made.pixels.shape == (5, 3, 16, 16)
    assert torch.equal(run_in(tmp_path / "other", 3).pixels[:2], made.pixels[:2])
    calls = []
    handle = prior.network.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(run_in(tmp_path / "whole").pixels, made.pixels) and not calls
    handle.remove()


def test_usds_two_steps():
    config = SpecializeConfig()
    assert (config.first.steps, config.second.steps) == (600, 5)
    assert config.first.adapter == config.second.adapter == Lora(rank=4) and config.first.learning_rate == 2e-4
    one, views, cls = pictures(1), pictures(5, seed=2), pictures(7, seed=3)
    subject, others = first_pictures(one, views, cls, "owl")
    assert len(subject) == 6 and set(subject.captions) == {"photo of a [v] owl"}
    assert set(others.captions) == {"photo of a owl"}
    subject, others = second_pictures(one, views, "owl")
    assert subject.captions == ("photo of a [v2] [v] owl",) and set(others.captions) == {"photo of a [v] owl"}


def test_settings_are_validated(stage):
    for wrong, match in (
        ({"steps": -1}, "steps is at least 0"),
        ({"keep": (9,)}, "keep names steps from 0 to 6, got 9"),
        ({"clip": 0.0}, "clip is above 0"),
        ({"preserve": 1.0}, "low-rank updates have none"),
    ):
        with pytest.raises(UserError, match=match):
            replace(SHORT, **wrong)
    with pytest.raises(ValueError, match="at least one picture"):
        personalize(tiny_prior(), SUBJECT, CaptionedImages(SUBJECT.pixels[:0], ()), SHORT, run=stage)
