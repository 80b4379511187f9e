"""FineLIP's ablation end to end: one step of every row on tiny towers."""

import argparse
import copy
import json

import pytest
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tulip_diffusion import from_clip
from tulip_diffusion.evaluation.encoders import Encoder
from tulip_diffusion.training.ablations.finelip import BASELINE, run
from tulip_diffusion.training.ablations.options import finelip


@pytest.fixture
def read(load_towers, tokenizer):
    """Tiny towers whose pictures have sixteen patches, so that there are slots to speak of."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    image = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision, image_size=64, patch_size=16, projection_dim=16))

    def open_towers(name):
        towers = load_towers()
        text = towers.text_encoder if name == "clip" else copy.deepcopy(from_clip(towers.text_encoder))
        towers = towers._replace(text_encoder=text, image_encoder=copy.deepcopy(image), logit_scale=None)
        return Encoder(name, towers, tokenizer)

    return open_towers


def test_the_table_has_a_row_of_every_part_on_both_encoders(read, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    finelip(parser)
    line = f"--steps 1 --batch 4 --captions 4 --count 4 --work {tmp_path / 'work'} --out {tmp_path / 'out'}"
    options = parser.parse_args(line.split())
    options.assets = "tiny"
    run(options, read)
    results = json.loads((tmp_path / "out" / "finelip.json").read_text())["results"]
    parts = ("global", "refined", "late-interaction", "FineLIP*")
    assert list(results) == [BASELINE, *(f"{on}, {part}" for on in ("clip", "tulip") for part in parts)]
    for name, figures in results.items():
        assert 0 <= figures["world-long t2i_R@1"] <= 1 and figures["penultimate_error"] >= 0
        assert ("world-long slots" in figures) == (name != BASELINE and "global" not in name)
    assert "| tulip, FineLIP* |" in (tmp_path / "out" / "finelip.md").read_text()
    options.steps = 2
    with pytest.raises(ValueError, match="was made with steps 1, and now it is 2"):
        run(options, read)
