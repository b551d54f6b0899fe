"""CLIP's towers: causality, what the penultimate layer is, sizes. Their numbers are checked in tests/parity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.diffusion.clip import CLIP, TextConfig, TextTower, VisionConfig, VisionTower, vit_h14, vit_l14

VISION = VisionConfig(image_size=28, patch_size=7, width=32, layers=3, heads=4, mlp_width=64, embed_dim=12)
TEXT = TextConfig(vocabulary=50, context_length=9, width=24, layers=3, heads=3, mlp_width=48, embed_dim=12)


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return CLIP(VISION, TEXT).eval().requires_grad_(False)


@pytest.mark.parametrize("skip_last", [0, 1, 2])
def test_a_token_does_not_know_the_later_ones(clip, skip_last, generator):
    tokens = torch.randint(50, (2, 9), generator=generator)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    before, after = clip.text_context(tokens, skip_last), clip.text_context(changed, skip_last)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_shorter_texts_are_a_prefix(clip, generator):
    tokens = torch.randint(50, (2, 9), generator=generator)
    torch.testing.assert_close(clip.text_context(tokens)[:, :4], clip.text_context(tokens[:, :4]))


def test_skipping_blocks_is_a_shallower_tower(clip, generator):
    tokens = torch.randint(50, (2, 9), generator=generator)
    shallow = TextTower(replace(TEXT, layers=2))
    shallow.load_state_dict({k: v for k, v in clip.text.state_dict().items() if not k.startswith("blocks.2.")})
    torch.testing.assert_close(clip.text_context(tokens, 1), shallow.context(tokens, 0))


def test_the_sentence_is_read_at_its_end_token(clip, generator):
    tokens = torch.randint(49, (2, 9), generator=generator)
    tokens[0, 3] = tokens[1, 8] = 49  # the largest id ends the sentence
    embedding = clip.text.embedding(tokens)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))
    padded = tokens.clone()
    padded[0, 4:] = 0
    torch.testing.assert_close(clip.text.embedding(padded), embedding)


def test_local_tokens_are_the_last_block_s_input(clip, generator):
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    features = clip.image_features(pixels)
    assert features.local_tokens.shape == (2, VISION.num_tokens, 32) == (2, 17, 32)
    tokens = clip.vision.blocks[-1](features.local_tokens)
    pooled = clip.vision.projection(clip.vision.norm_out(tokens[:, 0]))
    torch.testing.assert_close(features.global_embedding, torch.nn.functional.normalize(pooled, dim=-1))
    torch.testing.assert_close(features.global_embedding.norm(dim=-1), torch.ones(2))


def test_every_patch_sees_every_other(clip, generator):
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    changed = pixels.clone()
    changed[..., -1, -1] += 1.0
    difference = (clip.image_features(pixels).local_tokens - clip.image_features(changed).local_tokens).abs()
    assert difference.amax(dim=-1).min() > 0


def test_quick_gelu_is_another_function(generator):
    torch.manual_seed(0)
    exact = VisionTower(VISION).eval().requires_grad_(False)
    quick = VisionTower(replace(VISION, activation="quick_gelu")).eval().requires_grad_(False)
    quick.load_state_dict(exact.state_dict())
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    difference = (exact(pixels).local_tokens - quick(pixels).local_tokens).abs().max()
    assert 1e-4 < float(difference) < 0.1


@pytest.mark.parametrize(("make", "count"), [(vit_h14, 986_109_441), (vit_l14, 427_616_513)])
def test_published_sizes_without_allocating_them(make, count):
    with torch.device("meta"):
        clip = CLIP(*make())
    assert sum(p.numel() for p in clip.parameters()) == count


def test_what_is_not_there_says_so(clip):
    with pytest.raises(ValueError, match="no image tower"):
        CLIP(None, TEXT).image_features(torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match="no text tower"):
        CLIP(VISION, None).text_context(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="without its projection"):
        TextTower(replace(TEXT, embed_dim=None)).embedding(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="use clip_pixels"):
        clip.image_features(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="at most 9 tokens"):
        clip.text_context(torch.zeros(1, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match="skip_last"):
        clip.text_context(torch.zeros(1, 9, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="at least 2 layers"):
        VisionTower(replace(VISION, layers=1))
