"""The embedded family: how it is trained, loaded, drawn with and judged. Components are real, tiny and untrained."""

import argparse
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPModel

from tulip_diffusion import embedded, evaluate, generate
from tulip_diffusion.embedded import ENCODERS, load_embedded_pipeline
from tulip_diffusion.evaluation.details import (
    Detail,
    by_bin,
    changed,
    details,
    hits,
    share,
    summarize,
)
from tulip_diffusion.evaluation.prompts import prompts_of
from tulip_diffusion.evaluation.side_by_side import BEYOND, SEEN, Panel, colour_at, make_strip
from tulip_diffusion.models.checkpoints import load_clip
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection, from_clip
from tulip_diffusion.prompt_description import word_positions
from tulip_diffusion.scenes.dataset import SceneDataset, reference_caption
from tulip_diffusion.scenes.grammar import parse_caption, write_caption
from tulip_diffusion.scenes.guide import EXAMPLES
from tulip_diffusion.scenes.read_out import ReadOut, head_accuracies, sentence_targets
from tulip_diffusion.scenes.render import random_scene, render, render_array
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.training.cutting import tokenize_sentences
from tulip_diffusion.training.embedded import average, clip, export, unet, vae
from tulip_diffusion.training.embedded.steps import train
from tulip_diffusion.training.embedded.tokenizer import build_tokenizer
from tulip_diffusion.training.embedded.tulip import ReferenceCutter, needed_sentences

TEXT = "Top first red tulip. Bottom fourth, a key like the tulip. Lower second cup. It is pink."


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The folder that `load_embedded_pipeline` reads, written by the family's own scripts after one step each."""
    folder = tmp_path_factory.mktemp("family")
    vae.main(["--out", str(folder / "vae"), "--steps", "1", "--batch", "2"])
    for tower in ("l", "g"):
        clip.main([tower, "--out", str(folder / f"clip-{tower}"), "--steps", "1", "--batch", "4"])
        teacher = CLIPModel.from_pretrained(folder / f"clip-{tower}")
        from_clip(teacher).save_pretrained(folder / f"tulip-{tower}")
    unet.build_unet((32, 32)).save_pretrained(folder / "unet")
    export.main(["--folder", str(folder), "--out", str(folder / "assets")])
    return folder


def test_the_reduced_tokenizer_segments_the_world_as_clips_own_does_and_any_other_word_into_bytes():
    reduced, real = build_tokenizer(max_length=500), load_tokenizer(max_length=500)
    for seed in range(10):
        text = write_caption(
            np.random.default_rng(seed), random_scene(np.random.default_rng(seed), 16), tokens=300
        ).text
        assert reduced.tokenize(text) == real.tokenize(text)
    for text in ("A zebra, naïvely: 東京!", "owner's"):
        ids = reduced(text).input_ids
        assert reduced.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")
    assert len(reduced) < 1000 and reduced.eos_token_id == len(reduced) - 1


def test_sentence_targets_leave_out_what_a_sentence_does_not_tell():
    caption = parse_caption(TEXT)
    where, what = sentence_targets([caption])
    assert where[:, 1].tolist() == [end - 1 for _, end in caption.token_spans]
    assert what[1].tolist() == [15, 9, 0]  # the key in the last place, red as the tulip
    assert what[2, 2] == -100 and what[3, 2] != -100  # the cup's colour is only known with "It is pink."


def test_heads_that_were_fitted_to_the_states_read_them_without_a_mistake():
    captions = [reference_caption(np.random.default_rng(seed)) for seed in range(2)]
    where, what = sentence_targets(captions)
    heads = ReadOut(34)
    states = torch.zeros(2, max(caption.tokens for caption in captions), 34)
    answers = [torch.nn.functional.one_hot(t.clamp(0), n) for t, n in zip(what.unbind(1), (16, 10, 8), strict=True)]
    states[where[:, 0], where[:, 1]] = torch.cat(answers, dim=1).float()
    for head, start, answers in ((heads.place, 0, 16), (heads.kind, 16, 10), (heads.colour, 26, 8)):
        head.weight.data.zero_()
        head.weight.data[:answers, start : start + answers] = torch.eye(answers)
        head.bias.data.zero_()
    assert set(head_accuracies(heads, states, captions).values()) == {1.0}


