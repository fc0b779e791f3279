"""The lab's page: what every experiment that has been done found, made from the files they left."""

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
    """The page on the experiments whose files lie in `directory`; its pictures stay files beside it."""
    done = {name: json.loads(path.read_text()) for name in NAMES if (path := directory / f"{name}.json").exists()}
    links = "".join(f'<li><a href="#{name}">{html.escape(told["title"])}</a>' for name, told in done.items())
    checked = [number for told in done.values() for number in told["numbers"] if number["relation"] != "reported"]
    held = sum(number["holds"] for number in checked)
    sections = "".join(_section(name, told, directory) for name, told in done.items())
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Drawbridge: the lab</title>
<link rel="stylesheet" href="{SHEET}">
<h1>The lab</h1>
<p>The lecture argues with pictures. Each argument is here as a run: the families that the service draws from, on points
of the plane or on digits, trained by the loop that trained its weights. Of {len(checked)} numbers that theory or others
say something about, {held} came out as expected. <code>python -m training lab</code> makes this page anew,
<code>python -m training lab NAME</code> one part of it.</p>
<nav aria-label="Experiments"><ol>{links}</ol></nav>
<main>
{sections}</main>
</html>
"""


def _section(name: str, told: dict[str, Any], directory: Path) -> str:
    numbers = told["numbers"]
    checked = [number for number in numbers if number["relation"] != "reported"]
    others = [number for number in numbers if number["relation"] == "reported"]
    figures = "".join(_figure(directory / picture["file"], picture["caption"]) for picture in told["pictures"])
    runs = "1 seed" if told["seeds"] == 1 else f"{told['seeds']} seeds, means ± standard deviations"
    how = [runs, *([f"digits: {told['data']}"] if told["data"] else []), f"{told['seconds']:.0f} s on one core"]
    if told["quick"]:
        how.append("the quick form: too short to be good")
    more = f"<details><summary>{len(others)} numbers to look at</summary>{_table(others)}</details>" if others else ""
    return f"""<section id="{name}">
<h2>{html.escape(told["title"])}</h2>
<blockquote>{html.escape(told["says"])}</blockquote>
<p>{html.escape(told["shows"])}</p>
{figures}{_table(checked) if checked else ""}
{more}
<p><code>python -m training lab {name}</code>: {"; ".join(how)}.</p>
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
    head = '<th>what<th class="number">measured<th class="number">expected<th>why<th>'
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
    """What a number should be, in a few characters: '0.69 ± 0.02', '≥ 8', or nothing."""
    bound = _figures(number["expected"])
    if number["relation"] == "is":
        return f"{bound} ± {_figures(number['within'])}" if number["within"] else bound
    return {"at least": f"≥ {bound}", "at most": f"≤ {bound}", "reported": ""}[number["relation"]]


def _figures(value: float) -> str:
    """Four significant ones, with a real minus."""
    return f"{value:.4g}".replace("-", "−")
