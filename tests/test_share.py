"""What people give to others: a folder with a card, and a single file that nobody takes for a CLIP."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from open_clip import create_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection

from tests.test_convert import ENCODERS, SMALL, as_it_runs, make
from tulip_diffusion import TulipTextModel, from_clip, load_image_encoder, load_text_encoder
from tulip_diffusion.cli import main
from tulip_diffusion.models.checkpoints import IMAGE_FOLDER

RUN = {
    "stage": "distill",
    "sources": {
        "teacher": "openai/clip-vit-large-patch14",
        "data": "/home/me/secret/captions.jsonl",
        "tokenizer": None,
    },
    "arguments": {
        "length": 248,
        "objective": "paper",
        "pad": "eos",
        "steps": 900,
        "batch_size": 64,
        "mixed_precision": "no",
    },
    "data": {"rows": 1000},
    "figures": {"pooled_cosine": 0.98768},
    "version": "0.2.0",
    "commit": "0123456789ab",
    "folder": "/home/me/secret",
}


@pytest.fixture
def trained(clip, tmp_path):
    """Such a folder as training leaves; the paper's objective cuts texts at 77 tokens, whatever --length says."""
    folder = tmp_path / "trained"
    from_clip(clip, attention_scaling="log").save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps(RUN))
    return folder


def share(folder, *more):
    return main(["share", str(folder), str(folder.parent / "shared"), "--license", "mit", *more])


def test_a_shared_folder_has_a_card_with_all_that_the_hub_and_its_readers_want(trained, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "harbour.png")
    assert share(trained, "--picture", str(tmp_path / "harbour.png"), "--dataset", "Lin-Chen/ShareGPT4V") == 0
    shared = tmp_path / "shared"
    card = ModelCard.load(shared / "README.md")
    assert card.data.to_dict() == {
        "license": "mit",
        "language": ["en"],
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": "openai/clip-vit-large-patch14",
        "base_model_relation": "finetune",
        "datasets": ["Lin-Chen/ShareGPT4V"],
        "tags": ["tulip", "clip", "text-encoder", "stable-diffusion-xl", "long-prompts"],
    }
    for fact in (
        "| teacher | openai/clip-vit-large-patch14 |",
        "| data | captions.jsonl |",
        "| trained length | 77 tokens |",
        "| attention scaling | log |",
        "| positions | rotary",
        "| training | 900 steps, 64 captions a step |",
        "| pooled_cosine | 0.9877 |",
        "## Limits",
        "![Drawn with this encoder](harbour.png)",
    ):
        assert fact in card.text, fact
    assert (shared / "harbour.png").is_file()
    assert "secret" not in "".join(file.read_text() for file in (shared / "README.md", shared / "run.json"))


def test_a_shared_folder_is_the_encoder_with_tokenizer_and_preprocessor(trained, tmp_path, long_ids):
    assert share(trained) == 0
    shared = tmp_path / "shared"
    before, after = load_text_encoder(trained), load_text_encoder(shared)
    assert torch.equal(after(long_ids).text_embeds, before(long_ids).text_embeds)
    assert AutoTokenizer.from_pretrained(shared)("a red tulip").input_ids[0] == 49406
    assert AutoImageProcessor.from_pretrained(shared)(Image.new("RGB", (50, 40)))["pixel_values"][0].shape[-2:] == (
        224,
        224,
    )


def test_both_code_blocks_of_a_card_run(trained, tmp_path, monkeypatch, long_ids):
    from diffusers import StableDiffusionXLPipeline

    from tests.pipelines import tiny_sdxl

    StableDiffusionXLPipeline(**tiny_sdxl.components(StableDiffusionXLPipeline)).save_pretrained(tmp_path / "sdxl")
    tiny_sdxl.tulip_encoder().save_pretrained(tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    assert share(tmp_path / "first") == 0
    text = ModelCard.load(tmp_path / "shared" / "README.md").text.replace("this folder", "shared")
    transformers, diffusers = (block.split("```")[0] for block in text.split("```python\n")[1:])
    namespace: dict = {}
    exec(transformers, namespace)
    assert isinstance(namespace["text_encoder"], TulipTextModel)
    tiny = diffusers.replace("stabilityai/stable-diffusion-xl-base-1.0", "sdxl").replace("float16", "float32")
    exec(tiny.replace('length")', 'length", num_inference_steps=1, height=32, width=32)'), namespace)
    assert Image.open("picture.png").size == (32, 32)


def test_a_card_says_nothing_of_a_run_that_left_no_record(clip, tmp_path):
    clip.save_pretrained(tmp_path / "clip")
    assert share(tmp_path / "clip", "--base-model", "openai/clip-vit-large-patch14", "--slot", "text_encoder_2") == 0
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert "## Figures" not in card.text and "teacher" not in card.text and "None" not in card.text
    assert "CLIPTextModelWithProjection.from_pretrained" in card.text and "77 tokens" in card.text
    assert "text_encoder_2=load_text_encoder" in card.text and "attention scaling" not in card.text


def test_an_image_tower_goes_along(trained, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                              image_size=32, patch_size=16, projection_dim=32)  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(trained / IMAGE_FOLDER)
    assert share(trained) == 0
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "shared")(Image.new("RGB", (50, 40)), return_tensors="pt")
    assert load_image_encoder(tmp_path / "shared")(**pixels).image_embeds.shape == (1, 32)


