"""How the page looks: system fonts (nothing is fetched), one accent, and three colours that mean something."""

from typing import Any

import gradio as gr

SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")


RASPBERRY = gr.themes.Color(
    c50="#fdf2f6", c100="#fbe6ee", c200="#f6c9da", c300="#ee9dbb", c400="#e0648f", c500="#c93a73", c600="#b0205a",
    c700="#8f1848", c800="#74173d", c900="#621736", c950="#3a081d",
)  # fmt: skip


def theme() -> Any:
    """Gradio's Soft theme in the page's colours, light and dark."""
    return gr.themes.Soft(primary_hue=RASPBERRY, neutral_hue=gr.themes.colors.stone, font=SYSTEM, font_mono=MONO).set(
        body_background_fill="#faf8f4",
        body_background_fill_dark="#171412",
        body_text_color_subdued="#57534e",
        body_text_color_subdued_dark="#a8a29e",
        layout_gap="8px",
        block_border_width="1px",
        block_shadow="none",
        input_border_width="1px",
        input_border_color="#d6d3d1",
        input_border_color_dark="#57534e",
        checkbox_border_color="#a8a29e",
        checkbox_border_color_dark="#78716c",
        input_shadow="none",
        button_secondary_border_color="#d6d3d1",
        button_secondary_border_color_dark="#44403c",
        button_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
    )


