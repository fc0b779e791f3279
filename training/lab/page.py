"""The lab's HTML page, generated from the JSON files and pictures of the experiments."""

import html
import json
from pathlib import Path
from typing import Any

from PIL import Image

from training.lab.experiments import NAMES

INDEX, SHEET = "index.html", "lab.css"
STYLE = """\
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --link: light-dark(#0b5a8a, #7cc4f0); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; }
p, figcaption { max-width: 46rem; }
a { color: var(--link); }
code { font-size: .9em; overflow-wrap: anywhere; }
nav ol { columns: 22rem; padding-left: 1.4rem; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
figcaption { font-size: .9rem; }
blockquote { margin: 0 0 1rem; padding-left: 1rem; border-left: 3px solid var(--line); font-style: italic; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--soft); }
th.number, td.number { text-align: right; white-space: nowrap; }
thead th { border-bottom: 1px solid var(--line); }
td.wrong { color: light-dark(#b3261e, #ff8a80); font-weight: bold; }
summary { cursor: pointer; padding: .5rem 0; }
"""


def page(directory: Path) -> str:
    """The page about the experiments whose files are in `directory`; it links to their pictures there."""
    results = {name: json.loads(path.read_text()) for name in NAMES if (path := directory / f"{name}.json").exists()}
    links = "".join(f'<li><a href="#{name}">{html.escape(result["title"])}</a>' for name, result in results.items())
    checked = [
        number for result in results.values() for number in result["numbers"] if number["relation"] != "reported"
    ]
    held = sum(number["holds"] for number in checked)
    sections = "".join(_section(name, result, directory) for name, result in results.items())
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Drawbridge: the lab</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{SHEET}">
<h1>The lab</h1>
<p>The lecture argues with pictures. Each experiment here measures one of its arguments: it trains the service's model
families on points of the plane or on digits, with the training loop of the served weights. {held} of {len(checked)}
numbers agree with the value that theory or a publication gives. <code>python -m training lab</code> runs all
experiments and writes this page; <code>python -m training lab NAME</code> runs one and updates its section.</p>
<p>The service also has a <a href="live">live lab</a>, where such models train in the browser.</p>
<nav aria-label="Experiments"><ol>{links}</ol></nav>
<main>
{sections}</main>
</html>
"""


def _section(name: str, result: dict[str, Any], directory: Path) -> str:
    numbers = result["numbers"]
    checked = [number for number in numbers if number["relation"] != "reported"]
    others = [number for number in numbers if number["relation"] == "reported"]
    figures = "".join(_figure(directory / picture["file"], picture["caption"]) for picture in result["pictures"])
    seeds = "1 seed" if result["seeds"] == 1 else f"{result['seeds']} seeds, means ± standard deviations"
    facts = [
        seeds,
        *([f"digits: {result['data']}"] if result["data"] else []),
        f"{result['seconds']:.0f} s on one core",
    ]
    if result["quick"]:
        facts.append("the quick form: trained too briefly for good results")
    more = f"<details><summary>{len(others)} more</summary>{_table(others)}</details>" if others else ""
    return f"""<section id="{name}">
<h2>{html.escape(result["title"])}</h2>
<blockquote>{html.escape(result["claim"])}</blockquote>
<p>{html.escape(result["method"])}</p>
{figures}{_table(checked) if checked else ""}
{more}
<p><code>python -m training lab {name}</code>: {"; ".join(facts)}.</p>
</section>
"""


def _figure(path: Path, caption: str) -> str:
    with Image.open(path) as image:
        width, height = image.size
    text = html.escape(caption)
    return (
        f'<figure><img src="{path.name}" width="{width}" height="{height}" loading="lazy" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def _table(numbers: list[dict[str, Any]]) -> str:
    head = '<th>quantity<th class="number">measured<th class="number">expected<th>source<th>'
    rows = "".join(_row(number) for number in numbers)
    return f'<div class="wide"><table><thead><tr>{head}</thead><tbody>{rows}</tbody></table></div>'


def _row(number: dict[str, Any]) -> str:
    measured = _figures(number["measured"])
    if number["deviation"] is not None:
        measured += f" ± {_figures(number['deviation'])}"
    verdict = "" if number["relation"] == "reported" else "holds" if number["holds"] else "does not hold"
    kind = ' class="wrong"' if not number["holds"] else ""
    return (
        f"<tr><td>{html.escape(number['what'])}"
        f'<td class="number">{measured}<td class="number">{expected(number)}'
        f"<td>{html.escape(number['source'])}<td{kind}>{verdict}"
    )


def expected(number: dict[str, Any]) -> str:
    """The expectation of a number as short text: '0.69 ± 0.02', '≥ 8', or empty."""
    bound = _figures(number["expected"])
    if number["relation"] == "is":
        return f"{bound} ± {_figures(number['within'])}" if number["within"] else bound
    return {"at least": f"≥ {bound}", "at most": f"≤ {bound}", "reported": ""}[number["relation"]]


def _figures(value: float) -> str:
    """Four significant digits, with a typographic minus."""
    return f"{value:.4g}".replace("-", "−")
