"""The entry file of a Gradio Space: the demo with the embedded family, for anybody who comes by."""

from pathlib import Path

from tulip_diffusion.demo.server import serve
from tulip_diffusion.demo.studio import Studio
from tulip_diffusion.demo.weights import Weights

if __name__ == "__main__":
    serve(Studio(Weights(assets=Path(__file__).parent / "tulip_diffusion" / "assets")), host="0.0.0.0", port=7860)