def test_training_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path):
    interrupted_at = []

    def loss_of(model, step):
        if step in interrupted_at:
            raise KeyboardInterrupt
        return model(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().mean()

    def run(folder, steps):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        train(model, int, lambda step: loss_of(model, step), folder, steps, 1e-2, save_every=1)
        return model.weight

    whole = run(tmp_path / "whole", 6)
    interrupted_at.append(3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", 6)
    interrupted_at.clear()
    assert torch.allclose(run(tmp_path / "broken", 6), whole, atol=1e-6)


def test_what_a_sentence_needs_is_all_that_it_refers_to_through_other_references():
    text = (
        "Top first red tulip. Top second key like the tulip. Top third cat like the key. Top fourth cup. It is pink."
    )
    assert needed_sentences(parse_caption(text)) == [{0}, {0, 1}, {0, 1, 2}, {3}, {3, 4}]


def test_the_teacher_is_never_asked_about_a_reference_that_it_cannot_follow():
    tokenizer = build_tokenizer(max_length=1000)
    cutter = ReferenceCutter(tokenizer, length=520, sub_captions="none")
    for seed in range(10):
        caption = reference_caption(np.random.default_rng(seed))
        needed = needed_sentences(caption)
        starts = {start: index for index, start in enumerate(tokenize_sentences(caption.text, tokenizer, 518).starts)}
        covered = set()
        for sub in cutter(caption.text, seed).sub_captions:
            text = tokenizer.decode(sub.input_ids, skip_special_tokens=True)
            inside = {i for i, s in enumerate(caption.sentences) if squeeze(s.text) in squeeze(text)}
            for piece in sub.pieces:
                assert needed[starts[piece.place]] <= inside
                covered.add(starts[piece.place])
        fitting = {i for i, need in enumerate(needed) if sum(length(caption, n) for n in need) <= 75}
        assert covered >= fitting


def test_captions_that_are_not_plain_are_asked_for_what_refers_alone():
    tokenizer = build_tokenizer(max_length=1000)
    cutters = [ReferenceCutter(tokenizer, length=520, sub_captions="none", plain=plain) for plain in (1.0, 0.0)]
    for seed in range(4):
        caption = reference_caption(np.random.default_rng(seed))
        needed = needed_sentences(caption)
        starts = tokenize_sentences(caption.text, tokenizer, 518).starts
        plain, referring = (
            {starts.index(piece.place) for sub in cutter(caption.text, seed).sub_captions for piece in sub.pieces}
            for cutter in cutters
        )
        near = cutters[0].near_sentences(tokenize_sentences(caption.text, tokenizer, 518))
        assert referring == {i for i in plain if i < near or needed[i] > {i}} < plain


def test_the_mean_of_before_and_after_holds_both_towers_and_the_temperature(family, tmp_path):
    before, clip_folder, after = family / "tulip-g", family / "clip-g", tmp_path / "after"
    text, image = TulipTextModelWithProjection.from_pretrained(before), export.image_tower(clip_folder)
    for model, folder in ((text, after), (image, after / "image_encoder")):
        for weight in model.parameters():
            weight.data += 1.0
        model.save_pretrained(folder)
    build_tokenizer(max_length=77).save_pretrained(after)
    (after / "run.json").write_text(json.dumps({"logit_scale": 2.0, "figures": {"loss": 0.1}}))
    words = ["--share", "0.75", "--clip", str(clip_folder), "--out", str(tmp_path / "mean")]
    average.main([str(before), str(after), *words])
    mean, whole = load_clip(tmp_path / "mean"), CLIPModel.from_pretrained(clip_folder)
    assert mean.logit_scale == 2.0 and "figures" not in json.loads((tmp_path / "mean" / "run.json").read_text())
    for name, weight in mean.text_encoder.state_dict().items():
        torch.testing.assert_close(weight, text.state_dict()[name] - 0.25)
    moved = dict(mean.image_encoder.named_parameters())
    for name, weight in moved.items():
        torch.testing.assert_close(weight.data, whole.state_dict()[name] + 0.75)


def squeeze(text: str) -> str:
    return "".join(text.lower().split())


def length(caption, index: int) -> int:
    start, end = caption.token_spans[index]
    return end - start


def test_every_encoder_of_the_family_draws_any_prompt_and_an_unknown_one_is_refused(family):
    for encoder in ("clip", "tulip", "tulip-l"):
        pipeline = load_embedded_pipeline(encoder, family / "assets")
        pipeline.set_progress_bar_config(disable=True)
        for prompt in ("A zebra in the rain.", TEXT * 8):
            picture = pipeline(prompt, num_inference_steps=1).images[0]
            assert picture.size == (64, 64)
    with pytest.raises(ValueError, match="tulip-paper"):
        load_embedded_pipeline("bert", family / "assets")
    with pytest.raises(FileNotFoundError, match=r"embedded\.sh"):
        load_embedded_pipeline("longclip", family / "assets")


def test_the_pipelines_clip_states_are_those_that_the_unet_was_trained_on(family):
    captions = [caption.text for caption in SceneDataset(3, "validation").batch(0, 3)[1]]
    encoder = unet.Encoder(family)
    states, pooled = encoder.text(encoder.tokenize(captions))
    embeds, _, pooled_embeds, _ = load_embedded_pipeline("clip", family / "assets").encode_prompt(captions)
    assert embeds.shape == states.shape
    assert (embeds - states).abs().max() < 0.05 and (pooled_embeds - pooled).abs().max() < 0.05  # half precision


def test_latents_are_normalised_with_what_the_vaes_config_says(family):
    autoencoder = AutoencoderKL.from_pretrained(family / "vae")
    latents = unet.Encoder(family).latents(vae.picture_batch(5, 64, step=0))
    assert len(autoencoder.config.latents_mean) == 4
    assert latents.mean().abs() < 0.3 and (latents.std() - 1).abs() < 0.3


def test_perfect_pictures_are_all_right_and_pictures_of_other_prompts_are_not():
    captions = prompts_of("full", 6)
    pictures = np.stack([render_array(caption.scene) for caption in captions])
    summary = summarize(details(pictures, captions))
    assert summary["all"].mean == 1.0 and {s.mean for s in summary["position"].values()} == {1.0}
    others = summarize(details(np.roll(pictures, 1, axis=0), captions))
    assert others["all"].mean < 0.1


def test_pictures_that_differ_in_one_place_of_sixteen_are_one_sixteenth_changed():
    pictures = np.stack([render_array(caption.scene) for caption in prompts_of("full", 3)])
    other = pictures.copy()
    other[:, :16, :16] = np.roll(other[:, :16, :16], 1, axis=0)
    assert changed(pictures, pictures) == {"places": 0.0, "pixels": 0.0}
    assert changed(pictures, other)["places"] == pytest.approx(1 / 16)


def test_a_detail_counts_in_the_bin_of_the_token_that_completes_it():
    found = [Detail(0, position, "thing", None, position <= 77, True) for position in (10, 77, 78, 154, 155)]
    shares = by_bin(found, (0, 77, 154, 231), lambda detail: detail.position)
    assert {name: (s.mean, s.values) for name, s in shares.items()} == {
        "0-77": (1.0, 2),
        "77-154": (0.0, 2),
        "154-231": (0.0, 1),
    }


def test_intervals_are_wide_where_a_prompts_details_stand_and_fall_together():
    together = [Detail(n, 1, "thing", None, n % 2 == 0, True) for n in range(20) for _ in range(16)]
    apart = [Detail(n, 1, "thing", None, i % 2 == 0, True) for n in range(20) for i in range(16)]
    wide, narrow = share(together), share(apart)
    assert wide.mean == narrow.mean == 0.5
    assert wide.high - wide.low > 0.3 and narrow.high - narrow.low < 0.05


def test_short_prompts_fit_clips_window_and_references_are_measured_by_distance():
    assert all(caption.tokens <= 77 for caption in prompts_of("short", 20))
    captions = prompts_of("references", 4)
    pictures = np.stack([render_array(caption.scene) for caption in captions])
    found = details(pictures, captions)
    figures = summarize(found)
    assert figures["distance"] and figures["far references"].mean == 1.0
    far = sum((claim.distance or 0) > 77 for caption in captions for claim in caption.claims)
    assert figures["far references"].values == far > 0


def test_the_evaluation_command_writes_figures_a_plot_and_a_contact_sheet(family, tmp_path):
    parser = argparse.ArgumentParser()
    evaluate.register(parser.add_subparsers())
    line = f"generation --assets {family / 'assets'} --out {tmp_path} --encoders clip tulip --count 2 --steps 1"
    options = parser.parse_args([*line.split(), "--attention-scale", "none", "log"])
    options.run(options)
    results = json.loads((tmp_path / "generation.json").read_text())["results"]
    assert list(results) == [f"{e} attention_scale={s}" for e in ("clip", "tulip") for s in ("none", "log")]
    assert (tmp_path / "position.png").exists() and (tmp_path / "contact_sheet.png").exists()


def test_the_reading_command_reads_both_slots_and_nothing_beyond_what_an_encoder_saw(family, tmp_path):
    parser = argparse.ArgumentParser()
    evaluate.register(parser.add_subparsers())
    line = f"reading --assets {family / 'assets'} --out {tmp_path} --encoders clip tulip --count 2"
    options = parser.parse_args(line.split())
    options.run(options)
    results = json.loads((tmp_path / "reading.json").read_text())["results"]
    assert list(results) == ["clip l", "clip g", "tulip l", "tulip g"]
    assert results["clip l"]["colour by position"]["77-154"]["mean"] == 0.0


@pytest.fixture
def command(family):
    parser = argparse.ArgumentParser()
    generate.register(parser.add_subparsers())
    return lambda *line: parser.parse_args([*map(str, line), "--assets", str(family / "assets"), "--steps", "1"])


def test_generate_draws_every_line_of_a_file_and_keeps_what_is_there(command, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("Top first red tulip.\n\nA zebra.\n")
    out = tmp_path / "picture.png"
    options = command("generate", "--file", tmp_path / "prompts.txt", "--out", out, "--seed", 2**64 - 1)
    options.run(options)
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in pictures] == ["picture-1.png", "picture-2.png"]
    assert all(Image.open(path).size == (64, 64) for path in pictures)
    first, second = (Image.open(path).text for path in pictures)
    assert (first["prompt"], first["seed"], first["encoder"]) == ("Top first red tulip.", str(2**64 - 1), "tulip")
    assert (second["prompt"], second["seed"], second["steps"]) == ("A zebra.", "0", "1")
    with pytest.raises(FileExistsError, match="--overwrite"):
        options.run(options)


def test_generate_asks_for_a_prompt_or_a_file_but_not_both(command, tmp_path):
    (tmp_path / "prompts.txt").write_text("a prompt")
    for line in (("generate",), ("generate", "a prompt", "--file", tmp_path / "prompts.txt")):
        options = command(*line)
        with pytest.raises(ValueError, match="either a prompt or --file"):
            options.run(options)


def test_zero_guidance_means_zero_and_jpegs_carry_their_settings(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn = {}
    for guidance in (0, 0, 3):
        options = command("generate", "Top first red tulip. ü", "--guidance", guidance)
        options.run(options)
        drawn[capsys.readouterr().out.strip()] = guidance
    assert list(drawn) == ["outputs/picture.png", "outputs/picture-2.png", "outputs/picture-3.png"]
    first, second, third = (Image.open(path) for path in drawn)
    assert first.tobytes() == second.tobytes() != third.tobytes()
    assert [picture.text["guidance"] for picture in (first, second, third)] == ["0.0", "0.0", "3.0"]
    options = command("generate", "Top first red tulip. ü", "--out", tmp_path / "x.JPG")
    options.run(options)
    picture = Image.open(tmp_path / "x.JPG")
    assert picture.format == "JPEG" and json.loads(picture.info["comment"])["prompt"] == "Top first red tulip. ü"
    assert capsys.readouterr().err.count("\n") == 1  # what it does, and no bars where nobody watches


def test_compare_writes_a_strip_with_the_share_of_details_under_each_picture(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate, "COMPARED", {"clip": "CLIP", "tulip": "TULIP"})
    options = command("compare", TEXT, "--out", tmp_path / "strip.png")
    options.run(options)
    printed = capsys.readouterr().out
    assert "CLIP: " in printed and "of 3 details right" in printed
    assert Image.open(tmp_path / "strip.png").width > 2 * 384


def test_the_example_prompt_is_longer_than_248_tokens_and_belongs_to_the_world():
    caption = parse_caption(generate.example_prompt())
    assert 248 < caption.tokens <= 300 and len(caption.claims) == 16


def test_one_line_says_which_prompts_are_beyond_the_familys_world(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate, "COMPARED", {"clip": "CLIP", "tulip": "TULIP"})
    (tmp_path / "prompts.txt").write_text("A harbour.\nTop first red tulip.\nA zebra.\n")
    for line, start in (
        (("generate", "A small harbour town"), "This prompt names nothing that the small family can draw. "),
        (("compare", "red tulip"), "This prompt names nothing that the small family can draw. "),
        (("generate", "--file", tmp_path / "prompts.txt"), "2 of 3 prompts name nothing that the small"),
        (("generate", "Top first red tulip."), ""),
        (("compare", TEXT), ""),
    ):
        options = command(*line, "--out", tmp_path / "out.png", "--overwrite")
        options.run(options)
        first, *more = capsys.readouterr().err.splitlines()
        assert first.startswith("Drawing ") and len(more) == bool(start)
        assert all(told.startswith(start) and "--model" in told and EXAMPLES[0] in told for told in more)


def test_pictures_are_judged_against_the_prompt_and_foreign_prompts_are_not():
    caption = write_caption(np.random.default_rng(0), random_scene(np.random.default_rng(0), 4))
    assert hits(caption.text, render(caption.scene)) == "4 of 4 details right (100%)"
    assert hits("A zebra in the rain.", render(caption.scene)) == ""


def test_words_are_coloured_by_the_last_of_their_tokens():
    tokenizer = build_tokenizer(max_length=1000)
    words = word_positions("red zebra " + "tulip " * 300, tokenizer)
    assert words[0] == ("red", 1) and words[1] == ("zebra", 6)
    assert (colour_at(75), colour_at(76), colour_at(246), colour_at(247)) == (SEEN[77], SEEN[248], SEEN[248], BEYOND)
    strip = make_strip([Panel(Image.new("RGB", (64, 64)), "CLIP", "note")] * 3, words)
    colours = {colour for _, colour in strip.getcolors(1_000_000)}
    assert {SEEN[77], SEEN[248], BEYOND} <= colours


def test_encoders_that_load_are_those_that_the_documentation_names():
    assert next(iter(ENCODERS)) == "tulip" and "clip" in ENCODERS and embedded.ASSETS.name == "assets"
