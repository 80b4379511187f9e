"""Ablations end to end: two steps of every stage on a tiny tower."""

import argparse
import json

import numpy as np
import pytest
import torch

from tulip_diffusion.data import CaptionData
from tulip_diffusion.evaluation.encoders import Encoder
from tulip_diffusion.scenes.grammar import parse_caption
from tulip_diffusion.scenes.render import render
from tulip_diffusion.training.ablations import method
from tulip_diffusion.training.ablations.commands import METHOD, register
from tulip_diffusion.training.ablations.method import STAGE2, Ablation, file_name, run, stage2_name
from tulip_diffusion.training.ablations.pairs import held_out, training_pairs
from tulip_diffusion.training.ablations.variants import ABLATIONS, COPE, PAPER, both
from tulip_diffusion.training.config import DistillArguments, ExpandArguments


@pytest.fixture
def read_clip(load_towers, tokenizer):
    return lambda: Encoder("clip", load_towers()._replace(logit_scale=None), tokenizer)


@pytest.fixture
def options(tmp_path):
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())

    def parse(name, *more):
        small = "--stage1-steps 2 --stage2-steps 2 --batch 4 --captions 8 --count 4"
        line = f"ablate {name} {small} --work {tmp_path / 'work'}"
        namespace = parser.parse_args([*line.split(), "--out", str(tmp_path / name), *more])
        namespace.assets = "tiny"
        return namespace

    return parse


def test_every_ablation_has_its_command_and_refuses_senseless_numbers(options, capsys):
    assert METHOD.keys() == ABLATIONS.keys()
    for name in METHOD:
        assert options(name).name == name
    for flags, message in (
        (["--stage1-rate", "0"], "above 0"),
        (["--batch", "0"], "1 or more"),
        (["--split", "x"], "x"),
    ):
        with pytest.raises(SystemExit):
            options("loss", *flags)
        assert message in capsys.readouterr().err


def test_every_variant_of_every_ablation_is_one_that_the_stages_accept():
    for name, variants in ABLATIONS.items():
        assert len({file_name(variant) for variant in variants}) == len(variants), name
        assert any(variant.stage2 is None for variant in variants), f"{name} has no row of stage 1 only"
        for variant in variants:
            DistillArguments(output_dir="x", **variant.stage1)
            ExpandArguments(output_dir="x", **(variant.stage2 or {}))


def test_ablations_share_the_rows_they_have_in_common_and_no_others():
    by_name: dict[str, set[str]] = {}
    for ablation, variants in ABLATIONS.items():
        for variant in variants:
            if variant.stage2 is not None:
                by_name.setdefault(stage2_name(variant), set()).add(f"{ablation}: {variant.name}")
    shared = {frozenset(rows) for rows in by_name.values() if len(rows) > 1}
    usual = {"positions: RoPE", "loss: cosine", "lambda: 0.2", "ntk: alpha 8", "short: first sentence"}
    assert shared == {frozenset(usual), frozenset({"lambda: 0", "short: none"})}
    trained = [variant for variants in ABLATIONS.values() for variant in variants if variant.stage2 is not None]
    different = {repr((v.stage1, sorted(settings_of(v).items()), v.rotations)) for v in trained}
    assert len(different) == len(by_name)


def settings_of(variant):
    """What stage 2 runs with, defaults filled in by the stage itself."""
    return vars(ExpandArguments(**{"output_dir": "x", **STAGE2, **variant.stage2}))


def test_training_pairs_show_what_they_say_and_none_of_them_is_judged():
    pairs = training_pairs(12, seed=0)
    assert isinstance(pairs, CaptionData)
    for number in range(12):
        scene = pairs.images[number]
        if all(claim.role == "thing" for claim in parse_caption(pairs.captions[number]).claims):
            assert np.array_equal(np.asarray(pairs.image(number)), np.asarray(render(scene)))
            assert parse_caption(pairs.captions[number]).scene.things == scene.things
    judged = {caption.text for captions in held_out(4, "evaluation").values() for caption in captions}
    assert not judged & set(pairs.captions)


def test_an_ablation_trains_judges_writes_and_is_not_run_twice(options, read_clip, monkeypatch, capsys):
    short = {"positions": (*both("RoPE", PAPER), *both("CoPE", COPE))}
    monkeypatch.setattr(method, "ABLATIONS", short)
    chosen = options("positions")
    run(chosen, read_clip)
    first = json.loads((chosen.out / "ablation.json").read_text())["results"]
    assert list(first) == ["CLIP", "RoPE, stage 1 only", "RoPE", "CoPE, stage 1 only", "CoPE"]
    assert first["CLIP"]["fidelity"]["penultimate_error"] == pytest.approx(0, abs=1e-6)
    assert first["RoPE"] != first["RoPE, stage 1 only"] != first["CoPE, stage 1 only"]
    assert "| CoPE, stage 1 only |" in capsys.readouterr().out and (chosen.out / "ablation.png").exists()

    monkeypatch.setattr(Ablation, "train", None)  # a variant whose result is there needs no training
    run(options("positions"), read_clip)
    assert json.loads((chosen.out / "ablation.json").read_text())["results"] == first
    with pytest.raises(ValueError, match="made with stage1_steps 2, and now it is 3"):
        run(options("positions", "--stage1-steps", "3"), read_clip)


def test_rotations_of_the_ntk_rows_are_what_they_are_called(options, read_clip):
    chosen = options("ntk")
    ablation = Ablation(chosen, read_clip)
    rope = {
        variant.name: ablation.train(variant).towers.text_encoder.config.rope_parameters
        for variant in ABLATIONS["ntk"]
        if variant.name not in ("alpha 1", "alpha 2", "alpha 4", "alpha 16")
    }
    assert rope["plain, stage 1 only"]["rope_type"] == rope["plain"]["rope_type"] == "default"
    for name in ("alpha 8, stage 1 only", "alpha 8"):
        assert (rope[name]["rope_type"], rope[name]["alpha"], rope[name]["length"]) == ("ntk", 8.0, 248)
    assert rope["alpha 8, each text's own length"]["length"] == 77


def test_stage_1_is_shared_and_text_length_leaves_the_image_tower_alone(options, read_clip):
    chosen = options("length")
    ablation = Ablation(chosen, read_clip)
    variant = next(variant for variant in ABLATIONS["length"] if variant.name == "154")
    trained, before = ablation.train(variant).towers, read_clip().towers
    for one, other in zip(trained.image_encoder.parameters(), before.image_encoder.parameters(), strict=True):
        assert torch.equal(one, other)
    written = (chosen.work / "stage1-paper" / "run.json").stat().st_mtime_ns
    ablation.stage1(ABLATIONS["lambda"][0])
    assert (chosen.work / "stage1-paper" / "run.json").stat().st_mtime_ns == written
