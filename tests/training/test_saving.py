"""What every stage leaves: folders that load, a run.json and a card that say what made them."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

from tulip_diffusion import TulipTextModel, from_clip, load_clip, load_image_encoder, load_text_encoder
from tulip_diffusion.training.commands import STAGES

from .conftest import make_caption
from .test_commands import run


@pytest.fixture
def workplace(tmp_path, load_towers):
    from_clip(load_towers().text_encoder).save_pretrained(tmp_path / "student")
    (tmp_path / "images").mkdir()
    lines = []
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 255 - 30 * number, 90)).save(tmp_path / "images" / f"{number}.png")
        lines.append(json.dumps({"caption": make_caption(number, 3 + 2 * number), "image": f"{number}.png"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path


def train(workplace, name, stage, **changes):
    given = {"teacher": workplace / "clip", "data": workplace / "captions.jsonl", "image_root": workplace / "images"}
    given |= {"output_dir": workplace / name, "steps": 1, "batch_size": 8, "warmup_steps": 0, "num_workers": 0}
    given |= changes
    flags = [part for flag, value in given.items() for part in (f"--{flag.replace('_', '-')}", value)]
    run(stage, *(part for part in flags if part != ""))
    return workplace / name


CASES = [
    ("distill", {}, True, 248),
    ("expand", {"student": "student", "ntk_alpha": 0}, True, 248),
    ("finetune-clip", {}, False, 77),
    ("finetune-clip", {"stretch": ""}, False, 248),
    ("longclip", {}, False, 248),
    ("finelip", {"slot_ratio": 0.75}, False, 248),
    ("finelip", {"slot_ratio": 0.75, "student": "student"}, True, 248),
]


@pytest.mark.parametrize(("stage", "changes", "tulip", "length"), CASES)
def test_what_a_stage_leaves_loads_everywhere_and_says_what_made_it(workplace, capsys, stage, changes, tulip, length):
    changes = {name: workplace / value if name == "student" else value for name, value in changes.items()}
    folder = train(workplace, "out", stage, **changes)
    said = capsys.readouterr().out.strip().splitlines()[-1]
    name = "TulipTextModelWithProjection" if tulip else "CLIPTextModelWithProjection"
    assert said.startswith(f"{name} for {length} tokens written to {folder}")

    encoder = load_text_encoder(folder).eval()
    assert isinstance(encoder, CLIPTextModelWithProjection) and encoder.config.max_position_embeddings == length
    ids = AutoTokenizer.from_pretrained(folder)([make_caption(0, 3)], return_tensors="pt").input_ids
    slot_1 = (TulipTextModel if tulip else CLIPTextModel).from_pretrained(folder).eval()
    torch.testing.assert_close(slot_1(ids).last_hidden_state, encoder(ids).last_hidden_state)

    if stage != "distill":
        towers = load_clip(folder)
        torch.testing.assert_close(towers.text_encoder(ids).text_embeds, encoder(ids).text_embeds)
        pixels = torch.rand(2, 3, 32, 32)
        expected = load_image_encoder(folder / "image_encoder")(pixels).image_embeds
        for image_encoder in (towers.image_encoder, load_image_encoder(folder)):
            torch.testing.assert_close(image_encoder(pixels).image_embeds, expected)
        assert towers.logit_scale == json.loads((folder / "run.json").read_text())["logit_scale"]

    record = json.loads((folder / "run.json").read_text())
    for source in ("teacher", "data", "image_root"):
        named = {"teacher": "clip", "data": "captions.jsonl", "image_root": "images"}[source]
        assert record["sources"][source] == str(workplace / named)
    assert record["sources"]["student"] == (str(changes["student"]) if "student" in changes else None)
    assert "tokenizer" in record["sources"] and record["arguments"]["batch_size"] == 8
    assert set(record["arguments"]) == set(STAGES[stage][0].__dataclass_fields__)
    card = (folder / "README.md").read_text()
    assert f"train {stage}`" in card and str(workplace / "captions.jsonl") in card and str(workplace / "clip") in card
    assert ("import TulipTextModel" in card) == tulip and ("load_finelip" in card) == (stage == "finelip")


@pytest.mark.parametrize(
    ("stage", "changes", "name"),
    [
        ("finelip", {"slot_ratio": 0.75}, "text_encoder"),
        ("distill", {}, "text_encoder"),
        ("distill", {"pad": "zero"}, "text_encoder_2"),
    ],
)
def test_the_cards_python_loads_the_encoder(workplace, stage, changes, name):
    folder = train(workplace, stage, stage, **changes)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    namespace = {}
    exec(code.replace("this folder", str(folder)), namespace)
    ids = AutoTokenizer.from_pretrained(folder)([make_caption(0, 3)], return_tensors="pt").input_ids
    states = [
        encoder.eval()(ids, output_hidden_states=True).hidden_states[-1]
        for encoder in (namespace[name], load_text_encoder(folder))
    ]
    assert torch.equal(*states)
