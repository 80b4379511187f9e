"""What every stage can be told: dataclasses that the command line turns into flags.

`Sources` names files and is for the command line alone; the stages themselves take models and captions as objects.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tulip_diffusion.arguments import Range, without_none

RANGES = {  # of the stages' numbers, by their name
    **dict.fromkeys(
        (
            "steps",
            "batch_size",
            "chunk_size",
            "chunk_tokens",
            "save_every",
            "keep_last",
            "log_every",
            "subset_draws",
            "components",
            "shuffle_rows",
        ),
        Range(1),
    ),
    **dict.fromkeys(("epochs", "adam_epsilon", "slot_ratio"), Range(0, above=True)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "ema_decay", "label_smoothing"), Range(0, 1, below=True)),
    **dict.fromkeys(("max_bad_share",), Range(0, 1)),
    "length": Range(3),
    "seed": Range(0, 2**32 - 1),
}
NOT_NEGATIVE = Range(0)  # all the others


def check_fields(options: Any) -> None:
    """Every number in its range, every choice among its values.

    Raises:
        ValueError: one is not.
    """
    hints = get_type_hints(type(options))
    for one in fields(options):
        value, hint = getattr(options, one.name), without_none(hints[one.name])
        if value is None:
            continue
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{one.name} must be one of {', '.join(get_args(hint))}, got {value!r}.")
        allowed = RANGES.get(one.name, NOT_NEGATIVE)
        if hint is int and (not isinstance(value, int) or value not in allowed):
            raise ValueError(f"{one.name} must be a whole number, {allowed}, got {value}.")
        if hint is float and value not in allowed:
            raise ValueError(f"{one.name} must be a number, {allowed}, got {value}.")


def option(default, text: str):
    """A field with its default and its help."""
    return field(default=default, metadata={"help": text})


@dataclass(kw_only=True)
class Sources:
    """Where a stage's models and captions come from."""

    teacher: str = field(metadata={"help": "CLIP model to learn from: a folder, a file or a Hub id."})
    hidden_act: Literal["gelu", "quick_gelu"] | None = option(
        None, "Activation of a teacher file that does not say it; OpenAI's weights have quick_gelu."
    )
    student: str | None = option(None, "Text encoder to go on from, for instance stage 1's output folder.")
    data: str = field(
        metadata={
            "help": "Captions: a .json, .jsonl, .csv, .tsv, .txt, .tar or .parquet file, a folder, a Hub id; "
            "URLs with --stream."
        }
    )
    data_format: Literal["auto", "sharegpt4v", "json", "csv", "jsonl", "txt", "webdataset", "folder", "datasets"] = (
        option("auto", "How --data is written; auto goes by its name.")
    )
    data_split: str = option("train", "Split to read where --data is a Hugging Face data set, or JSON with splits.")
    image_root: str | None = option(None, "Folder that image paths are relative to; the data file's own by default.")
    stream: bool = option(
        False, "Read --data shard by shard as it comes, from here or from URLs, and list nothing; needs --steps."
    )
    shuffle_rows: int = option(1000, "Neighbouring rows of a stream that are held in memory and shuffled.")
    max_bad_share: float = option(0.05, "Share of rows that may be unusable before the run stops, 0 to 1.")
    tokenizer: str | None = option(None, "Tokenizer folder; CLIP's own vocabulary by default.")

    def __post_init__(self):
        check_fields(self)


@dataclass(kw_only=True)
class LoopArguments:
    """What the training loop needs, whichever stage it runs."""

    output_dir: str = field(metadata={"help": "Folder for the encoder, its checkpoints and its figures."})
    steps: int | None = option(None, "Optimiser steps to take; overrides --epochs.")
    epochs: float = option(1.0, "Passes over the captions, where --steps is not given.")
    batch_size: int = option(640, "Captions per optimiser step, over all processes together.")
    chunk_size: int | None = option(
        None, "Captions that one process runs through the model at once; the result is that of the whole batch."
    )
    chunk_tokens: int | None = option(
        None,
        "Tokens, padding included, that one process runs through the model at once; captions are sorted by length.",
    )
    learning_rate: float = option(5e-4, "Peak learning rate of AdamW.")
    weight_decay: float = option(0.1, "AdamW's weight decay, on matrices only.")
    adam_beta1: float = option(0.9, "AdamW's first moment decay.")
    adam_beta2: float = option(0.98, "AdamW's second moment decay.")
    adam_epsilon: float = option(1e-6, "AdamW's epsilon.")
    warmup_steps: int = option(1000, "Steps of linear warm-up before the cosine decay to 0.")
    max_grad_norm: float = option(1.0, "Norm that gradients are clipped to; 0 does not clip.")
    ema_decay: float = option(0.0, "Decay of a moving average of the weights, which is then what is saved; 0 is off.")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = option(
        "no", "Autocast precision; the weights stay in float32. auto measures which is fastest here."
    )
    attn: Literal["auto", "sdpa", "eager"] = option(
        "sdpa", "Attention back end. auto measures: in bf16 on a CPU eager can be faster."
    )
    compile: bool = option(
        False, "Compile the towers with torch.compile: the first steps take minutes, later ones less."
    )
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass, to save memory.")
    seed: int = option(0, "Decides the order of the data and every random choice.")
    num_workers: int = option(2, "Processes that read and tokenize data, for each training process.")
    save_every: int = option(1000, "Steps between checkpoints.")
    keep_last: int = option(2, "Checkpoints to keep.")
    resume: str = option("none", "'auto' goes on from the newest checkpoint, a folder from that one; 'none' does not.")
    log_every: int = option(1, "Steps between lines of metrics.jsonl.")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = option("none", "Experiment tracker.")

    def __post_init__(self):
        check_fields(self)


