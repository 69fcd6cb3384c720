"""The frame and the looks of the page that `burnish.diff_page` writes."""

from typing import Final

PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>burnish diff: $title</title>
<style>$style</style>
</head>
<body>
<h1>burnish diff</h1>
<p>A: <code>$a</code><br>B: <code>$b</code></p>
<h2>What differs</h2>
$summary
<h2>By operator</h2>
$ops
<h2>By pass</h2>
$receipts
<h2>By layer</h2>
$modules
<p class="key"><span class="went">went</span> <span class="came">came</span>
<span class="became">became</span>
<span class="changed">stays, but differs</span> <span class="same">stays</span> ·
left A, right B; layers that are alike are told once, with their number.</p>
$layers
</body>
</html>
"""

STYLE: Final = """
:root { color-scheme: light dark; --fg: #1c1e21; --bg: #fff; --soft: #5d646d; --line: #d9dde2;
  --went: #fdecea; --came: #e6f4ea; --became: #e8f0fd; --changed: #fff6dc; }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e6e9; --bg: #16181b; --soft: #9aa2ab; --line: #34393f;
  --went: #43211f; --came: #1b3a25; --became: #1d2f4b; --changed: #3d3413; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--fg); background: var(--bg); margin: 1.5em auto;
  max-width: 90em; padding: 0 1em; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin: 1.6em 0 .4em; }
code, i, .v, .o, li { overflow-wrap: anywhere; unicode-bidi: isolate; }
i { font-style: normal; color: var(--soft); }
a { color: inherit; }
ul { margin: .2em 0; padding-left: 1.4em; font-family: ui-monospace, monospace; font-size: .92em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: .15em .9em .15em 0; text-align: right; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; }
summary { cursor: pointer; }
.layer { border: 1px solid var(--line); border-radius: 6px; margin: .5em 0; padding: .4em .7em; }
.layer > summary span, .run > summary, .v, .o, .s { color: var(--soft); }
.row { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1em; padding: .25em 0;
  border-top: 1px solid var(--line); }
.same > div { grid-column: 1 / -1; }
.n { margin: .15em 0; padding-left: .5em; border-left: 3px solid var(--line); }
.n:target { outline: 2px solid currentColor; }
.v, .o { font: .85em/1.35 ui-monospace, monospace; }
.went > :first-child, .key .went { background: var(--went); }
.came > :last-child, .key .came { background: var(--came); }
.became > div, .key .became { background: var(--became); }
.changed > div, .key .changed { background: var(--changed); }
.key span { padding: .1em .5em; border: 1px solid var(--line); border-radius: 4px; }
@media (max-width: 45em) { .row { grid-template-columns: 1fr; } }
"""
