"""The page's style sheet: light or dark by the reader's setting, one column on narrow screens.

It uses no fonts from outside.
"""

# The project's colours; the demo's page has them, too.
LIGHT = """--paper: #fbfaf7; --card: #ffffff; --ink: #1d1d1b; --muted: #6a6a64; --line: #e3e1da;
  --accent: #0a6c66; --second: #b4531f; --soft: #e9f2f0; --good: #19703a; --bad: #a8322a;"""
DARK = """--paper: #131517; --card: #1b1e21; --ink: #ecebe6; --muted: #9d9c94; --line: #2f3337;
    --accent: #55c4b8; --second: #f0a169; --soft: #1d2e2d; --good: #7ccf94; --bad: #f08b80;"""
CSS = ":root {\n  " + LIGHT + """
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    """ + DARK + """
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1136px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 4px 0 6px;
  overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; margin: 0 0 4px; }
h3 { font-size: 15px; line-height: 1.4; margin: 0; overflow-wrap: anywhere; }
p { margin: 0 0 12px; max-width: 72ch; }
a { color: var(--accent); text-underline-offset: 3px; }
.kicker { color: var(--accent); font-size: 13px; font-weight: 600; letter-spacing: 0.04em; }
.muted, figcaption { color: var(--muted); }
.small { font-size: 14px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 18px 0 0; font-size: 14px; }
section { margin-top: 52px; padding-top: 20px; border-top: 1px solid var(--line); }
section > p { margin-bottom: 18px; }
code { font: 0.88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--soft);
  padding: 1px 5px; border-radius: 4px; overflow-wrap: anywhere; }
.missing { border-left: 3px solid var(--line); padding: 4px 0 4px 14px; color: var(--muted); }
.missing code span { white-space: nowrap; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 26px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; }
.tile b { display: block; font-size: 22px; line-height: 1.3; font-weight: 600;
  letter-spacing: -0.01em; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: 13px; }

details { margin-top: 14px; }
summary { cursor: pointer; color: var(--muted); font-size: 14px; }
.settings { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 18px;
  margin: 16px 0 0; font-size: 14px; }
.settings dt { color: var(--muted); }
.settings dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--soft);
  border-radius: 8px; padding: 12px 14px; margin: 8px 0 0; }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr));
  gap: 14px; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px 8px; }
.chart svg { display: block; width: 100%; height: auto; margin-top: 6px; stroke-linejoin: round; }
.chart header { display: flex; justify-content: space-between; align-items: baseline; gap: 10px; }
.chart header span { font-size: 13px; color: var(--muted); font-variant-numeric: tabular-nums;
  white-space: nowrap; }

.strip { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; margin-top: 16px; }
.strip > header { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline;
  margin-bottom: 12px; }
.strip-body { display: grid;
  grid-template-columns: minmax(0, calc(var(--pictures) * 152px - 8px)) minmax(190px, 1fr);
  gap: 18px 28px; }
.strip-body .scores { max-width: 420px; }
.pictures { display: grid; grid-template-columns: repeat(var(--pictures), minmax(0, 144px));
  gap: 8px; align-content: start; }
.pictures img, .pictures .none { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  border-radius: 5px; image-rendering: auto; }
.pictures .none { border: 1px dashed var(--line); }
figcaption { font-size: 12.5px; text-align: center; margin-top: 3px; }
.chain { grid-column: 1 / -1; display: grid; grid-template-columns: 104px minmax(0, 1fr);
  gap: 6px 14px; margin: 0; font-size: 14.5px; line-height: 1.5; }
.chain dt { color: var(--muted); font-size: 13px; padding-top: 1px; }
.chain dd { margin: 0; overflow-wrap: anywhere; }
.raw { grid-column: 1 / -1; margin: 0; }
.items { display: flex; flex-wrap: wrap; gap: 5px 6px; padding: 0; margin: 0; list-style: none; }
.items li { border: 1px solid var(--line); border-radius: 99px; padding: 0 10px; font-size: 13.5px;
  line-height: 24px; }
.right { color: var(--good); }
.wrong { color: var(--bad); }
.badge { font-size: 12.5px; color: var(--bad); border: 1px solid currentColor; border-radius: 99px;
  padding: 0 9px; }

.scores { display: grid; grid-template-columns: max-content minmax(40px, 1fr) max-content;
  gap: 5px 10px; align-content: start; align-items: center; font-size: 13.5px; margin: 0;
  padding: 0; list-style: none; }
.scores li { display: contents; }
.scores .bar { height: 6px; border-radius: 3px; background: var(--line); overflow: hidden; }
.scores .bar i { display: block; height: 100%; background: var(--accent); border-radius: 3px; }
.scores .value { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.scores .total { font-weight: 600; }
.lines { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 14px;
  align-content: start; margin: 0; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.lines dt { color: var(--muted); }
.lines dd { margin: 0; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 12px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--muted); font-weight: 500; font-size: 13px; }
table.words th, table.words td { text-align: left; vertical-align: top; white-space: normal; }
td.best { font-weight: 650; color: var(--accent); }
tr.total td { font-weight: 600; }
.interval { color: var(--muted); font-weight: 400; font-size: 13px; }
.range { position: relative; width: 150px; height: 14px; }
.range .axis { position: absolute; left: 0; right: 0; top: 6.5px; height: 1px;
  background: var(--line); }
.range .span { position: absolute; top: 5px; height: 4px; border-radius: 2px; opacity: 0.35; }
.range .dot { position: absolute; top: 2px; width: 10px; height: 10px; margin-left: -5px;
  border-radius: 50%; }
.before { background: var(--second); }
.after { background: var(--accent); }
.key { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 5px; }
ul.notes { margin: 14px 0 0; padding-left: 18px; color: var(--muted); font-size: 14px; }
footer { margin-top: 60px; color: var(--muted); font-size: 13px; }

@media (max-width: 900px) { .strip-body { grid-template-columns: minmax(0, 1fr); } .scores {
  max-width: 420px; } }
@media (max-width: 560px) {
  main { padding: 24px 16px 56px; }
  h1 { font-size: 25px; }
  section { margin-top: 38px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .tile { padding: 10px 12px; }
  .tile b { font-size: 19px; }
  .settings { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); font-size: 13px; }
  .settings dt { overflow-wrap: anywhere; }
  th, td { padding: 7px 5px; vertical-align: top; white-space: normal; }
  .interval { display: block; font-size: 11.5px; line-height: 1.3; }
  .range { width: 68px; margin-top: 4px; }
  .strip { padding: 14px; }
  .pictures { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .chain { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .chain dd { margin-bottom: 8px; }
}
@media print { .strip, .chart { break-inside: avoid; } }
"""
