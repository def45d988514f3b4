"""The page's looks: the report's colours on gradio's parts, with the fonts of the reader's system."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.reporting.style import DARK, LIGHT

if TYPE_CHECKING:
    import gradio

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
# Colour of the report -> what of gradio's parts has it, by gradio's names.
PARTS = {
    "paper": "body_background_fill background_fill_secondary",
    "ink": "body_text_color block_title_text_color button_secondary_text_color checkbox_label_text_color",
    "muted": "body_text_color_subdued block_label_text_color block_info_text_color",
    "card": """background_fill_primary block_background_fill block_label_background_fill input_background_fill
        button_primary_text_color button_secondary_background_fill checkbox_label_background_fill""",
    "line": "block_border_color border_color_primary button_secondary_border_color input_border_color",
    "accent": """border_color_accent button_primary_background_fill button_primary_background_fill_hover
        button_primary_border_color input_border_color_focus slider_color checkbox_background_color_selected
        checkbox_border_color_selected link_text_color loader_color""",
    "soft": "color_accent_soft button_secondary_background_fill_hover"}
MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace"]

CSS = ":root, .gradio-container {\n  " + LIGHT + "\n}\n.dark, .dark .gradio-container {\n  " + DARK + """
}
body, gradio-app { background: var(--paper) !important; }
.gradio-container { width: 100%; min-width: 0 !important; max-width: 1184px !important;
  margin: 0 auto !important; padding: 36px 24px 72px !important; color: var(--ink); font-size: 16px;
  line-height: 1.55; box-sizing: border-box; }
.gradio-container .main { padding: 0 !important; max-width: 100%; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .prose { color: var(--ink); }
footer { display: none !important; }

#head .kicker { color: var(--accent); font-size: 13px; font-weight: 600; letter-spacing: 0.04em; }
#head h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; font-weight: 700; margin: 4px 0 6px;
  color: var(--ink); }
#head h1, #chain-head h2 { text-wrap: balance; }
#head p { margin: 0; max-width: 66ch; color: var(--muted); }

#desk { gap: 28px; align-items: flex-start; }
#side { gap: 14px; }
#stage { gap: 12px; min-width: min(100%, 420px) !important; }
#side .block, #stage .block, .label { font-size: 14px; color: var(--muted); }
#examples { border: 0; background: transparent; padding: 0; margin-top: -8px; }
#examples .grid-wrap { height: auto !important; min-height: 0; max-height: none;
  overflow: visible; padding: 0; }
#examples .grid-container { padding: 0; gap: 8px;
  grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#examples .thumbnail-item { width: 100%; height: auto; aspect-ratio: 1; border-radius: 8px; box-shadow: none;
  border: 1px solid var(--line); }
#examples .thumbnail-item:hover, #examples .thumbnail-item:focus-visible { border-color: var(--accent);
  outline: 2px solid var(--accent); outline-offset: 1px; }
#scale .wrap { flex-wrap: nowrap; gap: 0; border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; }
#scale .wrap label { flex: 1; justify-content: center; border: 0; border-radius: 0; background: var(--card);
  padding: 8px 4px; box-shadow: none; }
#scale .wrap label + label { border-left: 1px solid var(--line); }
#scale .wrap label.selected { background: var(--soft); color: var(--accent); font-weight: 600; }
#scale .wrap label input { position: absolute; opacity: 0; width: 1px; height: 1px; margin: 0; }
#scale .wrap label:has(input:focus-visible) { outline: 2px solid var(--accent); outline-offset: -2px; }
#scale .wrap label span { margin: 0; }

#settings .form { border: 0; border-radius: 0; }
#settings .block { padding: 10px 0; }
#settings .column { gap: 0; }
#settings input[type="range"]::-webkit-slider-thumb { border: 1px solid var(--accent); }

