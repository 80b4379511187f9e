"""Encoders against the libraries they come from, and the cache."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from tulip_diffusion import load_tokenizer
from tulip_diffusion.evaluation.datasets import world_set
from tulip_diffusion.evaluation.embeddings import embed
from tulip_diffusion.evaluation.encoders import Encoder, OpenClip, open_encoder, open_pair, published_length
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


def opened(folder, **options) -> Encoder:
    return open_encoder(str(folder), argparse.Namespace(device="cpu", **options))


def test_a_transformers_folder_gives_the_models_own_embeddings(folder):
    encoder, model = opened(folder), CLIPModel.from_pretrained(folder).eval()
    data = world_set("world-short", 3)
    images, texts = embed(encoder, data)
    ids = load_tokenizer()(data.captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**ids).pooler_output
    torch.testing.assert_close(texts, expected)
    assert images.shape == (3, 16) and encoder.length == 77


def test_a_long_caption_is_cut_and_ends_with_eos(folder):
    encoder = opened(folder)
    long = " ".join(["word"] * 100)
    cut = encoder.encode_texts([long])
    torch.testing.assert_close(cut, encoder.encode_texts([" ".join(["word"] * 75)]))
    assert not torch.allclose(cut, encoder.encode_texts([" ".join(["word"] * 74)]))


def test_batch_mates_do_not_change_an_embedding(folder):
    for towers in (load_clip(folder), ClipTowers(from_clip(load_clip(folder).text_encoder), *load_clip(folder)[1:])):
        encoder = Encoder("any", towers, load_tokenizer())
        alone = encoder.encode_texts(["a dog"])
        torch.testing.assert_close(encoder.encode_texts(["a dog", "a cat " * 20])[:1], alone, atol=1e-5, rtol=1e-4)


def test_each_encoder_has_its_own_length_and_no_other_fits_a_table():
    for positions, published in ((77, 248), (400, 400)):
        config = TulipTextConfig(**SMALL, max_position_embeddings=positions)
        encoder = Encoder("rope", ClipTowers(TulipTextModelWithProjection(config), None, None), load_tokenizer())
        assert (encoder.length, published_length(encoder)) == (None, published)
    table = ClipTowers(CLIPTextModelWithProjection(CLIPTextConfig(**SMALL)), None, None)
    assert published_length(Encoder("table", table, load_tokenizer())) == 77
    for length in (78, 2):
        with pytest.raises(ValueError, match=f"from 3 to 77 for table, got {length}"):
            Encoder("table", table, load_tokenizer(), length=length)


def test_a_text_tower_alone_is_compared_with_no_picture_and_says_so(tmp_path):
    TulipTextModelWithProjection(TulipTextConfig(**SMALL, projection_dim=16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no image tower"):
        open_pair(str(tmp_path), argparse.Namespace(device="cpu"))
    assert opened(tmp_path).encode_texts(["a dog"]).shape == (1, 16)


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
    encoder = open_pair(f"open_clip:ViT-tiny-test:{tmp_path}/weights.pt", argparse.Namespace(device="cpu"))
    assert isinstance(encoder, OpenClip)
    ids = open_clip.get_tokenizer("ViT-tiny-test")(["a red tulip"])
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_texts(["a red tulip"]), reference.encode_text(ids))
    assert encoder.encode_images([world_set("world-short", 1).picture(0)]).shape == (1, 16)


def test_finelip_is_scored_with_its_slots(folder):
    clip = load_clip(folder)
    torch.manual_seed(1)
    refinement = FineLIPModel(FineLIPConfig(projection_dim=16, slots=3, hidden_dim=8)).eval()
    encoder = Encoder("fine", FineLIP(clip.text_encoder, clip.image_encoder, refinement), load_tokenizer())
    data = world_set("world-short", 4)
    images, texts = embed(encoder, data)
    assert images.shape == texts.shape == (4, 4, 16)
    scores = torch.stack([torch.stack([fine_score(i[None], t[None])[0, 0] for t in texts]) for i in images])
    found = recall_at_k(images, texts, data.image_of_text, (1,), score=encoder.score, block=(3, 3))
    assert found["i2t_R@1"] == (scores.argmax(1) == torch.arange(4)).float().mean()
    assert retrieval_examples(data, images, texts, encoder.score).width > 300
    plain = Encoder("plain", clip, load_tokenizer())
    assert plain.text_key != encoder.text_key and plain.score is None


def counting(calls, key="one"):
    class Counting:
        name, length, score = "counting", 77, None
        image_key, text_key = f"{key} images", f"{key} texts"

        def encode_images(self, pictures):
            calls.append(("images", len(pictures)))
            return torch.ones(len(pictures), 4)

        def encode_texts(self, captions):
            calls.append(("texts", len(captions)))
            return torch.zeros(len(captions), 4)

    return Counting()


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
    one, two = opened(folder), opened(folder)
    assert one.text_key == two.text_key and one.image_key == two.image_key
    towers = load_clip(folder)
    with torch.no_grad():
        towers.text_encoder.text_projection.weight[0, 0] += 1e-3
    changed = Encoder("changed", towers, load_tokenizer(clean=True))
    assert changed.image_key == one.image_key and changed.text_key != one.text_key
    assert opened(folder, length=50).text_key != one.text_key


def test_a_picture_given_to_an_encoder_is_seen_as_one_in_a_file_is(tiny_encoder):
    encoder = tiny_encoder("clip")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    clear = Image.fromarray(noise, "RGBA")
    on_white = Image.new("RGB", clear.size, "white")
    on_white.paste(clear, mask=clear.getchannel("A"))
    features, expected = encoder.encode_images([clear]), encoder.encode_images([on_white])
    torch.testing.assert_close(features, expected, atol=1e-2, rtol=0)  # the two blends differ by a rounding
    assert (features - encoder.encode_images([clear.convert("RGB")])).abs().max() > 0.05
