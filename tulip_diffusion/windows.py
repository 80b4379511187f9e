"""Where a long prompt is cut into windows."""

from collections.abc import Collection, Sequence
from itertools import pairwise

from .models.positions import CLIP_LENGTH

SENTENCE_ENDS, CLAUSE_ENDS = ".!?", ",;:"


def split_windows(
    tokens: Sequence[str], size: int | None = CLIP_LENGTH - 2, breaks: Collection[int] = ()
) -> list[range]:
    """Cut `tokens` (as the vocabulary spells them, BOS and EOS left out) into windows of at most `size`, None for any.

    A window ends before each of the token positions in `breaks`. What is longer than `size` is cut after its last
    sentence that fits; where a sentence does not fit, after its last clause, then after its last word. An empty prompt
    is one empty window.
    """
    edges = [0, *sorted(position for position in set(breaks) if 0 < position < len(tokens)), len(tokens)]
    return [window for part in pairwise(edges) for window in _split(tokens, range(*part), size or len(tokens) + 1)]


def _split(tokens: Sequence[str], part: range, size: int) -> list[range]:
    marks = [tokens[i].removesuffix("</w>")[-1:] for i in part]
    ends = (  # in order of preference, the positions at which a window may stop
        {i + 1 for i, mark in zip(part, marks, strict=True) if mark and mark in SENTENCE_ENDS},
        {i + 1 for i, mark in zip(part, marks, strict=True) if mark and mark in CLAUSE_ENDS},
        {i + 1 for i in part if tokens[i].endswith("</w>")},
    )
    windows, start = [], part.start
    while part.stop - start > size:
        reachable = range(start + size, start, -1)
        stop = next((i for kind in ends for i in reachable if i in kind), start + size)
        windows.append(range(start, stop))
        start = stop
    return [*windows, range(start, part.stop)]
