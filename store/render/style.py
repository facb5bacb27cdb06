"""The style sheet of a page: one column on a phone, light or dark as the reader's system is."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #f4f6f8; --card: #ffffff; --ink: #18202a; --soft: #535f6d; --line: #d9e0e8;
  --bar: #3574d4; --mark: #b4540a; --error: #b3261e; --warning: #8a5300; --info: #275c9c;
  --ok: #17693a; --tint: 10%; --warmth: 1; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12161b; --card: #1b2128; --ink: #e7ebef; --soft: #a7b3bf; --line: #333d48;
  --bar: #5b9bf0; --mark: #ffb067; --error: #ff8f86; --warning: #ffc56e; --info: #92c0ff;
  --ok: #7cdb9c; --tint: 16%; --warmth: 0.6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main, footer { max-width: 1240px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; }
footer { padding-top: 8px; padding-bottom: 40px; color: var(--soft); font-size: 14px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 40px 0 12px; }
h3 { font-size: 16px; margin: 0 0 4px; }
p { margin: 0 0 12px; max-width: 75ch; overflow-wrap: anywhere; }
.soft, .note { color: var(--soft); }
.note { font-size: 14px; margin: 4px 0 0; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.verdict { display: inline-block; padding: 4px 14px; border-radius: 999px; font-weight: 650;
  border: 1.5px solid currentColor; }
.ok { color: var(--ok); } .warning { color: var(--warning); } .error { color: var(--error); }
.info { color: var(--info); }
.verdict, .severity { background: color-mix(in srgb, currentColor var(--tint), transparent); }
.severity { display: inline-block; padding: 0 8px; border-radius: 6px; font-weight: 600;
  font-size: 14px; }
.cards { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 16px 18px; min-width: 0; }
.wide { grid-column: 1 / -1; }
.keys { display: grid; gap: 12px; margin: 24px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.keys div { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 12px 16px; }
.keys dt { color: var(--soft); font-size: 14px; }
.keys dd { margin: 0; font-size: 24px; font-weight: 650; line-height: 1.3;
  overflow-wrap: anywhere; }
.keys dd.note { font-size: 14px; font-weight: 400; margin: 0; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--bar); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: left; padding: 6px 12px 6px 0; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-size: 14px; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars th { overflow-wrap: break-word; max-width: 0; width: 45%; }
.bars td:last-child { width: 30%; padding-right: 0; }
.bars th, .bars td { border: 0; padding: 3px 10px 3px 0; }
span.bar { display: block; height: 12px; margin-top: 6px; border-radius: 3px;
  background: var(--bar); min-width: 2px; }
.heat { background: color-mix(in srgb, var(--bar) calc(var(--heat) * var(--warmth)), transparent);
  padding-right: 8px; }
code { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, monospace; overflow-wrap: anywhere; }
.plot { display: block; width: 100%; height: auto; margin-top: 6px; }
.plot .bar { fill: var(--bar); } .plot .bar:hover { fill: var(--mark); }
.plot .grid { stroke: var(--line); } .plot .mark { stroke: var(--mark); stroke-dasharray: 4 3; }
.plot text { font-size: 12px; } .plot .tick { fill: var(--soft); }
.plot .label { fill: var(--mark); font-weight: 600;
  paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.line { fill: none; stroke: var(--bar); stroke-width: 1.5; }
.strip { display: block; width: 100%; height: 34px; }
.strips { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 12px;
  align-items: center; font-size: 13px; margin: 8px 0 0; max-width: none; color: var(--soft); }
.offenders { list-style: none; margin: 0; padding: 0; font-size: 15px; }
.offenders li { padding: 4px 0; overflow-wrap: anywhere; }
.offenders code { color: var(--soft); margin-right: 8px; }
details { margin: 12px 0; } summary { cursor: pointer; }
details[open] > summary { margin-bottom: 8px; }
.reel { margin: 0; }
.reel div { display: grid; grid-template-columns: repeat(6, 1fr); gap: 3px; }
.reel img { width: 100%; height: auto; display: block; border-radius: 3px; }
.reel figcaption { font-size: 14px; margin-top: 8px; overflow-wrap: anywhere; }
.reels { grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
@media (max-width: 600px) {
  header, main, footer { padding-left: 14px; padding-right: 14px; }
  .cards, .reels { grid-template-columns: minmax(0, 1fr); }
  .keys { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .keys dd { font-size: 20px; } h1 { font-size: 24px; }
  .reel div { grid-template-columns: repeat(3, 1fr); }
  .card { padding: 14px; }
  .checks thead { position: absolute; clip-path: inset(50%); }
  .checks, .checks tbody { display: block; }
  .checks tr { display: flex; flex-wrap: wrap; gap: 2px 10px; padding: 10px 0;
    border-bottom: 1px solid var(--line); }
  .checks tr:last-child { border: 0; }
  .checks th, .checks td { border: 0; padding: 0; }
  .checks th { font-weight: 650; flex-grow: 1; }
  .checks td:nth-child(n+4) { flex-basis: 100%; } .checks td:last-child { color: var(--soft); } }
@media print { .card { break-inside: avoid; } }
"""
