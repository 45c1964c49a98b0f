"""The look of the report: light and dark as the reader's system asks, wide screens and phones, and paper."""

from __future__ import annotations

from rayjobs.evaluate.page.markup import Html

STYLE = Html("""
:root { color-scheme: light dark;
  --ink: #1d232b; --soft: #5b6673; --line: #d8dde3; --back: #ffffff; --panel: #f4f6f8; --ours: #0063a0; --warn: #9a4a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ed; --soft: #9daab8; --line: #39424d; --back: #14181d; --panel: #1d232b; --ours: #6fbcf0; --warn: #ffb066; }
  figure img { filter: brightness(0.88); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem clamp(0.75rem, 3vw, 2rem) 4rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; }
p { max-width: 48rem; margin: 0.4rem 0; }
nav { color: var(--soft); font-size: 0.9rem; }
nav a { display: inline-block; margin: 0.15rem 0.9rem 0.15rem 0; }
a { color: var(--ours); }
.soft { color: var(--soft); font-size: 0.85em; }
.cautions { border-left: 4px solid var(--warn); background: var(--panel); padding: 0.5rem 1rem; margin: 1rem 0; }
.cautions strong { color: var(--warn); }
.wide { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
caption { text-align: left; color: var(--soft); padding: 0.2rem 0; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { white-space: nowrap; }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--back); min-width: 7rem; max-width: 16rem; }
.ours, tr.ours th, tr.ours td { color: var(--ours); font-weight: 600; }
td .soft { font-weight: 400; }
svg { width: 12rem; height: 1.5rem; display: block; }
svg line { stroke: currentColor; stroke-width: 2; vector-effect: non-scaling-stroke; }
svg line.rule { stroke: var(--line); stroke-width: 1; }
svg circle { fill: currentColor; }
dl { display: grid; grid-template-columns: minmax(8rem, 16rem) 1fr; gap: 0.3rem 1rem; margin: 0.5rem 0; font-size: 0.95rem; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
dd ul { margin: 0; padding-left: 1.1rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: 0.9rem; max-width: 48rem; margin-top: 0.3rem; }
summary { cursor: pointer; padding: 0.3rem 0; }
pre { background: var(--panel); padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.85rem; line-height: 1.4; }
code { overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.5rem; } svg { width: 7rem; } }
@media print { body { max-width: none; } .wide { overflow: visible; } }
""")
"""Colours of text have a contrast of at least 4.5 with what lies behind them, in both schemes."""
