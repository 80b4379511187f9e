"""The page's own HTML. Every text that came from outside is escaped here."""

from collections.abc import Mapping, Sequence
from html import escape

from tulip_diffusion.prompt_description import CONTEXTS, PromptDescription, Reading

from .references import Reference
from .verdicts import Verdict

KINDS = {
    "CLIP": "clip",
    "Long-CLIP": "longclip",
    "FineLIP": "finelip",
    "TULIP": "tulip",
}
LABEL = "What each encoder can see of the prompt"
RULER = 320  # tokens that the ruler shows at least


def token_bar(text: str, description: PromptDescription) -> str:
    """The counts, a ruler with marks at 77 and 248 tokens, and `text` in the colour of who still sees it."""
    tokens = len(description.pieces) and description.tokens  # of an empty prompt BOS and EOS are not worth a word
    clip, longclip = (description.readings[title] for title in ("CLIP", "Long-CLIP"))
    counts = []
    for title, reading in description.readings.items():
        seen = tokens if reading.limit is None else min(tokens, reading.limit)
        counts.append(f'<span class="count {KINDS[title]}"><b>{title}</b> reads {seen:,}</span>')
    summary = f'<span class="total"><b>{tokens:,}</b> tokens</span>{"".join(counts)}'
    if not tokens:
        return f'<section class="tokens" aria-label="{LABEL}"><p class="counts">{summary}</p></section>'
    words = f'<p class="words" tabindex="0">{coloured(text, len(clip.lost), len(longclip.lost))}</p>'
    words += syntax(description)
    return (
        f'<section class="tokens" aria-label="{LABEL}"><details open><summary class="counts">{summary}</summary>'
        f"{words}</details>{ruler(tokens)}</section>"
    )


def syntax(description: PromptDescription) -> str:
    """What was read as weights and as tags, where there are any."""
    weighted = ", ".join(f"<q>{escape(text)}</q> × {weight:.4g}" for text, weight in description.weights)
    tags = ", ".join(f"<code>{escape(tag)}</code>" for tag in description.tags)
    parts = [f"Weighted: {weighted}."] * bool(weighted) + [f"Left out: {tags}."] * bool(tags)
    return f'<p class="syntax">{" ".join(parts)}</p>' if parts else ""


def empty_bar() -> str:
    """The bar of an empty prompt, for which no tokenizer is needed."""
    readings = {title: Reading(limit, 0, "") for title, limit in CONTEXTS.items()}
    return token_bar("", PromptDescription((), ("",), readings))


def ruler(tokens: int) -> str:
    """The bar of a prompt of so many tokens, in three colours, with marks at 77 and 248."""
    scale = 100 / max(tokens, RULER)
    parts = (("clip", 0, 77), ("longclip", 77, 248), ("tulip", 248, tokens))
    bars = "".join(
        f'<i class="{kind}" style="left:{start * scale:.2f}%;width:{(min(end, tokens) - start) * scale:.2f}%"></i>'
        for kind, start, end in parts
        if tokens > start
    )
    marks = "".join(f'<u style="left:{limit * scale:.2f}%">{limit}</u>' for limit in (77, 248))
    return f'<div class="ruler" aria-hidden="true">{bars}{marks}</div>'


def coloured(text: str, beyond_clip: int, beyond_longclip: int) -> str:
    """`text` in up to three colours; the lengths are those of its ends that CLIP and Long-CLIP cannot see."""
    first, second = len(text) - beyond_clip, len(text) - beyond_longclip
    parts = [f'<span class="clip">{escape(text[:first])}</span>']
    if beyond_clip:
        parts.append(
            f'<b class="cut clip" title="CLIP sees nothing from here on">77</b>{span("longclip", text, first, second)}'
        )
    if beyond_longclip:
        parts.append(
            '<b class="cut longclip" title="Long-CLIP sees nothing from here on">248</b>'
            + span("tulip", text, second, len(text))
        )
    return "".join(parts)


def span(kind: str, text: str, start: int, stop: int) -> str:
    """`text[start:stop]`, escaped, in the colour of `kind`."""
    return f'<span class="{kind}">{escape(text[start:stop])}</span>'


def heading(title: str) -> str:
    """The title of an encoder's column."""
    return f'<h3 class="encoder {KINDS.get(title, "other")}">{escape(title)}</h3>'


def title(introduction: str, world: str) -> str:
    """The head of the page."""
    line = f"<p>{escape(introduction)} {escape(world)}</p>"
    return f"<h1>What does the text encoder see?</h1>{line}"


def guide(how: str, examples: Sequence[str]) -> str:
    """How to write for the small family's world, closed until wanted."""
    lines = "".join(f"<li><q>{escape(example)}</q></li>" for example in examples)
    return f"<details><summary>How to write for this world</summary><p>{escape(how)}</p><ul>{lines}</ul></details>"


def hint(sentence: str) -> str:
    """A sentence in small print."""
    return f'<p class="hint">{escape(sentence)}</p>'


def note(lost: str, verdicts: Sequence[Verdict] = (), score: str = "") -> str:
    """What stands under one picture: which sentences it shows correctly, and the words that its encoder missed."""
    parts = []
    if verdicts:
        marks = "".join(mark(verdict) for verdict in verdicts if verdict.right is not None)
        parts.append(f'<p class="score"><b>{escape(score)}</b></p><p class="marks" aria-hidden="true">{marks}</p>')
        lines = "".join(line(verdict) for verdict in verdicts)
        parts.append(f"<details><summary>Sentence by sentence</summary><ul>{lines}</ul></details>")
    if lost:
        words = len(lost.split())
        count = f"{words:,} word{'s' * (words != 1)}"
        parts.append(f'<div class="lost" tabindex="0"><b>Could not see {count}:</b> {escape(lost)}</div>')
    else:
        parts.append('<div class="lost none"><b>Saw every word.</b></div>')
    return f'<div class="note">{"".join(parts)}</div>'