CSS = """
.gradio-container {
  --clip: #475569; --clip-wash: #47556922;
  --finelip: #0f766e;
  --longclip: #b45309; --longclip-wash: #f59e0b33;
  --tulip: #b0205a; --tulip-wash: #ec489933;
  --shade: #f0a35e;
  --right: #15803d; --wrong: #b91c1c;
  width: 100% !important; max-width: 1240px !important; margin: 0 auto !important;
}
.dark .gradio-container, .gradio-container.dark {
  --clip: #b6c2d2; --clip-wash: #94a3b82b;
  --finelip: #5eead4;
  --longclip: #fbbf24; --longclip-wash: #f59e0b3d;
  --tulip: #f9a8d4; --tulip-wash: #ec489945;
  --shade: #a8480b;
  --right: #4ade80; --wrong: #f87171;
}
.gradio-container main { padding-top: 8px !important; }
#title h1 { font-size: 1.5rem; letter-spacing: -0.02em; margin: 0 0 0.1rem; }
#title p { margin: 0; color: var(--body-text-color-subdued); }
#asking { align-items: flex-end; }
#asking .buttons { min-width: 180px !important; gap: 8px; align-self: center; }
#prompt { padding: 0; border: 0; }
#prompt textarea { font-size: 1.02rem; line-height: 1.5; }
#helpers, #takings { gap: 8px; align-items: center; }
#helpers button { white-space: nowrap; padding: 4px 6px; }
#guide summary { cursor: pointer; }
#guide q, #guide p { color: var(--body-text-color-subdued); }

.clip { color: var(--clip); } .longclip { color: var(--longclip); } .tulip { color: var(--tulip); }
.tokens { padding: 2px 2px 0; }
.tokens summary { cursor: pointer; }
.tokens summary::before { content: "▸"; color: var(--body-text-color-subdued); }
.tokens [open] summary::before { content: "▾"; }
.tokens .counts { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 4px; font-variant-numeric: tabular-nums; }
.tokens .total { margin-right: auto; }
.ruler { position: relative; height: 8px; margin: 6px 0 16px; border-radius: 4px;
  background: var(--border-color-primary); }
.ruler i { position: absolute; top: 0; bottom: 0; background: currentColor; transition: width 0.15s; }
.ruler i:first-child { border-radius: 4px 0 0 4px; }
.ruler u { position: absolute; top: -3px; height: 14px; border-left: 2px solid var(--body-text-color);
  text-decoration: none; font-size: 0.7rem; line-height: 1; padding: 15px 0 0; text-indent: -0.8em; }
.words { max-height: 8.5em; overflow-y: auto; margin: 0; line-height: 1.7; overflow-wrap: anywhere;
  white-space: pre-wrap; }
.words.empty { color: var(--body-text-color-subdued); }
.words span { padding: 2px 0; border-radius: 3px; }
.words .clip { background: var(--clip-wash); color: var(--body-text-color); }
.words .longclip { background: var(--longclip-wash); color: var(--body-text-color); }
.words .tulip { background: var(--tulip-wash); color: var(--body-text-color); }
.words .cut { display: inline-block; margin: 0 5px; padding: 0 6px; border-radius: 8px; font-size: 0.72rem;
  line-height: 1.5; color: var(--background-fill-primary); }
.words .cut.clip { background: var(--clip); color: var(--background-fill-primary); }
.words .cut.longclip { background: var(--longclip); color: var(--background-fill-primary); }

.hint { margin: 4px 2px; padding: 6px 10px; border-left: 3px solid var(--longclip); border-radius: 0 6px 6px 0;
  background: var(--background-fill-secondary); }
.tab-container button.selected, label[data-testid="block-label"] { color: var(--body-text-color) !important; }
.status { margin: 2px; min-height: 1.5em; color: var(--body-text-color-subdued); }
.status.problem { color: var(--wrong); font-weight: 600; }
h3.encoder { margin: 0 2px; font-size: 1.1rem; }
h3.encoder.clip { color: var(--clip); } h3.encoder.longclip { color: var(--longclip); }
h3.encoder.tulip { color: var(--tulip); } h3.encoder.finelip { color: var(--finelip); }
h3.encoder { overflow-wrap: anywhere; }
/* Prompt and pictures share the first screen; the icons stand above a picture, never on it. */
.picture { height: clamp(220px, calc(100vh - 500px), 400px) !important; overflow: visible !important; }
.picture .image-container, .picture .image-frame { overflow: visible; }
.picture .icon-button-wrapper { top: -32px !important; right: 0 !important; }
.picture img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
.pixels img { image-rendering: pixelated; }

.note { font-size: 0.92rem; }
.note p { margin: 0 0 4px; }
.note .score { font-size: 1rem; font-variant-numeric: tabular-nums; }
.marks { display: flex; gap: 2px; }
.marks span { flex: 1 1 0; max-width: 1.6em; text-align: center; border-radius: 4px; line-height: 1.45; }
.marks span, .note li span { font-weight: 700; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .aside { color: var(--body-text-color-subdued); }
.marks .right { background: color-mix(in srgb, var(--right) 16%, transparent); }
.marks .wrong { background: color-mix(in srgb, var(--wrong) 16%, transparent); }
.note summary { cursor: pointer; color: var(--body-text-color-subdued); }
.note ul { list-style: none; margin: 4px 0; padding: 0; max-height: 15em; overflow-y: auto; }
.note li { margin: 0; padding: 1px 0; }
.note li span { display: inline-block; width: 1.3em; text-indent: 0; }
.note li { padding-left: 1.3em; text-indent: -1.3em; }
.lost { margin-top: 6px; padding: 6px 10px; border-left: 3px solid var(--wrong); border-radius: 0 6px 6px 0;
  background: var(--background-fill-secondary); max-height: 9em; overflow-y: auto; overflow-wrap: anywhere; }
.lost b { display: block; font-size: 0.8rem; } .lost.none { border-color: var(--right); }

.explain .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 16px; }
.attention { margin: 0; } .attention figcaption { font-size: 0.9rem; margin-top: 4px; }
.attended { margin: 0; min-width: 0; } .attended figcaption { font-size: 0.9rem; margin-top: 6px; }
.attended img { width: 128px; aspect-ratio: 1; margin: 4px 0; }
.shaded { max-height: 15em; overflow-y: auto; margin: 0; line-height: 1.7; overflow-wrap: anywhere;
  white-space: pre-wrap; }
.shaded .read { border-radius: 3px;
  background: color-mix(in srgb, var(--shade) calc(var(--share) * 100%), transparent); }
.shaded .unread { color: var(--body-text-color-subdued); text-decoration: line-through; }
.syntax { margin: 4px 0 0; font-size: 0.9rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.bars { display: flex; align-items: flex-end; gap: 2px; height: 110px;
  border-bottom: 1px solid var(--border-color-primary); }
.bars i { flex: 1 1 0; max-width: 22px; background: currentColor; border-radius: 3px 3px 0 0; min-height: 1px; }
.refs { line-height: 1.8; } .refs .ref { text-decoration: underline dotted; cursor: help; }
.explain table.figures { border: 0; border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.figures caption { caption-side: bottom; text-align: left; font-size: 0.85rem; padding-top: 4px; }
.explain table.figures :is(th, td) { padding: 4px 18px 4px 0; text-align: left; border: 0;
  border-bottom: 1px solid var(--border-color-primary); background: none; }
#past { min-height: 0; }
#past .thumbnail-item { aspect-ratio: 8 / 5; }
@media (max-width: 640px) {
  #title h1 { font-size: 1.35rem; }
  .picture { height: auto !important; aspect-ratio: 1; }
  #status { scroll-margin-top: 8px; }
  .tokens .total { width: 100%; }
  .words { max-height: 9em; }
  #helpers > :first-child { flex-basis: 100%; }
  .tab-container button { padding: 0 9px !important; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""
