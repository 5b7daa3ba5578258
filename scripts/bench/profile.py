#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""profile.py BLOCKS KALLSYMS RUNS: instructions per packet by function, C and rvhost."""

import bisect
import json
import pathlib
import re
import subprocess
import sys

blocks_file, symbols_file, runs_file = map(pathlib.Path, sys.argv[1:])
KERNEL = 1 << 63
LEAST = 1

symbols = []
for line in symbols_file.read_text().splitlines():
    addr, kind, name, *module = line.split()
    if kind in "tTwW":
        symbols.append((int(addr, 16), name, module[0] if module else ""))
symbols.sort()
starts = [symbol[0] for symbol in symbols]
packets = [json.loads(line)["packets"] for line in runs_file.read_text().splitlines()]

costs = {}
for line in blocks_file.read_text().splitlines():
    addr, insns, *counts = line.split()
    addr = int(addr, 16)
    if addr < KERNEL:
        continue
    _, name, module = symbols[bisect.bisect_right(starts, addr) - 1]
    cost = costs.setdefault((name, module), [0.0, 0.0])
    for phase, count in enumerate(counts):
        cost[phase] += int(insns) * int(count) / packets[phase]

names = [name for name, _ in costs]
plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
plain = dict(zip(names, re.sub(r"\[[0-9a-f]{12,}\]", "", plain.stdout).splitlines()))
total = [sum(cost[phase] for cost in costs.values()) for phase in (0, 1)]


def show(cost, what):
    print(*[f"{cost[phase]:11.1f} {cost[phase] / total[phase]:6.1%}" for phase in (0, 1)], "", what)


print("instructions per packet")
print("C vhost_net                 rvhost   function")
rest = [0.0, 0.0]
for (name, module), cost in sorted(costs.items(), key=lambda item: -max(item[1])):
    if max(cost) < LEAST:
        rest = [rest[phase] + cost[phase] for phase in (0, 1)]
    else:
        show(cost, f"{plain[name]} {module}")
show(rest, f"functions below {LEAST}")
show(total, "all")