def test_pushing_uploads_the_whole_folder_and_the_card_names_its_repository(trained, tmp_path, monkeypatch):
    """The Hub cannot be reached from a test; what it is asked for is all that is looked at."""
    asked = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **more: asked.append(repo))
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, **what: asked.append((what["repo_id"], what["folder_path"]))
    )
    assert share(trained, "--push", "me/tulip-l") == 0
    assert asked == ["me/tulip-l", ("me/tulip-l", tmp_path / "shared")]
    assert 'TulipTextModel.from_pretrained("me/tulip-l")' in (tmp_path / "shared" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--license", "My Licence"], "a licence such as mit"),
        (["--push", "nobody"], "a Hub id such as OWNER/NAME"),
        (["--picture", "nowhere.png"], "a file that exists"),
    ],
)
def test_what_cannot_be_shared_is_refused_and_nothing_is_written(trained, tmp_path, capsys, more, sentence):
    with pytest.raises(SystemExit):
        share(trained, *more)
    assert sentence in capsys.readouterr().err and not (tmp_path / "shared").exists()


def test_a_folder_that_holds_something_or_a_broken_record_is_refused(trained, tmp_path, capsys):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "mine").write_text("mine")
    assert share(trained) == 2 and "is not empty" in capsys.readouterr().err
    (tmp_path / "shared" / "mine").unlink()
    (trained / "run.json").write_text("{}")
    assert share(trained) == 2 and "no record of a run" in capsys.readouterr().err


def single_file(model, tmp_path, *more):
    model.save_pretrained(tmp_path / "tulip")
    file = tmp_path / "single" / "tulip.safetensors"
    assert main(["convert", str(tmp_path / "tulip"), str(file), "--single-file", *more]) == 0
    return file


@pytest.mark.parametrize("fields", ENCODERS.values(), ids=ENCODERS)
def test_a_single_file_reads_back_bit_for_bit(make_clip, long_ids, tmp_path, fields):
    model = make(make_clip, fields)
    file = single_file(model, tmp_path)
    back = load_text_encoder(file)
    expected = model.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in back.state_dict().items())
    assert torch.equal(as_it_runs(back, long_ids), as_it_runs(model, long_ids))
    for field in ("position_encoding", "rope_parameters", "attention_scaling", "num_attention_heads", "hidden_act"):
        assert getattr(back.config, field) == getattr(model.config, field)
    make_clip(**SMALL).save_pretrained(file.parent)  # another model's config.json beside it changes nothing
    assert torch.equal(as_it_runs(load_text_encoder(file), long_ids), as_it_runs(model, long_ids))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_single_file_in_half_precision_reads_back_too(make_clip, tmp_path, dtype):
    file = single_file(make(make_clip, {}), tmp_path, "--dtype", dtype)
    back = load_text_encoder(file, dtype=getattr(torch, dtype))
    stored = load_file(file)
    assert {value.dtype for value in stored.values()} == {getattr(torch, dtype)}
    assert all(
        torch.equal(value, stored["tulip_encoder." + name.removeprefix("text_model.")])
        for name, value in back.state_dict().items()
    )


def test_strict_loads_into_a_clip_name_every_tensor_as_missing(clip, tmp_path):
    file = single_file(from_clip(clip), tmp_path)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"
        names = opened.keys()
        assert not any("text_model." in name or name.startswith("transformer.") for name in names)
    for model in (CLIPTextModelWithProjection(clip.config), CLIPTextModel(clip.config)):
        with pytest.raises(RuntimeError, match=r"Missing key.*token_embedding\.weight"):
            model.load_state_dict(load_file(file))
        names, found = model.state_dict().keys(), load_file(file).keys()
        assert not names & found
    clip.config.save_pretrained(tmp_path / "as_clip")
    (tmp_path / "as_clip" / "model.safetensors").write_bytes(file.read_bytes())
    _, report = CLIPTextModelWithProjection.from_pretrained(tmp_path / "as_clip", output_loading_info=True)
    assert len(report["missing_keys"]) == len(clip.state_dict())


def test_open_clip_and_diffusers_refuse_a_single_file(clip, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    from tests.pipelines import tiny_sdxl

    file = single_file(from_clip(clip), tmp_path)
    with pytest.raises(RuntimeError, match=r"Missing key.*token_embedding\.weight"):
        create_model("RN50", pretrained=str(file))
    StableDiffusionXLPipeline(**tiny_sdxl.components(StableDiffusionXLPipeline)).save_pretrained(tmp_path / "sdxl")
    with pytest.raises(Exception, match="Failed to load"):
        StableDiffusionXLPipeline.from_single_file(str(file), config=str(tmp_path / "sdxl"))


def test_a_clip_or_another_ending_is_refused_as_a_single_file(clip, tmp_path, capsys):
    clip.save_pretrained(tmp_path / "clip")
    line = ["convert", str(tmp_path / "clip")]
    assert main([*line, str(tmp_path / "clip.safetensors"), "--single-file"]) == 2
    assert "is for TULIP encoders" in capsys.readouterr().err and not (tmp_path / "clip.safetensors").exists()
    for dest in ("tulip.pt", "folder"):
        assert main([*line, str(tmp_path / dest), "--single-file"]) == 2
        assert "writes a .safetensors file" in capsys.readouterr().err
