"""docs/training.md, run from top to bottom: its commands and its Python, with tiny models under the names it uses."""

import argparse
import json

from diffusers import StableDiffusionXLPipeline
from PIL import Image

from tests.documents import blocks, commands
from tests.pipelines.tiny_sdxl import components
from tulip_diffusion.training.commands import register

from .conftest import make_caption, sdxl_single_file

QUICK = "--steps 2 --batch-size 4 --chunk-size 2 --warmup-steps 1 --num-workers 0 --mixed-precision no"


def test_the_page_makes_an_encoder_that_a_pipeline_takes(tmp_path, load_towers, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_towers()
    sdxl_single_file(tmp_path / "checkpoint.safetensors")
    (tmp_path / "images").mkdir()
    captions = [make_caption(number, 3 + number) for number in range(8)]
    with open("captions.jsonl", "w") as file:
        for number, caption in enumerate(captions):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(f"images/{number}.png")
            file.write(json.dumps({"caption": caption, "image": f"{number}.png"}) + "\n")
    StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline)).save_pretrained("sdxl")
    names = {
        "openai/clip-vit-large-patch14": "clip",
        "path/to/clip": "clip",
        "https://example.org/captions/part-{000..099}.jsonl.gz": "captions.jsonl",
        "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
        "steps=100": "steps=2, num_workers=0",
    }

    def tiny(text: str) -> str:
        for name, replacement in names.items():
            text = text.replace(name, replacement)
        return text

    for command in commands("training.md"):
        if command[0] == "train" and "…" not in command:
            parser = argparse.ArgumentParser()
            register(parser.add_subparsers())
            options = parser.parse_args([*map(tiny, command), *QUICK.split()])
            options.run(options)
    namespace = {"captions": captions}
    exec(compile(tiny("\n".join(blocks("training.md", "python"))), "docs/training.md", "exec"), namespace)
    assert namespace["pipe"].text_encoder is namespace["text_encoder"]
    assert (tmp_path / "outputs" / "stage2" / "image_encoder" / "model.safetensors").exists()
