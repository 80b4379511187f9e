"""docs/pipelines.md, run from top to bottom, with tiny models under the names that it uses."""

import pytest
from diffusers import StableDiffusionXLPipeline

from tests.documents import blocks
from tests.pipelines.tiny_sdxl import components, picture, tulip_encoder, words
from tulip_diffusion import (
    StableDiffusionXLTulipAdapterPipeline,
    StableDiffusionXLTulipControlNetPipeline,
    StableDiffusionXLTulipControlNetUnionPipeline,
    TulipTextModelWithProjection,
)

FOLDERS = {
    "stabilityai/stable-diffusion-xl-base-1.0": lambda: StableDiffusionXLPipeline(
        **components(StableDiffusionXLPipeline)
    ),
    "path/to/tulip-bigG": lambda: tulip_encoder(1, TulipTextModelWithProjection),
    "path/to/tulip": lambda: tulip_encoder(0, TulipTextModelWithProjection),
    "diffusers/controlnet-canny-sdxl-1.0": lambda: part_of(StableDiffusionXLTulipControlNetPipeline, "controlnet"),
    "xinsir/controlnet-union-sdxl-1.0": lambda: part_of(StableDiffusionXLTulipControlNetUnionPipeline, "controlnet"),
    "TencentARC/t2i-adapter-canny-sdxl-1.0": lambda: part_of(StableDiffusionXLTulipAdapterPipeline, "adapter"),
}


def part_of(pipeline_class, name):
    return components(pipeline_class)[name]


@pytest.fixture
def code(tmp_path, monkeypatch) -> str:
    """The page's Python, its names led to tiny folders, its 50 steps cut to 4, on the CPU in float32."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("pipelines.md", "python"))
    for number, (name, make) in enumerate(FOLDERS.items()):
        make().save_pretrained(tmp_path / str(number))
        code = code.replace(f'"{name}"', repr(str(tmp_path / str(number))))
    (tmp_path / "prompt.txt").write_text(words(160))
    for name in ("picture.png", "mask.png", "edges.png"):
        picture(1, 16).save(tmp_path / name)
    code = code.replace(").images[0]", ", num_inference_steps=4).images[0]")
    code = code.replace("num_inference_steps=25", "num_inference_steps=2")
    return code.replace("torch.float16", "torch.float32").replace('"cuda"', '"cpu"')


def test_every_snippet_runs(code):
    exec(compile(code, "docs/pipelines.md", "exec"), {})
