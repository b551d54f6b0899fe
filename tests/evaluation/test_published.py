"""Published encoders, with tiny networks that their own library makes. Needs the extra `published`."""

from __future__ import annotations

import json

import pytest
import torch

from maquette.errors import UserError
from maquette.evaluation.encoders import ImageEncoder, ImageTextEncoder

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'maquette[published]'")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": 520,
            "max_position_embeddings": 12,
            "eos_token_id": 519,
            "bos_token_id": 518,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"filler{index}" for index in range(518 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 12, "pad_token": "<|endoftext|>",
                    "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    )  # fmt: skip
    return folder


def test_clip_embeds_pictures_and_captions_alike(clip_folder, generator):
    from maquette.evaluation.published import ClipEncoder

    encoder = ClipEncoder(clip_folder)
    assert isinstance(encoder, ImageTextEncoder) and encoder.name == "tiny-clip"
    images = torch.rand(3, 3, 48, 40, generator=generator)
    vectors, words = encoder.embed_images(images), encoder.embed_texts(["a cat", "b"])
    assert vectors.shape == (3, 24) and words.shape == (2, 24)
    for rows in (vectors, words):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    torch.testing.assert_close(encoder.embed_images(images[1:2]), vectors[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.embed_texts(["b"]), words[1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="at most 12 tokens"):
        encoder.embed_texts(["a long caption that has far too many letters"])


def test_clip_sees_what_its_own_library_sees(clip_folder, generator):
    from maquette.diffusion.clip_pixels import clip_pixels
    from maquette.evaluation.published import ClipEncoder

    model = transformers.CLIPModel.from_pretrained(clip_folder)
    image = torch.rand(3, 32, 32, generator=generator)
    with torch.no_grad():
        output = model.get_image_features(clip_pixels(image, 32)[None])
    expected = output if isinstance(output, torch.Tensor) else output.pooler_output
    found = ClipEncoder(clip_folder, name="x").embed_images(image[None])
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


def test_dino_gives_its_class_token(tmp_path, generator):
    from maquette.evaluation.published import DinoEncoder

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=224, patch_size=56
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "tiny-dino")
    encoder = DinoEncoder(tmp_path / "tiny-dino")
    assert isinstance(encoder, ImageEncoder) and not isinstance(encoder, ImageTextEncoder)
    vectors = encoder.embed_images(torch.rand(2, 3, 64, 80, generator=generator))
    assert vectors.shape == (2, 32)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_other_folders_are_refused(clip_folder, tmp_path):
    from maquette.evaluation.published import ClipEncoder

    with pytest.raises(UserError, match=r"no config\.json"):
        ClipEncoder(tmp_path)
    with pytest.raises(UserError, match="another model|cannot be read"):
        config = transformers.ViTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
        )
        transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
        ClipEncoder(tmp_path / "vit")
