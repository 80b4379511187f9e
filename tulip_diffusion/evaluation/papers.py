"""R@1 in per cent as printed in papers, image-to-text and text-to-image, to stand beside figures measured here.

TULIP (arXiv 2410.10034) with its CLIP baseline and CoPE variant, FineLIP (2504.01916), and the highest figures that we
know of. None where a paper prints one direction alone.
"""

PUBLISHED: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "coco": {
        "CLIP L/14": (56.1, 35.4),
        "TULIP B/16": (56.8, 40.7),
        "TULIP L/14": (62.6, 46.1),
    },
    "flickr30k": {
        "CLIP L/14": (48.5, 28.0),
        "TULIP B/16": (46.1, 35.2),
        "TULIP L/14": (56.7, 41.6),
    },
    "sharegpt4v-1k": {
        "CLIP L/14": (81.8, 84.0),
        "TULIP B/16": (98.6, 98.6),
        "TULIP L/14": (99.0, 99.0),
        "TULIP CoPE L/14": (98.5, 97.8),
        "highest known": (99.2, 99.4),
    },
    "urban-1k": {
        "CLIP L/14": (68.7, 52.8),
        "TULIP B/16": (88.1, 86.6),
        "TULIP L/14": (90.1, 91.1),
        "TULIP CoPE L/14": (86.7, 82.8),
        "FineLIP B/16": (90.7, 89.3),
        "FineLIP L/14": (93.2, 93.0),
        "DeBias-CLIP L/14": (95.2, 95.2),
        "LLM2CLIP-60M": (94.6, 95.9),
    },
    "long-dci": {
        "CLIP L/14": (35.0, 37.0),
        "TULIP B/16": (50.2, 50.6),
        "TULIP L/14": (55.7, 56.4),
        "TULIP CoPE L/14": (50.8, 49.9),
        "FineLIP L/14": (60.8, 60.7),
        "HiMo-CLIP": (62.2, None),
        "HyFL-CLIP": (None, 63.9),
    },
    "docci": {"highest known of CLIP's size": (85.2, 85.6)},
}
