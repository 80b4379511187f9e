"""The command `share`: a folder that can be put on the Hub as it is, with a model card, or is put there."""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import HUB_ID, add_command, existing_file, new_folder, refuse, weights

if TYPE_CHECKING:
    from .model_card import Author

# Of a run's record, what is nobody's private matter: paths and the machine stay at home.
PUBLIC_FIELDS = ("stage", "figures", "logit_scale", "version", "commit")


def repository(text: str) -> str:
    return text if HUB_ID.fullmatch(text) else refuse(text, "a Hub id such as OWNER/NAME")


def licence(text: str) -> str:
    return text if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text) else refuse(text, "a licence such as mit or apache-2.0")


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "share",
        run,
        "write an encoder with a model card, ready for the Hub, or put it there",
        "Read a text encoder, such as training left it, and write a folder that others can use: weights, tokenizer, "
        "preprocessor, and a model card with licence, base model, data, teacher, trained length, limits, code for "
        "transformers and diffusers, and the figures of its run.json.",
        "tulip-diffusion share outputs/stage1 outputs/shared --license mit --picture outputs/compare.png",
        "tulip-diffusion share outputs/stage1 outputs/shared --license mit --push OWNER/NAME",
    )
    parser.add_argument("source", type=weights, help="training's output folder, a checkpoint file or a Hub id")
    parser.add_argument("dest", type=new_folder, help="folder to write; it must not exist, or be empty")
    parser.add_argument("--license", type=licence, required=True, help="as the Hub abbreviates it: mit, apache-2.0 …")
    parser.add_argument(
        "--base-model", type=repository, help="Hub id of the CLIP it was made from (default: the run's teacher)"
    )
    parser.add_argument("--language", nargs="+", default=["en"], help="of its captions, as codes")
    parser.add_argument(
        "--dataset", nargs="+", type=repository, default=[], help="Hub ids of its captions (default: the run's data)"
    )
    parser.add_argument("--picture", nargs="+", type=existing_file, default=[], help="pictures to show on the card")
    parser.add_argument("--title", help="of the card (default: the folder's name)")
    parser.add_argument(
        "--slot", choices=("text_encoder", "text_encoder_2"), help="of SDXL (default: what the run padded for)"
    )
    parser.add_argument("--push", type=repository, metavar="OWNER/NAME", help="also upload the folder to the Hub")


def run(options: argparse.Namespace) -> None:
    if options.dest.exists() and any(options.dest.iterdir()):
        raise FileExistsError(f"{options.dest} is not empty. Name a new folder.")

    from .model_card import Author
    from .progress import hide_loading_bars

    hide_loading_bars()
    names = [picture.name for picture in options.picture]
    if len({*names}) < len(names):
        raise ValueError("Two pictures have one name. Rename one of them.")
    author = Author(options.license, options.base_model, options.language, options.dataset, names)
    share_encoder(
        options.source,
        options.dest,
        author,
        pictures=options.picture,
        title=options.title,
        second_slot=None if options.slot is None else options.slot == "text_encoder_2",
        push_to=options.push,
    )
    print(f"{options.dest} can be shared as it is." if not options.push else f"Pushed to {options.push}.")


def share_encoder(
    source: str | Path,
    dest: str | Path,
    author: "Author",
    *,
    pictures: Sequence[Path] = (),
    title: str | None = None,
    second_slot: bool | None = None,
    push_to: str | None = None,
) -> None:
    """Write the encoder in `source` to the folder `dest`, with all that goes with it, whole or not at all.

    Weights as they are, tokenizer and preprocessor (those of `source` where it has its own), the image tower that
    training left beside it, a card as README.md, and of its run.json what is fit for the public. `push_to` uploads
    the folder to that Hub repository, which is made if need be.

    Raises:
        ValueError, OSError: as `load_text_encoder`; run.json is damaged; the Hub refuses.
    """
    from .files import replacing
    from .model_card import HERE, model_card
    from .models.checkpoints import load_text_encoder
    from .models.finelip import FOLDER as FINELIP_FOLDER

    encoder, folder = load_text_encoder(source, dtype=stored_dtype(source)), Path(source)
    record = read_run(folder)
    card = model_card(
        encoder.config.to_dict(),
        record and record | {"sources": without_folders(record["sources"])},
        author,
        title=title or Path(dest).resolve().name,
        repo=push_to or HERE,
        second_slot=second_slot,
        finelip=(folder / FINELIP_FOLDER).is_dir(),
    )
    with replacing(dest) as unfinished:
        encoder.save_pretrained(unfinished)
        write_tokenizer(folder, unfinished, encoder.config)
        write_preprocessor(folder, unfinished)
        for name in ("image_encoder", FINELIP_FOLDER):
            if (folder / name).is_dir():
                shutil.copytree(folder / name, unfinished / name)
        if record is not None:
            public = {name: record[name] for name in PUBLIC_FIELDS if name in record}
            (unfinished / "run.json").write_text(json.dumps(public, indent=2) + "\n", encoding="utf-8")
        for picture in pictures:
            shutil.copy(picture, unfinished / picture.name)
        card.save(unfinished / "README.md")
    if push_to is not None:
        push(Path(dest), push_to)


def stored_dtype(source: str | Path) -> Any:
    """The weights' own dtype, float32 where they have several or none is found at once."""
    import torch

    from .models.checkpoint_files import open_checkpoint

    dtypes = {w.dtype for w in open_checkpoint(source).weights.values() if isinstance(w, torch.Tensor)}
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    return floating.pop() if len(floating) == 1 else torch.float32


def read_run(folder: Path) -> dict[str, Any] | None:
    """What training wrote of its run; None where there is nothing.

    Raises:
        ValueError: it is damaged.
    """
    if not (folder / "run.json").is_file():
        return None
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        record["stage"], record["sources"], record["arguments"]  # what every run has
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'run.json'} is no record of a run: {error}") from error


def without_folders(sources: dict[str, Any]) -> dict[str, Any]:
    """Hub ids as they are; of files and folders on this machine their names alone."""
    from .model_card import hub_id

    return {name: value if hub_id(value) else Path(str(value)).name for name, value in sources.items() if value}


def write_tokenizer(source: Path, dest: Path, config: Any) -> None:
    from transformers import AutoTokenizer

    from .tokenization import tokenizer_of

    own = (source / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(source) if own else tokenizer_of(config)
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer, and its {config.vocab_size} words are not CLIP's. Put it there.")
    tokenizer.save_pretrained(dest)


def write_preprocessor(source: Path, dest: Path) -> None:
    """How pictures are prepared for the image tower: CLIP's way, at that tower's size where it lies beside."""
    from transformers import CLIPImageProcessor

    if (source / "preprocessor_config.json").is_file():
        shutil.copy(source / "preprocessor_config.json", dest)
        return
    tower, size = source / "image_encoder" / "config.json", 224
    if tower.is_file():
        size = json.loads(tower.read_text(encoding="utf-8")).get("image_size", size)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(dest)


def push(folder: Path, repo: str) -> None:
    """Upload all of `folder` to the model repository `repo`.

    Raises:
        OSError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A text encoder with its card")
    except HfHubHTTPError as error:
        raise OSError(f"The Hub refused {repo}: {error}. The folder {folder} is complete; push it later.") from error
