"""Every other pipeline family that reads CLIP, with TULIP by its ordinary arguments: docs/other_pipelines.md."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from tests.documents import code
from tests.pipelines.tiny_others import FAMILIES
from tests.pipelines.tiny_sdxl import quiet, tulip_encoder, words
from tulip_diffusion import TulipTextModel, TulipTextModelWithProjection, load_tokenizer, tulip_pipeline

FIXED = ("HunyuanVideo", "Kandinsky 5 pictures", "Kandinsky 5 videos")  # at 77 tokens, in their own code
CAT, DOG = (f"{words(149)} {animal}" for animal in ("cat", "dog"))  # 152 tokens, BOS and EOS included
SHORT = words(20)


def reader(name: str) -> type:
    """The class that reads long prompts: the stock one, but for those that have 77 in their code."""
    stock = FAMILIES[name].pipeline
    return tulip_pipeline(stock) if name in FIXED else stock


@pytest.mark.parametrize("name", FAMILIES)
def test_a_word_past_token_77_changes_the_picture(name):
    family = FAMILIES[name]
    pipe = family.build(family.tulip(), reader(name))
    cat, dog = (family.draw(pipe, prompt) for prompt in (CAT, DOG))
    assert np.isfinite(np.asarray(cat)).all() and (cat - dog).abs().max() > 1e-5
    assert torch.equal(family.draw(pipe, CAT), cat)


@pytest.mark.parametrize("name", FAMILIES)
def test_stock_clip_and_its_77_tokens_are_left_as_they_are(name, tmp_path):
    """CLIP does not see the word; our tokenizer and classes draw its pictures bit for bit."""
    family = FAMILIES[name]
    clips = family.clip()
    stock, ours = family.build(clips), family.build(clips, reader(name))
    load_tokenizer().save_pretrained(tmp_path)
    for tokenizer in family.slots.values():
        stock.register_modules(**{tokenizer: CLIPTokenizer.from_pretrained(tmp_path)})
    assert torch.equal(family.draw(stock, CAT), family.draw(stock, DOG))
    for prompt in (SHORT, CAT):
        assert torch.equal(family.draw(stock, prompt), family.draw(ours, prompt))


@pytest.mark.parametrize("name", ["FLUX.1", *FIXED])
def test_where_only_the_pooled_vector_is_read_a_short_prompt_needs_no_pads(name):
    family = FAMILIES[name]
    encoders = family.tulip()
    long, short = family.build(encoders, reader(name)), family.build(encoders, reader(name))
    for tokenizer in family.slots.values():
        short.register_modules(**{tokenizer: load_tokenizer()})
    torch.testing.assert_close(family.draw(long, SHORT), family.draw(short, SHORT), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "Stable Diffusion 2", "AnimateDiff"])
@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_reads_an_earlier_state_through_the_last_norm(name, skip):
    family = FAMILIES[name]
    pipe = family.build(family.tulip())
    ids = pipe.tokenizer(CAT, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, 248)
    with torch.no_grad():
        states = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-1 - skip]
        expected = pipe.text_encoder.final_layer_norm(states)
        read, _ = pipe.encode_prompt(CAT, "cpu", 1, False, clip_skip=skip)
        last, _ = pipe.encode_prompt(CAT, "cpu", 1, False)
    assert torch.equal(read, expected) and not torch.allclose(read, last)
    assert torch.equal(last, pipe.text_encoder(ids).last_hidden_state)
    assert not torch.equal(family.draw(pipe, CAT, clip_skip=skip), family.draw(pipe, CAT))


def test_clip_skip_moves_both_clips_of_stable_diffusion_3():
    family = FAMILIES["Stable Diffusion 3"]
    pipe = family.build(family.tulip())
    read, *_ = pipe.encode_prompt(CAT, CAT, CAT, do_classifier_free_guidance=False, clip_skip=1)
    for number, (encoder, tokenizer) in enumerate(family.slots.items()):
        ids = getattr(pipe, tokenizer)(CAT, padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = getattr(pipe, encoder)(ids, output_hidden_states=True).hidden_states[-3]
        assert torch.equal(read[:, :248, 32 * number : 32 * number + 32], states)


class Lora:
    """A LoRA of random weights for the text encoder of an SD 1.5 pipeline, in three forms that people share."""

    def __init__(self):
        torch.manual_seed(4)
        self.layers = {
            f"encoder.layers.{number}.self_attn.{part}": (torch.randn(4, 32) * 0.3, torch.randn(32, 4) * 0.3)
            for number in range(3)
            for part in ("q_proj", "k_proj", "v_proj", "out_proj")
        }

    def kohya(self) -> dict:
        weights = {}
        for name, (down, up) in self.layers.items():
            key = f"lora_te_text_model_{name.replace('.', '_')}"
            weights |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": torch.tensor(4.0),
            }
        return weights

    def older_diffusers(self) -> dict:
        return self.peft("text_encoder.text_model.")

    def peft(self, prefix: str = "text_encoder.") -> dict:
        weights = {}
        for name, (down, up) in self.layers.items():
            weights |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
        return weights

    def merge(self, encoder: TulipTextModel) -> None:
        for name, (down, up) in self.layers.items():
            encoder.get_submodule(name).weight.data += up @ down


@pytest.mark.parametrize("form", ["kohya", "older_diffusers", "peft"])
def test_loras_load_into_an_encoder_that_has_a_text_model(form, tmp_path):
    """They load after `clip_skip` too, and equal merged weights."""
    family, lora = FAMILIES["Stable Diffusion 1.5"], Lora()
    pipe, merged = family.build(family.tulip()), family.build(family.tulip())
    plain = family.draw(pipe, CAT, clip_skip=1)
    lora.merge(merged.text_encoder)
    save_file(getattr(lora, form)(), tmp_path / "lora.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    drawn = family.draw(pipe, CAT, clip_skip=1)
    torch.testing.assert_close(drawn, family.draw(merged, CAT, clip_skip=1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(drawn, plain)
    pipe.unload_lora_weights()
    assert torch.equal(family.draw(pipe, CAT, clip_skip=1), plain)


def test_the_property_changes_no_name_of_a_parameter():
    encoder = FAMILIES["Stable Diffusion 1.5"].tulip()["text_encoder"]
    assert encoder.text_model is encoder
    names = {*encoder.state_dict(), *dict(encoder.named_parameters()), *dict(encoder.named_modules())}
    assert not [name for name in names if "text_model" in name]


def test_an_sd_pipeline_saves_and_loads(tmp_path):
    family = FAMILIES["Stable Diffusion 1.5"]
    pipe = family.build(family.tulip())
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.text_encoder) is TulipTextModel and again.tokenizer.model_max_length == 248
    assert torch.equal(family.draw(again, CAT), family.draw(pipe, CAT))


@pytest.mark.parametrize("name", FIXED)
def test_a_saved_folder_is_the_stock_classs(name, tmp_path):
    """Any diffusers loads it, for 77 tokens; the class of `tulip_pipeline` loads it for all of them."""
    family = FAMILIES[name]
    pipe = family.build(family.tulip(), reader(name))
    pipe.save_pretrained(tmp_path)
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path)) is family.pipeline
    again = reader(name).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(family.draw(again, CAT), family.draw(pipe, CAT))


@pytest.mark.parametrize(
    "name",
    [
        "HunyuanVideoFramepackPipeline",
        "HunyuanVideoImageToVideoPipeline",
        "HunyuanSkyreelsImageToVideoPipeline",
        "Kandinsky5I2IPipeline",
        "Kandinsky5I2VPipeline",
    ],
)
def test_relatives_get_the_same_mixin(name):
    stock = getattr(diffusers, name)
    ours = tulip_pipeline(stock)
    assert ours is not stock and ours is tulip_pipeline(stock) and issubclass(ours, stock)
    method = "_encode_prompt_clip" if "Kandinsky" in name else "_get_clip_prompt_embeds"
    assert getattr(ours, method) is not getattr(stock, method)


PAGE = {  # the page's models and variables
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("Stable Diffusion 1.5", "sd"),
    "stabilityai/stable-diffusion-3-medium-diffusers": ("Stable Diffusion 3", "sd3"),
    "black-forest-labs/FLUX.1-dev": ("FLUX.1", "flux"),
    "stabilityai/stable-cascade-prior": ("Stable Cascade", "prior"),
    "hunyuanvideo-community/HunyuanVideo": ("HunyuanVideo", "video"),
    "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers": ("Kandinsky 5 pictures", "kandinsky"),
}


def test_the_pages_code_runs(tmp_path, monkeypatch):
    """On stock CLIPs' folders; with each pipeline of the page a word past token 77 changes the picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text(CAT)
    tulip_encoder(0, TulipTextModelWithProjection).save_pretrained("tulip")
    tulip_encoder(1, TulipTextModelWithProjection).save_pretrained("tulip-bigG")
    animation = FAMILIES["AnimateDiff"]
    animation.parts()["motion_adapter"].save_pretrained("guoyww/animatediff-motion-adapter-v1-5-3")
    for folder, (name, _) in PAGE.items():
        FAMILIES[name].build(FAMILIES[name].clip()).save_pretrained(folder)
    tiny = {
        '"path/to/tulip"': '"tulip"',
        '"path/to/tulip-bigG"': '"tulip-bigG"',
        "sd(prompt": "sd(prompt, None, None, 2",
    }
    program = code("other_pipelines.md", tiny)
    namespace: dict = {}
    exec(compile(program, "other_pipelines.md", "exec"), namespace)
    drawn = {**dict(PAGE.values()), "AnimateDiff": "animate"}
    for name, variable in drawn.items():
        pipe = quiet(namespace[variable])
        assert not torch.equal(FAMILIES[name].draw(pipe, CAT), FAMILIES[name].draw(pipe, DOG)), name
