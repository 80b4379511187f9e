"""`tulip-diffusion`: the command line. Each command is a thin door to a function of the library."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CLIP_VOCABULARY = 49408
VIT_L_14 = {  # SDXL's first text encoder
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for wrong input (one line on stderr), 130 when interrupted."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{parser.prog} {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    from tulip_diffusion import __version__, evaluate, generate
    from tulip_diffusion.demo import commands as demo
    from tulip_diffusion.training import commands as training

    parser = argparse.ArgumentParser(
        prog="tulip-diffusion",
        description="Prompts of 248 tokens and more for Stable Diffusion XL.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate.register(commands)
    _register_describe(commands)
    _register_convert(commands)
    training.register(commands)
    demo.register(commands)
    evaluations = commands.add_parser("evaluate", help="measure what pictures and states say of prompts")
    evaluate.register(evaluations.add_subparsers(dest="evaluation", required=True, metavar="EVALUATION"))
    return parser


def _register_describe(commands) -> None:
    parser = commands.add_parser(
        "describe",
        help="count a prompt's tokens and name the words that each encoder cannot see",
        description="Count a prompt's tokens, and name the words that CLIP (77 tokens), Long-CLIP (248) and TULIP "
        "cannot see. Loads no model unless you name one with --encoder.",
    )
    parser.add_argument("prompt", nargs="?", help="the prompt; '-' reads it from standard input")
    parser.add_argument("--file", type=Path, help="read the prompt from this text file instead")
    parser.add_argument("--windows", action="store_true", help="also print the 75-token windows it would be cut into")
    parser.add_argument("--clean", action="store_true", help="clean the text as open_clip does before counting")
    parser.add_argument(
        "--encoder",
        help="also encode the prompt with this checkpoint file, folder or Hub id; 'untrained' makes a TULIP encoder "
        "of CLIP ViT-L/14's size with random weights, to see that it runs",
    )
    parser.set_defaults(run=describe)


def describe(options: argparse.Namespace) -> None:
    from tulip_diffusion import load_tokenizer
    from tulip_diffusion.windows import describe_prompt

    if (options.prompt is None) == (options.file is None):
        raise ValueError("describe takes a PROMPT or --file, one of the two.")
    if options.file is not None:
        prompt = options.file.read_text(encoding="utf-8")
    else:
        prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    tokenizer = load_tokenizer(clean=options.clean)
    description = describe_prompt(prompt, tokenizer)
    print(description)
    if options.windows:
        for number, window in enumerate(description.windows, start=1):
            print(f"\nwindow {number}: {window}")
    if options.encoder is not None:
        print(f"\n{_encode(tokenizer(prompt, return_tensors='pt', verbose=False).input_ids, options.encoder)}")


def _encode(input_ids, source: str) -> str:
    """Encode (1, tokens) ids and say what came out."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from tulip_diffusion import from_clip, load_text_encoder

    if source == "untrained":
        encoder = from_clip(CLIPTextModelWithProjection(CLIPTextConfig(**VIT_L_14)).eval())
    else:
        encoder = load_text_encoder(source)
    start = time.perf_counter()
    with torch.no_grad():
        output = encoder(input_ids, output_hidden_states=True)
    return (
        f"{type(encoder).__name__}, {encoder.num_parameters():,} parameters, encoded it in "
        f"{time.perf_counter() - start:.1f} s: penultimate states {tuple(output.hidden_states[-2].shape)} for SDXL, "
        f"text_embeds {tuple(output.text_embeds.shape)} for retrieval"
    )


def _register_convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn any CLIP, TULIP, Long-CLIP or FineLIP checkpoint into a transformers folder, or open_clip's keys",
        description="Read a text encoder from a checkpoint file, a folder or a Hub id, and write a transformers "
        "folder (with tokenizer, for CLIP's vocabulary), or a file under open_clip's keys where DEST ends in .pt or "
        ".safetensors. Whole CLIPs keep their image tower in open_clip's layout.",
    )
    parser.add_argument("source", help="checkpoint file, transformers folder, pipeline folder, or Hub id")
    parser.add_argument("dest", type=Path, help="folder, or file ending in .pt or .safetensors")
    parser.add_argument("--layout", default="auto", help="layout of SOURCE (default: auto, by its keys)")
    parser.add_argument("--subfolder", help="of an SDXL folder or single file: text_encoder or text_encoder_2")
    parser.add_argument("--rope", choices=("released", "paper"), help="what TULIP's files forgot to store")
    parser.add_argument("--hidden-act", choices=("gelu", "quick_gelu"), help="activation, where the file is silent")
    parser.add_argument("--heads", type=int, help="attention heads (default: width / 64)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the weights"
    )
    parser.add_argument("--to-tulip", action="store_true", help="swap a CLIP's positions for rotary ones, untrained")
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")
    parser.set_defaults(run=convert)


def convert(options: argparse.Namespace) -> None:
    import torch

    from tulip_diffusion import from_clip, load_clip, load_text_encoder

    if options.dest.exists() and not options.overwrite:
        raise ValueError(f"{options.dest} exists. Pass --overwrite to replace it.")
    config = {"hidden_act": options.hidden_act, "num_attention_heads": options.heads}
    config = {field: value for field, value in config.items() if value is not None}
    dtype = getattr(torch, options.dtype)
    to_file = options.dest.suffix in (".pt", ".safetensors")
    image_encoder = logit_scale = None
    if to_file and options.subfolder is None:
        towers = load_clip(options.source, options.layout, rope=options.rope, dtype=dtype, **config)
        text_encoder, image_encoder, logit_scale = towers
    else:
        text_encoder = load_text_encoder(
            options.source, options.layout, subfolder=options.subfolder, rope=options.rope, dtype=dtype, **config
        )
    if options.to_tulip:
        text_encoder = from_clip(text_encoder)
    if to_file:
        _write_open_clip(options.dest, text_encoder, image_encoder, logit_scale)
    else:
        _write_folder(options.dest, text_encoder)
    print(f"{type(text_encoder).__name__} of {text_encoder.num_parameters():,} parameters written to {options.dest}")


def _write_folder(folder: Path, text_encoder) -> None:
    from tulip_diffusion import load_tokenizer

    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    text_encoder.save_pretrained(unfinished)
    if text_encoder.config.vocab_size == CLIP_VOCABULARY:
        load_tokenizer(max(text_encoder.config.max_position_embeddings, 77)).save_pretrained(unfinished)
    if folder.is_dir():
        shutil.rmtree(folder)
    elif folder.exists():
        folder.unlink()
    os.replace(unfinished, folder)


def _write_open_clip(file: Path, text_encoder, image_encoder, logit_scale: float | None) -> None:
    import torch
    from safetensors.torch import save_file

    from tulip_diffusion import export_open_clip

    state = export_open_clip(text_encoder, image_encoder, logit_scale)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.unfinished")
    if file.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, unfinished)
    else:
        torch.save(state, unfinished)
    os.replace(unfinished, file)


if __name__ == "__main__":
    sys.exit(main())
