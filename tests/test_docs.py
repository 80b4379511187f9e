"""Every code block of README and docs runs, and every command in them is one; real weights are tiny folders here.

docs/pipelines.md and docs/training.md, which need more models, are run in tests/pipelines and tests/training.
"""

import argparse
import re

import pytest
import torch
from PIL import Image

from tests.documents import PAGES, ROOT, blocks, code, commands
from tulip_diffusion import export_open_clip, from_clip, load_text_encoder
from tulip_diffusion.cli import build_parser, main

ELSEWHERE = {"pipelines.md", "training.md"}
TINY = {'"path/to/tulip"': '"tulip"', "torch.float16": "torch.float32", '"cuda"': '"cpu"'}


@pytest.fixture
def folder(tmp_path, clip, monkeypatch):
    """A working folder with a tiny CLIP and TULIP in it."""
    clip.save_pretrained(tmp_path / "clip")
    from_clip(clip).save_pretrained(tmp_path / "tulip")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(program: str, page: str) -> dict:
    namespace: dict = {}
    exec(compile(program, page, "exec"), namespace)
    return namespace


def test_the_readmes_code_runs(folder):
    from diffusers import StableDiffusionXLPipeline

    from tests.pipelines.tiny_sdxl import components, tulip_encoder

    StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline)).save_pretrained("sdxl")
    tulip_encoder(0).save_pretrained("tulip")
    (folder / "docs").symlink_to(ROOT / "docs")
    assert blocks("README.md", "python")[0].startswith("from tulip_diffusion import load_embedded_pipeline\n")
    replacements = {
        "num_inference_steps=25": "num_inference_steps=2",
        "pipe(prompt).images": "pipe(prompt, num_inference_steps=2, height=64, width=64).images",
        '"stabilityai/stable-diffusion-xl-base-1.0"': '"sdxl"',
        **TINY,
    }
    # The last block wants an encoder with a projection, as retrieval does.
    *pipelines, encoder = code("README.md", replacements).split("from tulip_diffusion import load_text_encoder")
    run(pipelines[0], "README.md")
    assert Image.open("cabinet.png").size == (64, 64) and Image.open("harbour.png").size == (64, 64)
    from_clip(load_text_encoder("clip")).save_pretrained("tulip")
    namespace = run(f"from tulip_diffusion import load_text_encoder{encoder}", "README.md")
    assert namespace["output"].text_embeds.shape == (1, 32)


def test_the_encoder_pages_code_runs(folder):
    namespace = run(code("encoder.md", {'"path/to/clip"': '"clip"', '"path/to/tulip"': '"tulip"'}), "encoder.md")
    assert type(namespace["tulip"]).__name__ == "TulipTextModelWithProjection"


def test_the_encoder_pages_conversions_run(folder, clip, make_clip):
    stretched = make_clip(max_position_embeddings=248)
    state = export_open_clip(stretched)
    state["positional_embedding_res"] = state["positional_embedding"].clone()
    torch.save(state, "longclip-L.pt")
    torch.save({"state_dict": export_open_clip(from_clip(clip))}, "stage2.pt")
    for command in commands("encoder.md"):
        assert main(command) == 0, command
    assert (folder / "longclip-L" / "model.safetensors").exists() and (folder / "tulip-L.safetensors").exists()


def test_the_evaluation_and_finelip_pages_figures_run():
    for page in ("evaluation.md", "finelip.md"):
        for block in blocks(page, "python"):
            if "recall_at_k" in block:
                run(block, page)


def test_the_readmes_describe_command_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (describe,) = (line for line in commands("README.md") if line[0] == "describe")
    assert main(describe) == 0
    assert "cannot see" in capsys.readouterr().out


def test_the_readmes_pictures_are_drawn_as_often_as_one_likes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    compare, generate = (line for line in commands("README.md") if line[0] in ("compare", "generate"))
    for command in (compare, compare, generate):
        assert main([*command, "--steps", "1"]) == 0
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert written == {"outputs/compare.png", "outputs/compare-2.png", "tulip.png"}
    assert "CLIP: " in capsys.readouterr().out


@pytest.mark.parametrize("page", ["conditioning.md", "evaluation.md"])
def test_evaluations_on_a_page_run_at_their_smallest(page, tmp_path, monkeypatch):
    """But for `all`, which runs each of them, `report`, which tells of them, and `prompts`, which reads others' sets.

    All three have tests of their own.
    """
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands(page) if line[1] not in ("all", "report", "prompts")]
    assert lines
    for line in lines:
        drawing = ["--steps", "1"] if line[1] in ("generation", "attribution") else []
        count = [] if line[1] == "attribution" else ["--count", "1"]  # of one prompt
        assert main([*line, *count, *drawing]) == 0, line


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_is_one(page, tmp_path, monkeypatch):
    """Each is read by the real parser, its files being there."""
    monkeypatch.chdir(tmp_path)
    for name in ("longclip-L.pt", "stage2.pt", "TULIP.pt", "tulip_stage2.pt", "checkpoint.safetensors"):
        (tmp_path / name).write_text("a prompt")
    for name in ("docs", "tulip-L", "outputs/evaluation"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "docs" / "sample_prompt.txt").write_text("a prompt")
    for command in commands(page):
        if "…" not in command:
            assert isinstance(build_parser().parse_args(command), argparse.Namespace)


@pytest.mark.parametrize("page", PAGES)
def test_pages_promise_no_package_index_and_no_deprecated_argument(page):
    text = PAGES[page].read_text(encoding="utf-8")
    assert not re.search(r"pip install [\"']?tulip-diffusion", text)
    assert "torch_dtype" not in text


def test_lines_of_the_readme_are_wrapped():
    assert max(map(len, PAGES["README.md"].read_text(encoding="utf-8").splitlines())) <= 119