def mark(verdict: Verdict) -> str:
    """✓ or ✗ for one sentence, which shows on hovering."""
    kind, sign = ("right", "✓") if verdict.right else ("wrong", "✗")
    return f'<span class="{kind}" title="{escape(verdict.sentence)}">{sign}</span>'


def line(verdict: Verdict) -> str:
    """One sentence of the prompt with its sign, as an item of a list."""
    kind, sign, word = {
        True: ("right", "✓", "right"),
        False: ("wrong", "✗", "wrong"),
        None: ("aside", "·", "nothing to show"),
    }[verdict.right]
    return f'<li><span class="{kind}" role="img" aria-label="{word}">{sign}</span> {escape(verdict.sentence)}</li>'


def status(sentence: str, problem: bool = False) -> str:
    """A sentence about the run; a `problem` is announced at once by screen readers."""
    kind, role = ("status problem", "alert") if problem else ("status", "status")
    return f'<p class="{kind}" role="{role}">{escape(sentence)}</p>'


def attention_chart(title: str, shares: Sequence[float], width: int, sentence: str) -> str:
    """Bars of attention, each over `width` tokens, on the ruler's scale; `sentence` says it in words."""
    highest = max(shares, default=0) or 1
    bars = "".join(
        f'<i class="{kind_at(index * width)}" style="height:{100 * share / highest:.1f}%" '
        f'title="tokens {index * width + 1}–{(index + 1) * width}: {share:.1%}"></i>'
        for index, share in enumerate(shares)
    )
    chart = f'<div class="bars" aria-hidden="true">{bars}</div><figcaption>{escape(sentence)}</figcaption>'
    return f'<figure class="attention">{heading(title)}{chart}</figure>'


def attended(title: str, picture: str, parts: Sequence[tuple[str, float | None]], most: float, sentence: str) -> str:
    """A picture (its address) and the prompt, each token shaded by its attention over `most`; None is no token."""
    words = "".join(escape(text) if weight is None else shaded(text, weight, most) for text, weight in parts)
    image = f'<img src="{picture}" alt="What {escape(title)} made of the prompt">'
    return (
        f'<figure class="attended">{heading(title)}{image}<p class="shaded" tabindex="0">{words}</p>'
        f"<figcaption>{escape(sentence)}</figcaption></figure>"
    )


def shaded(text: str, weight: float, most: float) -> str:
    """One token, the darker the nearer its `weight`, in even shares, is to `most`; 0 where it was not read.

    By the root, since a few full stops have most of it.
    """
    if weight == 0:
        return f'<span class="unread" title="not read">{escape(text)}</span>'
    share = f"{weight:.1f} times an even share"
    return f'<span class="read" style="--share:{(weight / most) ** 0.5:.2f}" title="{share}">{escape(text)}</span>'


def attribution(columns: Sequence[str], pixels: bool) -> str:
    """`columns` of [`attended`]; `pixels` keeps the edges of small pictures."""
    return (
        f'<div class="explain{" pixels" * pixels}"><h3>Which words the UNet looks at</h3>'
        "<p>The UNet’s attention on every token, mean over its layers, heads, pixels and steps. The darker, the more; "
        "all columns have one scale. What is struck through, an encoder does not read.</p>"
        f'<div class="charts">{"".join(columns)}</div></div>'
    )


def references(sentences: Sequence[str], found: Sequence[Reference]) -> str:
    """The prompt, in which a referring sentence frames the one that it needs, and what each encoder made of it."""
    if not found:
        return ""
    by_sentence = {reference.sentence: reference for reference in found}
    rules = "".join(
        f".refs:has([data-n='{r.sentence}']:is(:hover, :focus)) [data-n='{r.source}'] {{ outline: 2px solid; }}"
        for r in found
    )
    words = " ".join(told(number, text, by_sentence.get(number)) for number, text in enumerate(sentences))
    titles = tuple(found[0].resolved)
    cells = {
        f"{sentences[r.sentence]} → {sentences[r.source]} ({r.colour})": [
            "".join(map(sign, r.resolved[t])) for t in titles
        ]
        for r in found
    }
    caption = "Can the colour be read off the states at the sentence's end? First slot, second slot."
    return (
        f"<style>{rules}</style><h3>What refers to what</h3><p>Hover or focus an underlined sentence: the one that it "
        f'needs is framed.</p><p class="refs">{words}</p>{table(cells, titles, caption)}'
    )


def told(number: int, text: str, reference: Reference | None) -> str:
    """Sentence `number` of the prompt, focusable where it refers to another one."""
    if reference is None:
        return f'<span data-n="{number}">{escape(text)}</span>'
    return f'<span class="ref" tabindex="0" data-n="{number}">{escape(text)}</span>'


def sign(right: bool) -> str:
    """✓ or ✗."""
    return "✓" if right else "✗"


def kind_at(position: int) -> str:
    """Who still sees the token at `position`, as a CSS class."""
    return "clip" if position < 77 else "longclip" if position < 248 else "tulip"


def table(rows: Mapping[str, Sequence[str]], columns: Sequence[str], caption: str) -> str:
    """A table of figures; `rows` maps a row's title to its cells."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(title)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for title, cells in rows.items()
    )
    return (
        f'<table class="figures"><caption>{escape(caption)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
