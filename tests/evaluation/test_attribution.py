"""Cross-attention by token, against diffusers' own attention written out."""

import json

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image

from tulip_diffusion.evaluation.attribution import Attribution, attribute
from tulip_diffusion.evaluation.cross_attention import watched_attention
from tulip_diffusion.evaluation.prompts import prompts_of

PROMPT = "Top first red tulip. Bottom fourth, a key like the tulip. Lower second cup."


def test_weights_are_the_softmax_of_every_layer_averaged(tiny_pipeline):
    pipeline = tiny_pipeline("clip")
    states = torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(0))
    inputs: list = []
    blocks = [module for module in pipeline.unet.modules() if isinstance(module, BasicTransformerBlock)]
    handles = [
        block.attn2.register_forward_pre_hook(lambda m, a, k: inputs.append((m, a[0])), with_kwargs=True)
        for block in blocks
    ]
    conditions = {"text_embeds": torch.zeros(2, 32), "time_ids": torch.zeros(2, 6)}
    with watched_attention(pipeline.unet) as seen, torch.no_grad():
        pipeline.unet(torch.randn(2, 4, 32, 32), 10, states, added_cond_kwargs=conditions)
    for handle in handles:
        handle.remove()
    expected = torch.zeros(77)
    for attention, hidden in inputs:
        heads = attention.heads
        with torch.no_grad():
            query = attention.to_q(hidden[1]).view(len(hidden[1]), heads, -1)
            key = attention.to_k(states[1]).view(77, heads, -1)
        logits = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
        expected += logits.softmax(-1).mean((0, 1)) / len(inputs)
    assert len(inputs) == len(blocks) > 1
    torch.testing.assert_close(seen.mean, expected, atol=1e-6, rtol=1e-4)
    assert seen.mean.sum().item() == pytest.approx(1, abs=1e-5)
    assert not any(block.attn2._forward_pre_hooks for block in blocks)


@pytest.mark.parametrize(("encoder", "prompt", "reads"), [("clip", "full", 75), ("tulip", "full", None)])
def test_words_that_an_encoder_does_not_read_have_no_attention(tiny_pipeline, encoder, prompt, reads):
    text = prompts_of(prompt, 1)[0].text
    found = attribute(tiny_pipeline(encoder), text, steps=2)
    words = len(found.words)
    assert words == len(found.attention) > 150 and "".join(found.words).startswith(text.split()[0])
    assert all(weight > 0 for weight in found.attention[:reads])
    assert reads is None or set(found.attention[reads:]) == {0.0}
    assert sum(found.attention) == pytest.approx(words, rel=1e-4)  # multiples of an even spread
    read = 1 - found.start - found.end
    assert 0 < read < 1 and found.beyond(77) == (0 if reads else pytest.approx(found.beyond(77)))


def test_watching_changes_no_picture_and_pads_count_as_the_end(tiny_pipeline):
    pipeline = tiny_pipeline("clip")
    generator = torch.Generator("cpu").manual_seed(0)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": [generator]}
    plain = pipeline(prompt=[PROMPT], **call).images[0]
    found = attribute(pipeline, PROMPT, steps=2)
    assert found.picture.tobytes() == plain.tobytes()
    assert found.end > 0.5  # 77 tokens, of which most are pads


def test_shares_beyond_a_limit_follow_their_positions():
    one = Attribution(Image.new("RGB", (1, 1)), ("a",) * 80, (1.0,) * 80, 0, 0)
    assert one.beyond(77) == pytest.approx(5 / 80)  # tokens 76 to 80
    assert one.beyond(82) is None and one.beyond(81) == pytest.approx(1 / 80)


def test_the_command_writes_words_and_strip(command):
    out = command("attribution", PROMPT, "--encoders", "clip", "tulip", "--steps", 1)
    results = json.loads((out / "attribution.json").read_text())["results"]
    assert results["prompt"] == PROMPT and len(results["tulip"]["words"]) == len(results["tulip"]["attention"])
    assert "".join(results["clip"]["words"]) == PROMPT.replace(" ", "")
    assert Image.open(out / "strip.png").width > 2 * 384 and (out / "attribution.png").is_file()
