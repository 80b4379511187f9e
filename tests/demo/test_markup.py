"""The token bar and the notes below the pictures."""

import re
from html import unescape

import numpy as np
from PIL import Image

from tulip_diffusion import load_tokenizer
from tulip_diffusion.demo import markup
from tulip_diffusion.demo.prompts import SIZES, prose_prompts, world_prompts
from tulip_diffusion.demo.verdicts import judge
from tulip_diffusion.prompt_description import describe_prompt
from tulip_diffusion.scenes.grammar import parse_caption, write_caption
from tulip_diffusion.scenes.render import random_scene, render

TOKENIZER = load_tokenizer(max_length=4096)


def parts(text: str) -> dict[str, str]:
    """The coloured parts of the bar as people see them."""
    bar = markup.token_bar(text, describe_prompt(text, TOKENIZER))
    words = bar[bar.index('class="words"') :]
    return {kind: unescape(part) for kind, part in re.findall(r'<span class="(\w+)">(.*?)</span>', words, re.DOTALL)}


def test_the_bar_changes_colour_where_77_and_248_tokens_end():
    text = " ".join(f"word{'s' * (i % 2)}" for i in range(400))  # every word is one token
    coloured = parts(text)
    assert "".join(coloured.values()) == text
    counts = [len(part.split()) for part in coloured.values()]
    assert counts == [75, 171, 154]  # BOS and EOS take two of each encoder's tokens


def test_a_prompt_that_everybody_sees_has_one_colour():
    assert parts("A red tulip.") == {"clip": "A red tulip."}
    assert set(parts("tulip " * 100)) == {"clip", "longclip"}


def test_a_word_that_is_cut_in_two_counts_as_unseen():
    text = "tulip " * 74 + "antidisestablishmentarianism"
    assert parts(text)["longclip"] == "antidisestablishmentarianism"


def test_text_from_outside_never_becomes_markup():
    nasty = '<script>alert(1)</script> <img src=x onerror="alert(2)"> 🌷 ' * 40
    lost = describe_prompt(nasty, TOKENIZER).readings["CLIP"].lost
    for made in (
        markup.token_bar(nasty, describe_prompt(nasty, TOKENIZER)),
        markup.note(lost, judge("Top first red tulip. <script>", Image.new("RGB", (64, 64))), "<script>"),
        markup.status(nasty),
    ):
        assert "<script" not in made and "<img" not in made
    assert "".join(parts(nasty.strip()).values()) == nasty.strip()


def test_weights_and_tags_are_told_as_they_were_read():
    text = "a (red <cat>:1.3), [dusty] <lora:wood:0.8> house"
    bar = markup.token_bar(text, describe_prompt(text, TOKENIZER))
    told = re.search(r'<p class="syntax">(.*?)</p>', bar)[1]
    assert told == (
        "Weighted: <q>red &lt;cat&gt;</q> × 1.3, <q>dusty</q> × 0.9091. Left out: <code>&lt;lora:wood:0.8&gt;</code>."
    )
    assert "syntax" not in markup.token_bar("a red cat", describe_prompt("a red cat", TOKENIZER))


def test_the_empty_bar_needs_no_tokenizer():
    assert "<b>0</b> tokens" in markup.empty_bar()


def test_a_render_of_the_scene_is_right_in_every_sentence_and_another_picture_is_not():
    caption = write_caption(np.random.default_rng(1), random_scene(np.random.default_rng(1), 16), tokens=300)
    verdicts = judge(caption.text, render(caption.scene))
    assert " ".join(verdict.sentence for verdict in verdicts) == caption.text
    assert sum(verdict.right is True for verdict in verdicts) == 16
    assert not any(verdict.right is False for verdict in verdicts)
    blank = judge(caption.text, Image.new("RGB", (64, 64)))
    assert sum(verdict.right is True for verdict in blank) < 3
    assert judge("A zebra in the rain.", render(caption.scene)) == []


def test_examples_have_about_the_sizes_that_their_buttons_say():
    for texts in (world_prompts(), prose_prompts()):
        for size, text in zip(SIZES, texts, strict=True):
            assert abs(describe_prompt(text, TOKENIZER).tokens - size) <= 0.1 * size
    assert all(parse_caption(text).claims for text in world_prompts())
