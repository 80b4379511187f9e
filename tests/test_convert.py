import re

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel

import tulip_diffusion
from tulip_diffusion import from_clip, load_clip, load_text_encoder
from tulip_diffusion.cli import main
from tulip_diffusion.convert import LAYOUTS
from tulip_diffusion.models import layouts

NTK = {"rope_type": "ntk", "rope_theta": 10000.0, "alpha": 8.0, "base_length": 77, "length": 300}
ENCODERS = {
    "plain rope": {},
    "ntk": {"rope_parameters": NTK},
    "attention scaling": {"attention_scaling": "log", "attention_scaling_base": 60},
    "other theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "contextual": {"position_encoding": "cope"},
}


SMALL = {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}  # a reduced vocabulary, to be quick


def make(make_clip, fields):
    """A TULIP encoder with four heads of 32 and QuickGELU, neither of which its file's tensors tell."""
    return from_clip(make_clip(num_attention_heads=4, **SMALL), **fields)


@pytest.fixture
def clip(make_clip):
    return make_clip(**SMALL)


def as_it_runs(model, ids):
    with torch.no_grad():
        return model(ids % 600, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("fields", ENCODERS.values(), ids=ENCODERS)
def test_a_safetensors_file_reads_back_as_the_encoder_that_it_was(make_clip, long_ids, tmp_path, fields):
    model = make(make_clip, fields)
    model.save_pretrained(tmp_path / "tulip")
    assert main(["convert", str(tmp_path / "tulip"), str(tmp_path / "tulip.safetensors")]) == 0
    back = load_text_encoder(tmp_path / "tulip.safetensors")
    assert torch.equal(as_it_runs(back, long_ids), as_it_runs(model, long_ids))
    with safe_open(tmp_path / "tulip.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    assert main(["convert", str(tmp_path / "tulip.safetensors"), str(tmp_path / "again")]) == 0
    assert torch.equal(as_it_runs(load_text_encoder(tmp_path / "again"), long_ids), as_it_runs(model, long_ids))


@pytest.mark.parametrize("fields", ENCODERS.values(), ids=ENCODERS)
def test_what_convert_prints_for_a_pt_file_reads_it_back(make_clip, long_ids, tmp_path, capsys, fields):
    model = make(make_clip, fields)
    model.save_pretrained(tmp_path / "tulip")
    assert main(["convert", str(tmp_path / "tulip"), str(tmp_path / "tulip.pt")]) == 0
    output = capsys.readouterr().out
    call = re.search(r"load_text_encoder\(.*\)", output)[0]
    back = eval(call, {"load_text_encoder": load_text_encoder})
    assert torch.equal(as_it_runs(back, long_ids), as_it_runs(model, long_ids))
    assert "Other programs do not know this encoder's positions" in output
    assert ("attention scaling" in output.splitlines()[-1]) == ("attention_scaling" in fields)


def test_arguments_count_more_than_what_a_file_says(make_clip, long_ids, tmp_path):
    make(make_clip, ENCODERS["ntk"]).save_pretrained(tmp_path / "tulip")
    main(["convert", str(tmp_path / "tulip"), str(tmp_path / "tulip.safetensors")])
    other = load_text_encoder(
        tmp_path / "tulip.safetensors", rope="released", hidden_act="gelu", attention_scaling="log"
    )
    assert other.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (other.config.hidden_act, other.config.attention_scaling) == ("gelu", "log")
    assert other.config.num_attention_heads == 4


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".SAFETENSORS"])
def test_a_whole_clip_keeps_image_tower_and_temperature(make_clip, tmp_path, capsys, suffix):
    vision = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=make_clip(**SMALL).config.to_dict(), vision_config=vision, projection_dim=32)
    whole = CLIPModel(config).eval()
    whole.save_pretrained(tmp_path / "clip")
    target = tmp_path / f"clip{suffix}"
    assert main(["convert", str(tmp_path / "clip"), str(target)]) == 0
    calls = re.findall(r"(load_\w+)\((.*)\)", capsys.readouterr().out)
    towers = load_clip(target, **({"hidden_act": "quick_gelu"} if suffix == ".pt" else {}))
    image_encoder = towers.image_encoder
    for name, arguments in calls:  # of a .pt file alone
        if name == "load_image_encoder":
            image_encoder = eval(f"load({arguments})", {"load": tulip_diffusion.load_image_encoder})
    ids, pixels = torch.tensor([[598, 320, 125, 599]]), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        output = whole(input_ids=ids, pixel_values=pixels)
        text = towers.text_encoder(ids).text_embeds
        torch.testing.assert_close(text / text.norm(), output.text_embeds)
        image = image_encoder(pixels).image_embeds
        torch.testing.assert_close(image / image.norm(), output.image_embeds)
    assert towers.logit_scale == pytest.approx(whole.logit_scale.item())


def converted(clip, tmp_path, *more):
    clip.save_pretrained(tmp_path / "clip")
    return main(["convert", str(tmp_path / "clip"), str(tmp_path / "out"), *more])


@pytest.mark.parametrize("other", ["notes.txt", "image_encoder/config.json", ".hidden", "optimizer.pt", "vocab.json"])
def test_overwrite_spares_a_folder_that_holds_anything_else(clip, tmp_path, capsys, other):
    assert converted(clip, tmp_path) == 0
    mine = tmp_path / "out" / other
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert converted(clip, tmp_path, "--overwrite") == 2
    assert other.split("/")[0] in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_overwrite_replaces_what_convert_wrote(clip, tmp_path, capsys):
    assert converted(clip, tmp_path) == 0
    assert converted(clip, tmp_path) == 2 and "--overwrite" in capsys.readouterr().err
    assert converted(clip, tmp_path, "--overwrite", "--dtype", "float16", "--to-tulip") == 0
    assert load_text_encoder(tmp_path / "out").config.model_type == "tulip_text_model"
    assert not list(tmp_path.glob("*unfinished*"))


@pytest.mark.parametrize(
    ("existing", "dest", "sentence"),
    [
        ("folder.pt/", "folder.pt", "is a folder"),
        ("file", "file", "is a file"),
    ],
)
def test_a_dest_of_another_kind_is_refused(clip, tmp_path, capsys, existing, dest, sentence):
    clip.save_pretrained(tmp_path / "clip")
    if existing.endswith("/"):
        (tmp_path / existing).mkdir()
    elif existing:
        (tmp_path / existing).write_text("mine")
    assert main(["convert", str(tmp_path / "clip"), str(tmp_path / dest), "--overwrite"]) == 2
    assert sentence in capsys.readouterr().err


def test_convert_names_every_layout_though_it_imports_none():
    assert ("auto", *layouts.LAYOUTS) == LAYOUTS
