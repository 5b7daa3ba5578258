#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""gate.py RUNS RESULTS BASELINE check|write: instructions per packet of both modules, and
whether rvhost's have grown over the baseline's."""

import json
import pathlib
import sys

FIGURES = ["worker", "whole"]
MARGIN = 1.05

runs_file, results_file, baseline_file = map(pathlib.Path, sys.argv[1:4])
cases = {}
for line in runs_file.read_text().splitlines():
    run = json.loads(line)
    cases.setdefault(run["case"], {})[run["module"]] = {name: run[name] for name in FIGURES}
results_file.write_text(json.dumps(cases, indent=2) + "\n")
now = {case: {name: round(by_module["rust"][name]) for name in FIGURES} for case, by_module in cases.items()}

if sys.argv[4] == "write":
    baseline_file.write_text(json.dumps(now, indent=2) + "\n")
baseline = json.loads(baseline_file.read_text())

print("instructions per packet    C vhost_net      rvhost   rvhost / C   baseline")
passed, grown = 0, []
for case, by_module in cases.items():
    for name in FIGURES:
        c, rust = by_module["c"][name], by_module["rust"][name]
        limit = baseline.get(case, {}).get(name)
        print(f"{case + ', ' + name:24} {c:13,.0f} {rust:11,.0f} {rust / c:12.2f} {limit or '-':>10}")
        if limit is None:
            grown.append(f"error: {case}, {name}: not in the baseline")
        elif rust > limit * MARGIN:
            grown.append(f"error: {case}, {name}: {rust:,.0f} instructions, {rust / limit - 1:+.1%} over the baseline")
        else:
            passed += 1
for line in grown:
    print(line)
if grown:
    print(f"If that is meant to be: BASELINE=write make bench-quick, and commit {baseline_file.name}.")
print(f"{passed} passed, {len(grown)} failed")
sys.exit(bool(grown))