def refuse_with_stream(arguments: LoopArguments) -> None:
    """Refuse what only listed data can do. Raises ValueError."""
    if arguments.steps is None:
        raise ValueError("A stream has no length, so that there are no epochs to count: give --steps.")
    cache = getattr(arguments, "teacher_cache", "off")
    if cache not in ("auto", "off"):
        raise ValueError(
            f"The teacher cache {cache} finds captions by their numbers, which a stream's have not: leave it out."
        )


@dataclass(kw_only=True)
class CaptionArguments:
    """How captions are cut for student and teacher."""

    length: int = option(248, "Tokens of a caption that the student reads at most, BOS and EOS included.")
    pad: Literal["eos", "zero"] = option(
        "eos", "Padding of short texts: eos as SDXL's first encoder, zero as its second."
    )
    sub_captions: Literal["subsets", "windows", "both"] = option(
        "subsets", "What the teacher reads of the part beyond its window: random sentences, or neighbouring ones."
    )
    subset_choice: Literal["random", "most-moving"] = option(
        "random", "Which subset supervises a sentence: a random one, or that which moves its states most."
    )
    subset_draws: int = option(4, "Different cuts of one caption that successive epochs go through.")


@dataclass(kw_only=True)
class DistillArguments(LoopArguments, CaptionArguments):
    """Stage 1, relative position distillation."""

    chunk_tokens: int | None = option(
        8192,
        "Tokens, padding included, that one process runs through the model at once; captions are sorted by length.",
    )
    teacher_subfolder: Literal["text_encoder", "text_encoder_2"] | None = option(
        None, "Which text encoder of a teacher that has both, an SDXL folder or single file; the first by default."
    )
    objective: Literal["default", "paper"] = option(
        "default", "default also matches the penultimate token states that SDXL reads; paper the pooled state alone."
    )
    match: Literal["penultimate", "last"] = option(
        "penultimate",
        "Token states of the default objective: before the last layer, as SDXL reads them, or after it and the final "
        "norm, as Stable Diffusion 1.5 does.",
    )
    pooled_loss: Literal["cosine", "l2", "mse"] = option("cosine", "Distance between pooled states.")
    hidden_weight: float = option(1.0, "Weight of the per-token term of the default objective.")
    long_pooled_weight: float = option(
        1.0, "Weight of long texts' pooled states, held to the mean of their sub-captions'; default objective alone."
    )
    position_gaps: int = option(
        0,
        "Positions that random gaps at sentence starts spread a long text over, for lengths beyond --length.",
    )
    position_encoding: Literal["rope", "cope"] = option("rope", "Positions of a new student.")
    attention_scaling: Literal["none", "log"] | None = option(
        None,
        "Attention scaling that the encoder is saved with; it is always taught without. By default log for a new RoPE "
        "student of the default objective, none for other new ones, and what its config says for a --student.",
    )
    freeze_token_embedding: bool = option(True, "Keep the teacher's token table, and textual inversions valid.")
    teacher_cache: str = option(
        "auto", "Folder for the teacher's outputs, computed once; 'auto' is in the output folder, 'off' recomputes."
    )
    teacher_cache_dtype: Literal["float16", "bfloat16"] = option("float16", "Precision of cached outputs.")


@dataclass(kw_only=True)
class ContrastiveArguments(LoopArguments):
    """What the contrastive stages share."""

    learning_rate: float = option(1e-5, "Peak learning rate of AdamW.")
    batch_size: int = option(1280, "Image-caption pairs per optimiser step, over all processes together.")
    train: Literal["both", "text", "image"] = option("both", "Towers to train.")
    label_smoothing: float = option(0.0, "Label smoothing of the contrastive loss.")