.message { display: flex; gap: 10px; align-items: baseline; padding: 9px 14px; font-size: 14.5px;
  line-height: 1.5; border-left: 3px solid var(--line); color: var(--muted); overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.message.bad { border-color: var(--bad); color: var(--bad); }
.message.busy { border-color: var(--accent); color: var(--ink); }
.message.busy::before { content: ""; flex: none; width: 8px; height: 8px; border-radius: 50%;
  background: var(--accent); animation: pulse 1.4s ease-in-out infinite; }
.bar { height: 4px; border-radius: 2px; background: var(--line); overflow: hidden; margin-top: 10px; }
.bar i { display: block; height: 100%; background: var(--accent); transition: width 0.4s; }
@keyframes pulse { 50% { opacity: 0.25; } }

figure.photo { margin: 0; }
figure.photo img { display: block; width: 100%; max-height: 560px; object-fit: contain; border-radius: 10px;
  background: var(--card); border: 1px solid var(--line); }
figure.photo { line-height: 0; }
.caption { color: var(--muted); font-size: 13px;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.nothing { display: grid; place-items: center; min-height: 300px; border: 1px dashed var(--line);
  border-radius: 10px; color: var(--muted); padding: 24px; text-align: center; }
#slider { border: 1px solid var(--line); border-radius: 10px; background: var(--card); padding: 0;
  overflow: hidden; }

#buttons button, #downloads button { font-size: 15px; }
#chain-head { margin-top: 20px; }
#chain-head h2 { font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; font-weight: 700; margin: 0;
  color: var(--ink); border-top: 1px solid var(--line); padding-top: 22px; }
.hint { color: var(--muted); margin: 0; max-width: 66ch; }
.chain { display: grid; grid-template-columns: repeat(var(--drawn), minmax(0, 1fr)); gap: 14px; }
.step { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px 16px;
  display: flex; flex-direction: column; gap: 10px; }
.step.said { grid-column: 1 / -1; }
.step h3 { font-size: 13px; font-weight: 600; color: var(--muted); margin: 0; line-height: 1.4; }
.step p { margin: 0; font-size: 14.5px; line-height: 1.5; color: var(--ink); overflow-wrap: anywhere; }
.step img, .step .blank { display: block; width: 100%; border-radius: 6px; margin: 0;
  object-fit: cover; order: 1; }
.step p, .step .lines { order: 2; }
.step .blank { border: 1px dashed var(--line); }
.step .blank.next, .step .lines.next i { animation: pulse 1.4s ease-in-out infinite; }
.step .blank.next { background: var(--soft); border-color: transparent; }
.step .lines { display: grid; gap: 8px; padding: 4px 0; }
.step .lines i { display: block; height: 8px; border-radius: 4px; background: var(--line); opacity: 0.6; }
.step .lines.next i { background: var(--accent); opacity: 0.35; }
.step .lines i:last-child { width: 62%; }
.step.said > * { order: 0; }
.step.said .lines { grid-template-columns: repeat(3, minmax(0, 140px)); }
.step.said .lines i:last-child { width: auto; }
.step .items { display: flex; flex-wrap: wrap; gap: 5px 6px; padding: 0; margin: 0; list-style: none; }
.step .items li { border: 1px solid var(--line); border-radius: 99px; padding: 0 10px; font-size: 13.5px;
  line-height: 24px; margin: 0; }

@media (max-width: 640px) {
  .gradio-container { padding: 22px 16px 48px !important; }
  #head h1 { font-size: 23px; }
  #chain-head h2 { font-size: 18px; }
  #downloads button { font-size: 14px; padding: 8px; }
  .chain { grid-template-columns: minmax(0, 1fr); }
  #desk { gap: 20px; }
  .nothing { min-height: 120px; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; } }
"""


def theme() -> gradio.themes.Base:
    """The theme of gradio's own parts: our colours in place of its palette."""
    import gradio

    both = {name: f"var(--{color})" for color, names in PARTS.items() for name in names.split()}
    shape = {"block_shadow": "none", "button_primary_shadow": "none", "button_secondary_shadow": "none",
             "input_shadow": "none", "block_radius": "10px", "button_large_radius": "8px",
             "input_radius": "8px", "button_border_width": "1px",
             "input_border_width": "1px", "color_accent": "var(--accent)"}
    known = vars(gradio.themes.Base())
    dark = {f"{name}_dark": value for name, value in both.items() if f"{name}_dark" in known}
    return gradio.themes.Base(font=FONTS, font_mono=MONO).set(**both, **dark, **shape)


def favicon(folder: Path) -> Path:
    """Write the page's small sign into `folder` and return its path."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (256, 256))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((8, 8, 247, 247), 56, fill=LIGHT.split("--accent:")[1].split(";")[0].strip())
    for number, side in enumerate((48, 96, 144)):  # rough, middle, final
        draw.rounded_rectangle((56, 200 - side, 56 + side, 200), 14, outline="white", width=10 + 2 * number)
    image.resize((64, 64)).save(folder / "favicon.png")
    return folder / "favicon.png"
