#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""report.py RUNS RESULTS DOCUMENT: medians and ratios of benchmark runs, as JSON and reST."""

import datetime
import json
import pathlib
import statistics
import sys

runs_file, results_file, document = map(pathlib.Path, sys.argv[1:])
runs = [json.loads(line) for line in runs_file.read_text().splitlines()]
kernel = (runs_file.parent / "kernel").read_text().strip()

rates = {}
for run in runs:
    ways = ["tx", "rx"] if run["direction"] == "both" else [run["direction"]]
    for way in ways:
        case = (run["direction"], way, run["size"])
        rates.setdefault(case, {"c": [], "rust": []})[run["module"]].append(run[f"{way}_pps"])

rows = []
for (direction, way, size), by_module in rates.items():
    pairs = list(zip(by_module["c"], by_module["rust"]))
    ratios = sorted(rust / c for c, rust in pairs if c)
    rows.append({
        "case": f"{way} {size} B" + (" (both ways at once)" if direction == "both" else ""),
        "pairs": len(pairs),
        "c_pps": round(statistics.median(c for c, _ in pairs)),
        "rust_pps": round(statistics.median(rust for _, rust in pairs)),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(ratios[0], 2),
        "ratio_max": round(ratios[-1], 2),
    })

date = datetime.date.today().isoformat()
results_file.write_text(json.dumps({"date": date, "kernel": kernel, "rows": rows}, indent=2) + "\n")

table = "\n".join(
    '   "{case}", "{c_pps:,}", "{rust_pps:,}", "{ratio:.2f}", "{ratio_min:.2f} – {ratio_max:.2f}"'.format(**r)
    for r in rows)
document.write_text(f""".. SPDX-License-Identifier: GPL-2.0

===========
Performance
===========

.. This file is written by ``make bench``; do not edit it.

Packets per second through one queue pair and a TAP, guest's side played by
``tools/vtest``, which polls its rings. Both modules were loaded in the same boot of Linux
{kernel} in QEMU (TCG, 2 CPUs) and measured in turns, C first, {rows[0]['pairs']} pairs per
case; medians. Emulation makes the absolute numbers small: the ratio is what tells, and its
spread how far to trust it. Measured on {date} by ``make bench``.

.. csv-table::
   :header: "case", "C vhost_net", "rvhost", "ratio", "ratio, min – max"

{table}

In the RX cases the TAP is filled first and emptying it is measured, so that the generator is
not the limit. In the cases of both ways at once one thread of the client makes the packets of
both directions, and its CPU is part of what is measured.
""")
for r in rows:
    print("{case:32} C {c_pps:>9,}   rvhost {rust_pps:>9,}   x {ratio:.2f} ({ratio_min:.2f}-{ratio_max:.2f})".format(**r))
