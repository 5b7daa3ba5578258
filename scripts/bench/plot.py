# SPDX-License-Identifier: GPL-2.0
"""Bar charts as SVG: each answers one question, which is its title."""

import html
import pathlib

COLOURS = ["#5b7fa6", "#c8643c", "#7a9a5b", "#9a7fb0"]
WIDTH, LEFT, RIGHT, BAR, GAP = 860, 230, 150, 16, 14


def number(value):
    """As short as is legible."""
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    if value >= 1e4:
        return f"{value / 1e3:.0f} k"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def bars(file, title, unit, names, groups, note=""):
    """groups: (label, values, spreads, ratio); a spread is (least, most) or None, as many as names."""
    most = max((max(values + [s[1] for s in spreads if s]) for _, values, spreads, _ in groups), default=1) or 1
    scale = (WIDTH - LEFT - RIGHT) / most
    lines, y = [], 92
    for label, values, spreads, ratio in groups:
        middle = y + len(values) * BAR / 2 + 4
        lines.append(f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{html.escape(label)}</text>')
        for value, spread, colour in zip(values, spreads, COLOURS):
            width = value * scale
            lines.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>')
            end = width
            if spread:
                a, b = (LEFT + edge * scale for edge in spread)
                end = max(end, b - LEFT)
                lines.append(f'<path d="M{a:.1f} {y + 7}H{b:.1f}M{a:.1f} {y + 4}v6M{b:.1f} {y + 4}v6" stroke="#222"/>')
            text = number(value)
            if ratio and colour is COLOURS[1]:
                text += f"  ({ratio:.2f} of C)"
            lines.append(f'<text x="{LEFT + end + 6:.1f}" y="{y + 12}" class="small">{text}</text>')
            y += BAR
        y += GAP
    legend, x = [], LEFT
    for name, colour in zip(names, COLOURS):
        legend.append(f'<rect x="{x}" y="62" width="12" height="12" fill="{colour}"/>'
                      f'<text x="{x + 17}" y="73">{html.escape(name)}</text>')
        x += 40 + 8 * len(name)
    foot = [note] if note else []
    height = y + 8 + 18 * len(foot)
    lines += [f'<text x="12" y="{y + 10 + 18 * i}" class="small">{html.escape(line)}</text>' for i, line in enumerate(foot)]
    pathlib.Path(file).write_text("\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}">',
        "<!-- SPDX-License-Identifier: GPL-2.0 -->",
        "<style>text { font: 13px sans-serif } .title { font: bold 16px sans-serif } .small { font-size: 12px }</style>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>',
        f'<text x="12" y="26" class="title">{html.escape(title)}</text>',
        f'<text x="12" y="48">{html.escape(unit)}</text>',
        *legend, *lines, "</svg>", ""]))
