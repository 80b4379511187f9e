"""The command `describe`: a prompt's tokens, and the words that each encoder cannot see."""

import argparse
import time
from typing import Any

from .arguments import add_command, existing_file, read_prompt, read_text, weights


def register(subparsers: Any) -> None:
    """Add the command `describe`."""
    parser = add_command(
        subparsers,
        "describe",
        describe,
        "count a prompt's tokens and name the words that each encoder cannot see",
        "Count a prompt's tokens, and name the words that CLIP (77 tokens), Long-CLIP (248) and TULIP cannot see. "
        "Loads no model unless you name one with --encoder.",
        "tulip-diffusion describe --file docs/sample_prompt.txt --windows",
    )
    parser.add_argument("prompt", nargs="?", help="the prompt; '-' reads it from standard input")
    parser.add_argument("--file", type=existing_file, help="read the prompt from this text file instead")
    parser.add_argument("--windows", action="store_true", help="also print the 75-token windows it would be cut into")
    parser.add_argument("--clean", action="store_true", help="clean the text as open_clip does before counting")
    parser.add_argument(
        "--encoder",
        type=weights,
        help="also encode the prompt with this checkpoint file, folder or Hub id, to see that it runs",
    )


def describe(options: argparse.Namespace) -> None:
    """The command: print what each encoder sees of a prompt."""
    if (options.prompt is None) == (options.file is None):
        raise ValueError("describe takes a PROMPT or --file, one of the two.")
    prompt = read_text(options.file).strip() if options.file else read_prompt(options.prompt)

    from .prompt_description import describe_prompt
    from .prompt_tokens import tokenize_prompts
    from .tokenization import load_tokenizer

    tokenizer = load_tokenizer(clean=options.clean)
    description = describe_prompt(prompt, tokenizer)
    print(description)
    if options.windows:
        for number, window in enumerate(description.windows, start=1):
            print(f"\nwindow {number}: {window}")
    if options.encoder is not None:
        (tokens,) = tokenize_prompts([prompt], [tokenizer], "a1111")
        print(f"\n{encode([tokenizer.bos_token_id, *tokens.ids, tokenizer.eos_token_id], options.encoder)}")


def encode(ids: list[int], source: str) -> str:
    """Encode one text's ids and say what came out."""
    import torch

    from .models.checkpoints import load_text_encoder
    from .progress import hide_loading_bars

    hide_loading_bars()
    model = load_text_encoder(source)
    start = time.perf_counter()
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_hidden_states=True)
    return (
        f"{type(model).__name__}, {model.num_parameters():,} parameters, encoded it in "
        f"{time.perf_counter() - start:.1f} s: penultimate states {tuple(output.hidden_states[-2].shape)} for SDXL, "
        f"text_embeds {tuple(output.text_embeds.shape)} for retrieval"
    )
