"""The command `demo`. Importing this is light: gradio and the models come with the run."""

import argparse
import importlib.util
from typing import Any

from tulip_diffusion import arguments
from tulip_diffusion.embedded import ASSETS
from tulip_diffusion.generate import add_also


def register(subparsers: Any) -> None:
    """Add the command `demo`."""
    parser = arguments.add_command(
        subparsers,
        "demo",
        run,
        "open the page that sets CLIP, Long-CLIP and TULIP side by side",
        "Open a page in which one prompt is drawn under CLIP, Long-CLIP and TULIP. Without --model the small embedded "
        "family draws, without a download.",
        "tulip-diffusion demo --port 8080",
        "tulip-diffusion demo --also PixArt-alpha/PixArt-XL-2-1024-MS",
    )
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demo`: what draws, and where the page is served."""
    parser.add_argument("--model", type=arguments.weights, help="SDXL weights: a folder, a Hub id or a single file")
    parser.add_argument(
        "--tulip",
        type=arguments.weights,
        help="with --model: TULIP encoder for the first slot, file, folder or Hub id",
    )
    parser.add_argument(
        "--longclip", type=arguments.weights, help="with --model: Long-CLIP encoder for the first slot, likewise"
    )
    parser.add_argument(
        "--finelip",
        nargs="?",
        const=True,
        type=arguments.weights,
        help="a column for FineLIP: the family's own, or with --model its encoder",
    )
    add_also(parser)
    parser.add_argument(
        "--assets",
        type=arguments.existing_folder,
        default=ASSETS,
        help="an embedded family trained by yourself (default: the package's)",
    )
    parser.add_argument(
        "--device", type=arguments.device, help="cpu, cuda, mps … (default: the best there is with --model, else cpu)"
    )
    parser.add_argument(
        "--host",
        type=arguments.filled,
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--port", type=arguments.whole(1, 65535), help="port (default: the first that is free from 7860 on)"
    )
    parser.add_argument(
        "--auth", type=name_and_password, metavar="USER:PASSWORD", help="ask for this name and password"
    )
    parser.add_argument("--mcp", action="store_true", help="offer the endpoints to language models, over MCP")
    parser.add_argument("--share", action="store_true", help="open a public link through gradio's servers")


def run(options: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises:
        ValueError: arguments that do not go together, or a missing extra.
    """
    auth = options.auth
    require("gradio", 'pip install ".[demo]"')
    if options.mcp:
        require("mcp", 'pip install "gradio[mcp]"')
    from .server import serve
    from .studio import Studio
    from .weights import Weights

    weights = Weights(
        options.model,
        options.tulip,
        options.longclip,
        options.assets,
        options.device,
        options.finelip,
        tuple(options.also),
    )
    serve(Studio(weights), options.host, options.port, auth, options.mcp, options.share)


def name_and_password(text: str) -> tuple[str, str]:
    """USER:PASSWORD as a pair; argparse's error where either is empty."""
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        arguments.refuse(text, "USER:PASSWORD, both not empty")
    return name, password


def require(module: str, command: str) -> None:
    """Raises ValueError, with the `command` that installs it, where a package is missing."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"The package {module} is missing. Install it with: {command}")
