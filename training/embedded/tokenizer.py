"""CLIP's real tokenizer, cut down to the words of the world: any other word falls into bytes, none is unknown."""

import itertools
import re

from transformers import CLIPTokenizer

from tulip_diffusion.scenes.wording import ASIDES, REMARKS, TEMPLATES, WORDS
from tulip_diffusion.tokenization import BOS, EOS, clip_vocabulary

BYTES = 512  # the first tokens of CLIP's vocabulary: every byte, inside a word and at its end


def world_words() -> list[str]:
    """All the words that texts of the world are made of, in lower case."""
    templates = [text for wordings in TEMPLATES.values() for texts in wordings.values() for text in texts]
    texts = [*templates, *REMARKS, *ASIDES, *(word for words in WORDS.values() for word in words), "an"]
    return sorted(set(re.findall(r"'s|[a-z]+", " ".join(re.sub(r"\{\w+\}", "", text) for text in texts).lower())))


def merges_of(word: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding uses to build `word` out of its letters."""
    parts, used = [*word[:-1], word[-1] + "</w>"], []
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        used.append(best)
        index = pairs.index(best)
        parts[index : index + 2] = ["".join(best)]
    return used


def build_tokenizer(max_length: int = 77, pad_token: str = EOS) -> CLIPTokenizer:
    """Segments the world's text as CLIP's own tokenizer does, with some 700 ids in place of 49,408."""
    vocabulary, merges = clip_vocabulary()
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    kept = sorted({merge for word in world_words() for merge in merges_of(word, ranks)}, key=ranks.__getitem__)
    tokens = [*list(vocabulary)[:BYTES], *("".join(merge) for merge in kept), BOS, EOS]
    ids = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(ids, kept, pad_token=pad_token, model_max_length=max_length)