@dataclass(kw_only=True)
class ExpandArguments(ContrastiveArguments, CaptionArguments):
    """Stage 2, relative position expansion."""

    short_weight: float = option(0.2, "Weight lambda of the short captions' loss; the long ones' is 1 - lambda.")
    short_captions: Literal["first-sentence", "random-subset"] = option(
        "first-sentence", "Short captions: the text before the first '.', or random sentences without the first."
    )
    pair_loss: Literal["softmax", "sigmoid"] = option(
        "softmax", "CLIP's contrastive loss, or SigLIP's, which judges every pair of the batch by itself."
    )
    hard_negative_margin: float = option(0.0, "Margin gamma by which similar texts count as harder negatives.")
    freeze_token_states: bool = option(
        False,
        "Train of the text tower its last layer, final norm and projection alone, so that the token states that SDXL "
        "reads stay the same bits.",
    )
    anchor_weight: float = option(1.0, "Weight of stage 1's per-token term, which keeps what SDXL reads; 0 is off.")
    pooled_anchor_weight: float = option(
        0.0, "Weight of stage 1's pooled terms, of short and of long texts, which keep what SDXL reads; 0 is off."
    )
    ntk_alpha: float = option(
        8.0, "alpha of the NTK-aware RoPE; 0 keeps the rotations of a student that stage 1 took to this length."
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.short_weight <= 1:
            raise ValueError(f"short_weight must be a number from 0 to 1, got {self.short_weight}.")
        if self.pair_loss == "sigmoid" and (self.hard_negative_margin or self.label_smoothing):
            raise ValueError("hard_negative_margin and label_smoothing are of the softmax loss; leave them at 0 here.")
        if self.freeze_token_states and self.train == "image":
            raise ValueError("freeze_token_states is about the text tower, which train='image' leaves as it is.")


@dataclass(kw_only=True)
class FinetuneArguments(ContrastiveArguments):
    """Fine-tuned CLIP: the plain baseline at 77 tokens, or the strong one with stretched positions."""

    stretch: bool = option(False, "Stretch the position table four times, so that 248 tokens fit.")


@dataclass(kw_only=True)
class LongCLIPArguments(ContrastiveArguments):
    """Long-CLIP: stretched positions, and short captions matched with images' primary components."""

    learning_rate: float = option(1e-6, "Peak learning rate of AdamW.")
    weight_decay: float = option(0.01, "AdamW's weight decay, on matrices only.")
    warmup_steps: int = option(200, "Steps of linear warm-up before the cosine decay to 0.")
    batch_size: int = option(2048, "Image-caption pairs per optimiser step, over all processes together.")
    label_smoothing: float = option(0.1, "Label smoothing of the contrastive loss.")
    components: int = option(32, "Principal components that short captions' images are rebuilt from.")
    short_weight: float = option(1.0, "Weight of the short captions' loss.")


@dataclass(kw_only=True)
class FineLIPArguments(ContrastiveArguments, CaptionArguments):
    """FineLIP: refined tokens of image and text, aligned token to token, under a triplet loss."""

    learning_rate: float = option(1e-6, "Peak learning rate of the towers.")
    refinement_learning_rate: float = option(2e-4, "Peak learning rate of the refinement modules.")
    weight_decay: float = option(0.01, "AdamW's weight decay, on matrices only.")
    warmup_steps: int = option(200, "Steps of linear warm-up before the cosine decay to 0.")
    epochs: float = option(6.0, "Passes over the captions, where --steps is not given.")
    batch_size: int = option(256, "Image-caption pairs per optimiser step, over all processes together.")
    score: Literal["late-interaction", "refined", "global"] = option(
        "late-interaction", "What the loss compares: token by token, the mean refined token, or the global token."
    )
    margin: float = option(0.2, "How far a pair's score must lie above a negative's.")
    negatives: Literal["sum", "hardest"] = option("sum", "Sum over all negatives, or the hardest alone.")
    slot_ratio: float = option(0.2, "Slots per image patch: 39 for B/16, 51 for L/14.")
    initial_scale: float = option(
        10.0, "Factor on the refinement's logits at the start; 1, as published, lets the slots collapse into one."
    )
    slot_penalty: float = option(1.0, "Weight of the slots' mean squared cosine, which keeps them apart; 0 is off.")
    global_weight: float = option(0.0, "Weight of CLIP's contrastive loss of the global tokens, beside the triplets.")
    anchor_weight: float = option(0.0, "Weight of stage 1's per-token term, which keeps what SDXL reads; 0 is off.")
