"""Folders load by name after nothing but `import tulip_diffusion`, whichever library is imported first."""

import subprocess
import sys

import pytest

ORDERS = {
    "ours first": "import tulip_diffusion\nimport diffusers, transformers",
    "theirs first": "import diffusers.pipelines.pipeline_utils, transformers.models.auto\nimport tulip_diffusion",
    "the AutoPipelines first": "from diffusers import AutoPipelineForText2Image\nimport tulip_diffusion",
}
PROGRAM = """
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
import diffusers, sys

pipeline, encoder = sys.argv[1], sys.argv[1] + "/text_encoder"
print(AutoConfig.from_pretrained(encoder).model_type)
for auto in (AutoModel, AutoModelForTextEncoding):
    print(type(auto.from_pretrained(encoder)).__name__)
for auto in (DiffusionPipeline, AutoPipelineForText2Image, AutoPipelineForImage2Image, AutoPipelineForInpainting):
    print(type(auto.from_pretrained(pipeline)).__name__)
stock = StableDiffusionXLPipeline.from_pretrained(pipeline)
print(type(stock).__name__, type(stock.text_encoder).__name__, type(stock.text_encoder_2).__name__)
print(diffusers.StableDiffusionXLTulipControlNetPipeline.__module__)
assert not hasattr(diffusers, "StableDiffusionXLTulip") and not hasattr(diffusers, "TulipTextModel")
"""
EXPECTED = """\
tulip_text_model
TulipTextModel
TulipTextModel
StableDiffusionXLTulipPipeline
StableDiffusionXLTulipPipeline
StableDiffusionXLTulipImg2ImgPipeline
StableDiffusionXLTulipInpaintPipeline
StableDiffusionXLPipeline TulipTextModel TulipTextModelWithProjection
tulip_diffusion.pipelines.tasks
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tulip_diffusion import load_embedded_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    load_embedded_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("order", ORDERS)
def test_saved_folders_load_by_name(order, folder):
    command = [sys.executable, "-W", "ignore", "-c", ORDERS[order] + PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, EXPECTED), done.stderr
