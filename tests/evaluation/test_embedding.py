"""Encoders against the libraries they come from, and the cache."""

import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from tulip_diffusion import load_tokenizer
from tulip_diffusion.evaluation.datasets import world_set
from tulip_diffusion.evaluation.embedding import Encoder, embed, from_open_clip, from_source, from_towers, text_length
from tulip_diffusion.evaluation.examples import retrieval_examples
from tulip_diffusion.evaluation.retrieval import recall_at_k
from tulip_diffusion.models.checkpoints import ClipTowers, load_clip
from tulip_diffusion.models.finelip import FineLIP, FineLIPConfig, FineLIPModel, fine_score
from tulip_diffusion.models.text_encoder import TulipTextConfig, TulipTextModelWithProjection, from_clip

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    text = {**SMALL, "max_position_embeddings": 77, "eos_token_id": 49407, "bos_token_id": 49406}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    return path


def test_a_transformers_folder_gives_the_models_own_embeddings(folder):
    encoder, model = from_source(str(folder)), CLIPModel.from_pretrained(folder).eval()
    data = world_set("world-short", 3)
    images, texts = embed(encoder, data)
    ids = load_tokenizer()(data.captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**ids).pooler_output
    torch.testing.assert_close(texts, expected)
    assert images.shape == (3, 16) and encoder.length == 77


def test_a_long_caption_is_cut_and_ends_with_eos(folder):
    encoder = from_source(str(folder))
    long = " ".join(["word"] * 100)
    cut = encoder.encode_texts([long])
    torch.testing.assert_close(cut, encoder.encode_texts([" ".join(["word"] * 75)]))
    assert not torch.allclose(cut, encoder.encode_texts([" ".join(["word"] * 74)]))


def test_batch_mates_do_not_change_an_embedding(folder):
    for towers in (load_clip(folder), ClipTowers(from_clip(load_clip(folder).text_encoder), *load_clip(folder)[1:])):
        encoder = from_towers("any", towers, load_tokenizer())
        alone = encoder.encode_texts(["a dog"])
        torch.testing.assert_close(encoder.encode_texts(["a dog", "a cat " * 20])[:1], alone, atol=1e-5, rtol=1e-4)


def test_each_encoder_has_its_own_length():
    assert text_length(CLIPTextConfig(max_position_embeddings=77)) == 77
    assert text_length(TulipTextConfig(max_position_embeddings=77)) == 248
    assert text_length(TulipTextConfig(max_position_embeddings=400)) == 400
    assert text_length(TulipTextConfig(position_encoding="cope", max_position_embeddings=77)) == 77


def test_a_text_tower_alone_retrieves_nothing_and_says_so():
    text = TulipTextModelWithProjection(TulipTextConfig(**SMALL, projection_dim=16))
    with pytest.raises(ValueError, match="no image tower"):
        from_towers("stage 1", ClipTowers(text, None, None), load_tokenizer())


TINY_OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def test_an_open_clip_model_gives_its_own_embeddings(tmp_path):
    import open_clip

    (tmp_path / "ViT-tiny-test.json").write_text(json.dumps(TINY_OPEN_CLIP))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    reference = open_clip.create_model("ViT-tiny-test").eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    encoder = from_open_clip("ViT-tiny-test", str(tmp_path / "weights.pt"))
    ids = open_clip.get_tokenizer("ViT-tiny-test")(["a red tulip"])
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_texts(["a red tulip"]), reference.encode_text(ids))
    assert encoder.encode_images([world_set("world-short", 1).picture(0)]).shape == (1, 16)


def test_finelip_is_scored_with_its_slots(folder):
    clip = load_clip(folder)
    torch.manual_seed(1)
    refinement = FineLIPModel(FineLIPConfig(projection_dim=16, slots=3, hidden_dim=8)).eval()
    encoder = from_towers("fine", FineLIP(clip.text_encoder, clip.image_encoder, refinement), load_tokenizer())
    data = world_set("world-short", 4)
    images, texts = embed(encoder, data)
    assert images.shape == texts.shape == (4, 4, 16)
    scores = torch.stack([torch.stack([fine_score(i[None], t[None])[0, 0] for t in texts]) for i in images])
    found = recall_at_k(images, texts, data.image_of_text, (1,), score=encoder.score, block=(3, 3))
    assert found["i2t_R@1"] == (scores.argmax(1) == torch.arange(4)).float().mean()
    assert retrieval_examples(data, images, texts, encoder.score).width > 300
    plain = from_towers("plain", clip, load_tokenizer())
    assert plain.text_key != encoder.text_key and plain.score is None


def counting(calls, key="one"):
    def images(pictures):
        calls.append(("images", len(pictures)))
        return torch.ones(len(pictures), 4)

    def texts(captions):
        calls.append(("texts", len(captions)))
        return torch.zeros(len(captions), 4)

    return Encoder("counting", images, texts, f"{key} images", f"{key} texts", 77)


def test_nothing_is_encoded_twice_and_nothing_foreign_is_taken_from_the_cache(tmp_path):
    calls: list = []
    data = world_set("world-short", 5)
    first = embed(counting(calls), data, tmp_path, batch=2)
    assert calls == [("images", 2), ("images", 2), ("images", 1), ("texts", 2), ("texts", 2), ("texts", 1)]
    calls.clear()
    again = embed(counting(calls), data, tmp_path)
    assert not calls and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    embed(counting(calls, "other weights"), data, tmp_path)
    embed(counting(calls), world_set("world-short", 4), tmp_path)
    assert [count for _, count in calls] == [5, 5, 4, 4]


def test_the_keys_follow_the_weights(folder):
    one, two = from_source(str(folder)), from_source(str(folder))
    assert one.text_key == two.text_key and one.image_key == two.image_key
    towers = load_clip(folder)
    with torch.no_grad():
        towers.text_encoder.text_projection.weight[0, 0] += 1e-3
    changed = from_towers("changed", towers, load_tokenizer(clean=True))
    assert changed.image_key == one.image_key and changed.text_key != one.text_key
    assert from_source(str(folder), length=50).text_key != one.text_key
