import json

import pytest
import torch
from PIL import Image

from tulip_diffusion.evaluation.relevance import relevance, window_starts


def test_windows_cover_a_caption_in_strides_and_a_short_one_once():
    assert window_starts(60, window=20, stride=10) == [0, 10, 20, 30, 40]
    assert window_starts(20, window=20, stride=5) == window_starts(7, window=20, stride=5) == [0]


def test_similarities_are_those_of_the_windows_read_one_by_one(tiny_encoder):
    encoder = tiny_encoder("clip")
    texts = ["a red tulip on the top shelf, a cat below it, two boats", "one key", "a house and a tree " * 5]
    images = torch.nn.functional.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    ids = encoder.tokenize(texts)
    figures = relevance(encoder, ids, images, window=6, stride=4)
    own, closest = [], []
    for row, caption in enumerate(ids):
        for start in window_starts(len(caption), 6, 4):
            text = encoder.embed_texts([encoder.tokenizer.decode(caption[start : start + 6])])[0]
            own.append((text @ images[row]).item())
            closest.append(float((images @ text).argmax() == row))
    assert figures["similarity"].mean == pytest.approx(sum(own) / len(own), abs=1e-5)
    assert figures["closest"].mean == pytest.approx(sum(closest) / len(closest))
    assert figures["curve"][1] == pytest.approx(own[: len(figures["curve"][1])], abs=1e-5)
    assert figures["curve"][0][:2] == [5.0, 9.0] and figures["chance"] == pytest.approx(1 / 3)


def test_the_command_reads_the_world_or_any_pairs(command, tmp_path):
    for number in range(2):
        Image.new("RGB", (40, 30), (200 * number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [{"caption": f"a tulip, number {number} of many", "image": f"{number}.png"} for number in range(2)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, extra in (("world", []), ("pairs", ["--data", str(tmp_path / "pairs.jsonl")])):
        line = ["--encoders", "tulip", "--windows", "20", "--strides", "15", "--count", "2", *extra]
        command("relevance", *line, out=name)
        results = json.loads((tmp_path / name / "relevance.json").read_text())["results"]
        assert results["tulip"]["20/15"]["chance"] == 0.5
        plots = {path.name for path in (tmp_path / name).glob("*.png")}
        assert plots == {"relevance_closest.png", "relevance_similarity.png"}
