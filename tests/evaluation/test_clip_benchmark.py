"""clip-benchmark's own metrics on our encoders, where it is installed; the adapter itself wherever."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tulip_diffusion.evaluation.clip_benchmark import BenchmarkModel, load_model, register
from tulip_diffusion.evaluation.datasets import world_set
from tulip_diffusion.evaluation.retrieval import recall_at_k


def test_features_are_the_encoders_own_whatever_the_padding(clip_folder, tiny_encoder):
    model, transform, tokenize = load_model(str(clip_folder))
    texts = ["a red tulip", "a key in the second place of the top shelf", "word " * 100]
    pictures = [world_set("world-short", 3).picture(number) for number in range(3)]
    ids = tokenize(texts)
    assert ids.shape == (3, 77)
    own = tiny_encoder("clip")
    torch.testing.assert_close(model.encode_text(ids), own.encode_texts(texts), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.encode_text(ids[:1]), own.encode_texts(texts[:1]), atol=1e-5, rtol=1e-4)
    pixels = torch.stack([transform(picture) for picture in pictures])
    torch.testing.assert_close(model.encode_image(pixels), own.encode_images(pictures), atol=1e-5, rtol=1e-4)
    assert isinstance(model, BenchmarkModel) and not model.training and len(list(model.parameters())) > 10


def test_an_encoder_without_pictures_is_refused(family):
    with pytest.raises(ValueError, match="no image tower"):
        load_model(str(family / "encoders/clip/text_encoder_2"))


def test_clip_benchmarks_retrieval_gives_our_recall(clip_folder):
    pytest.importorskip("clip_benchmark", reason="an optional extra")
    from clip_benchmark.metrics import zeroshot_retrieval
    from clip_benchmark.models import load_clip

    register()
    register()  # twice does no harm
    model, transform, tokenize = load_clip("tulip", str(clip_folder), "", None, device="cpu")
    data = world_set("world-short", 12)
    rows = [(transform(data.picture(number)), [data.captions[number]]) for number in range(12)]

    def collate(batch):
        pictures, captions = zip(*batch, strict=True)
        return torch.stack(pictures), list(captions)

    loader = DataLoader(rows, batch_size=5, collate_fn=collate)
    found = zeroshot_retrieval.evaluate(model, loader, tokenize, "cpu", amp=False, recall_k_list=[1, 5])
    images = model.encode_image(torch.stack([pixels for pixels, _ in rows]))
    expected = recall_at_k(images, model.encode_text(tokenize(data.captions)), range(12), (1, 5))
    for theirs, ours in (("image_retrieval", "t2i"), ("text_retrieval", "i2t")):
        for k in (1, 5):
            assert found[f"{theirs}_recall@{k}"] == pytest.approx(expected[f"{ours}_R@{k}"], abs=1e-6)
    assert not np.isnan(list(found.values())).any()
