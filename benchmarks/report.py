"""The results as Markdown and as a plot."""

import math
from collections.abc import Callable
from html import escape
from typing import Any

from contenders import DIRECT, NGINX, OURS

Figures = dict[str, float]
NONE = "\N{EN DASH}"


def markdown(results: dict[str, Any]) -> str:
    """Return the tables."""
    about = results["about"]
    measured = [each for each in results["contenders"] if each["figures"]]
    direct = _figures(measured, DIRECT)
    nginx = _figures(measured, NGINX)

    def of_nginx(name: str) -> Callable[[Figures], str]:
        return lambda figures: _ratio(figures.get(name), nginx.get(name))

    def added(name: str) -> Callable[[Figures], str]:
        def cell(figures: Figures) -> str:
            if name not in figures or name not in direct or figures is direct:
                return NONE
            return f"{(figures[name] - direct[name]) / 1000:.3f}"

        return cell

    def plain(name: str, form: Callable[[float], str]) -> Callable[[Figures], str]:
        return lambda figures: form(figures[name]) if name in figures else NONE

    def held(figures: Figures) -> str:
        if "memory_streams_bytes" not in figures:
            return NONE
        count = round(figures["streams_held"])
        return _mib(figures["memory_streams_bytes"]) + ("" if count == 1000 else f" (only {count} opened)")

    requests = {
        "requests/s, 1 connection": plain("requests_per_s_1", _count),
        "32": plain("requests_per_s_32", _count),
        "256": plain("requests_per_s_256", _count),
        "of nginx, 1": of_nginx("requests_per_s_1"),
        "of nginx, 32": of_nginx("requests_per_s_32"),
        "of nginx, 256": of_nginx("requests_per_s_256"),
        "added p50, ms": added("latency_p50_us"),
        "added p99, ms": added("latency_p99_us"),
        "CPU per request, µs": plain("cpu_us_per_request_32", _count),
    }
    if any(_failed(each["figures"]) for each in measured):
        requests["failed"] = lambda figures: f"{_failed(figures):,.0f}"
    streams = {
        "pieces/s, one on its way": plain("pieces_per_s_lockstep", _count),
        "of nginx": of_nginx("pieces_per_s_lockstep"),
        "pieces/s, many on their way": plain("pieces_per_s_free", _count),
        "of nginx ": of_nginx("pieces_per_s_free"),
        "CPU per piece, µs": plain("cpu_us_per_piece_lockstep", _short),
        "added to the first piece p50, ms": added("first_piece_p50_us"),
        "p99, ms": added("first_piece_p99_us"),
    }
    process = {
        "memory idle, MiB": plain("memory_idle_bytes", _mib),
        "with 1,000 open streams, MiB": held,
        "per stream, KiB": plain("memory_per_stream_bytes", lambda value: f"{value / 1024:.0f}"),
        "of nginx": of_nginx("memory_per_stream_bytes"),
        "start-up, s": plain("startup_s", lambda value: f"{value:.2f}"),
        "of nginx ": of_nginx("startup_s"),
    }
    lines = [
        "# The data path, measured",
        "",
        f"{about['date']}, {about['machine']}, {about['versions']}; `{about['command']}`, {about['rounds']} "
        f"round{'s' if about['rounds'] > 1 else ''} in {about['seconds'] / 60:.0f} minutes.",
        "",
        "Each contender is one process with a core to itself; upstream and load share the others. No contender writes an "
        "access log. Figures are medians of the rounds, in which the contenders take turns. Ratios are to nginx in this run.",
        "",
        f"Meanwhile other programs used {about['others']:.0%} of the machine's processor time.",
        "",
        "## Requests",
        "",
        *_table(requests, measured),
        "",
        "A POST of a chat completion, with a response of a kilobyte of JSON. Added latency is that of one connection, measured "
        "apart, less that without a proxy.",
        "",
        "## Streams",
        "",
        *_table(streams, measured),
        "",
        "64 streams of pieces of 200 bytes, each in a write of its own. *One on its way*: a stream's next piece is sent when "
        "the one before has arrived, so each takes a read and a write. *Many*: as many as the sockets take, and pieces that "
        "arrive in one read may leave in one write.",
        "",
        "## Process",
        "",
        *_table(process, [each for each in measured if each["key"] != DIRECT]),
        "",
        "## Goals",
        "",
        "| goal | measured | |",
        "| --- | ---: | --- |",
    ]
    for goal in results["goals"]:
        bound = f"{'≥' if goal['at_least'] else '≤'} {goal['goal']:g}"
        met = {None: "not measured", True: "met", False: "missed"}[goal["met"]]
        lines.append(f"| {goal['what']}: {bound} | {NONE if goal['measured'] is None else _short(goal['measured'])} | {met} |")
    lines += ["", "## Contenders", "", "| | set up as | versions | its response |", "| --- | --- | --- | --- |"]
    for each in results["contenders"]:
        outcome = f"not measured: {each['missing']}" if each["missing"] else each["response"]
        lines.append(f"| {each['label']} | {each['about']} | {each['versions']} | {outcome.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _figures(measured: list[dict[str, Any]], key: str) -> Figures:
    return next((each["figures"] for each in measured if each["key"] == key), {})


def _table(columns: dict[str, Callable[[Figures], str]], rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | " + " | ".join(name.strip() for name in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for row in rows:
        label = f"**{row['label']}**" if row["key"] == OURS else row["label"]
        lines.append(f"| {label} | " + " | ".join(cell(row["figures"]) for cell in columns.values()) + " |")
    return lines


def _count(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else _short(value)


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _mib(value: float) -> str:
    return f"{value / 2**20:.0f}"


def _failed(figures: Figures) -> float:
    return sum(value for name, value in figures.items() if name.startswith("failed_"))


def _ratio(value: float | None, nginx: float | None) -> str:
    return _short(float(f"{value / nginx:.2g}")) if value and nginx else NONE


_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; }
.small { font-size: 11px; fill: #59636e; }
.bar { fill: #8c959f; }
.ours { fill: #0969da; }
.name { text-anchor: end; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .small { fill: #9198a1; } .bar { fill: #656c76; } .ours { fill: #4493f8; }
}
"""
_WIDTH = 860
_NAMES = 190
_ROW = 26
_BARS = 420


def svg(results: dict[str, Any]) -> str:
    """Return a plot of requests and pieces per second, on a logarithmic scale."""
    about = results["about"]
    measured = [each for each in results["contenders"] if each["figures"] and each["key"] != DIRECT]
    parts: list[str] = []
    y = 24
    for title, name in (
        ("Requests per second, 32 connections", "requests_per_s_32"),
        ("Streamed pieces per second, 64 streams, one piece on its way in each", "pieces_per_s_lockstep"),
    ):
        rows = sorted((each for each in measured if name in each["figures"]), key=lambda each: -each["figures"][name])
        if not rows:
            continue
        nginx = _figures(measured, NGINX).get(name)
        top = rows[0]["figures"][name]
        floor = 10 ** math.floor(math.log10(max(rows[-1]["figures"][name], 1)))
        parts.append(f'<text class="title" x="10" y="{y}">{escape(title)}</text>')
        y += 12
        for row in rows:
            value = row["figures"][name]
            width = max(2.0, _BARS * math.log(max(value, floor) / floor) / math.log(top / floor)) if top > floor else _BARS
            kind = "bar ours" if row["key"] == OURS else "bar"
            ratio = f", {_ratio(value, nginx)} of nginx" if nginx and row["key"] != NGINX else ""
            parts += [
                f'<text class="name" x="{_NAMES}" y="{y + 17}">{escape(row["label"])}</text>',
                f'<rect class="{kind}" x="{_NAMES + 8}" y="{y + 4}" width="{width:.1f}" height="{_ROW - 8}" rx="2"/>',
                f'<text x="{_NAMES + 14 + width:.1f}" y="{y + 17}">{_count(value)}{ratio}</text>',
            ]
            y += _ROW
        y += 30
    notes = [f"{about['date']}, {about['machine']}. Logarithmic scale. One process on one core each.", about["command"]]
    parts += [f'<text class="small" x="10" y="{y + 15 * i}">{escape(note)}</text>' for i, note in enumerate(notes)]
    height = y + 15 * len(notes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Requests and streamed pieces per second"><style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )
