#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""report.py BENCH DOCUMENTATION: from the runs in build/bench, results.json there, and
performance.rst and its plots in Documentation."""

import json
import pathlib
import platform
import statistics
import subprocess
import sys

import plot

bench, documentation = map(pathlib.Path, sys.argv[1:])
PARTS = ["instructions", "costs", "paths", "life", "native", "ladder"]

# What is read from a run: name, what it is called, unit, whether more is better.
FIGURES = {
    "worker": ("worker", "instructions", False),
    "whole": ("whole path", "instructions", False),
    "pps": ("packets", "per second", True),
    "p50_ns": ("p50", "ns", False),
    "p99_ns": ("p99", "ns", False),
    "life_ns": ("open, set up, close", "ns", False),
    "restart_ns": ("detach and attach", "ns", False),
    "kb_per_pair": ("memory per queue pair", "KB", False),
    "wakeups_per_second": ("idle wake-ups", "per second", False),
    "mbit": ("throughput", "Mbit/s", True),
    "rtt_ms": ("round trip", "ms", False),
}
# Of so many pairs one module must be better in all, or the row is not decided.
DECIDED = 0.85
LEVEL = 0.01


def read(part):
    """case -> figure -> module -> values in the order of the runs"""
    cases = {}
    file = bench / f"{part}.runs"
    for line in file.read_text().splitlines() if file.exists() else []:
        run = json.loads(line)
        if "tx_pps" in run:
            run["pps"] = run["tx_pps"] + run["rx_pps"]
        for figure in FIGURES:
            if figure in run:
                values = cases.setdefault(run["case"], {}).setdefault(figure, {})
                values.setdefault(run["module"], []).append(run[figure])
    return cases


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def winner(ratios, more):
    median = statistics.median(ratios)
    if abs(median - 1) < LEVEL:
        return "level"
    ours = sum(ratio > 1 if more else ratio < 1 for ratio in ratios) / len(ratios)
    if ours >= DECIDED:
        return "rvhost"
    return "C" if 1 - ours >= DECIDED else "undecided"


rows = []
for part in PARTS:
    for case, figures in read(part).items():
        for figure, modules in figures.items():
            row = {"part": part, "case": case, "figure": figure}
            row.update({module: spread(values) for module, values in modules.items()})
            pairs = list(zip(modules["c"], modules["rust"]))
            row["pairs"] = len(pairs)
            if all(c for c, _ in pairs):
                ratios = [rust / c for c, rust in pairs]
                row["ratio"] = spread(ratios)
                row["winner"] = winner(ratios, FIGURES[figure][2])
            rows.append(row)
index = {(row["part"], row["case"], row["figure"]): row for row in rows}


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=bench).stdout.strip()


cpu = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")), platform.machine())
about = {
    "cpu": cpu,
    "cpus": len(list(pathlib.Path("/sys/devices/system/cpu").glob("cpu[0-9]*"))),
    "kernel": (bench / "kernel").read_text().strip(),
    "qemu": output("qemu-system-x86_64", "--version").splitlines()[0].split("(")[0].strip(),
}
(bench / "results.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


# Targets: what it says, the target, the rows, the bound of the ratio (more: at least).
def native(*cases):
    return [("native", case, "pps") for case in cases]


def instructions(figure, *cases):
    return [("instructions", case, figure) for case in cases]


def on_netdev(part, figure, c):
    return [(part, f"{way} 64, {c} and netdev", figure) for way in ("tx", "rx")]


LATENCIES = [("native", f"{way} latency", figure) for way in ("tx", "rx") for figure in ("p50_ns", "p99_ns")]
TARGETS = [
    ("TX 64 B packets per second, one queue, TAP, native", ">= 2.0x", native("tx 64")),
    ("RX 64 B, likewise", ">= 2.0x", native("rx 64")),
    ("both ways at once, 64 B", ">= 2.0x", native("both 64")),
    ("1500 B each way", ">= 1.5x", native("tx 1500", "rx 1500")),
    ("64 KB GSO each way", ">= 1.2x", native("tx gso", "rx gso")),
    ("its CPU per byte (instructions of the worker)", "<= 0.8x", instructions("worker", "tx gso", "rx gso")),
    ("worker instructions per packet, TX and RX 64 B", "<= 0.5x", instructions("worker", "tx 64", "rx 64")),
    ("whole-path instructions per packet, TX and RX 64 B", "<= 0.7x", instructions("whole", "tx 64", "rx 64")),
    ("latency p50 and p99, kicked, idle queue", "<= 0.9x", LATENCIES),
    ("idle wake-ups per second", "0", [("costs", "idle", "wakeups_per_second")]),
    ("memory per queue pair", "<= 0.5x", [("costs", "memory", "kb_per_pair")]),
    ("netdev against C on a bridge, 64 B packets per second, TX and RX", ">= 3.0x", on_netdev("native", "pps", "bridge")),
    ("its instructions per packet, whole path", "<= 0.4x", on_netdev("paths", "whole", "bridge")),
    ("netdev against C on a MacVTap, 64 B packets per second", ">= 2.0x", on_netdev("native", "pps", "macvtap")),
]


def verdict(target, keys):
    """What was measured, and whether it is enough."""
    found = [index[key] for key in keys if key in index]
    if len(found) < len(keys):
        return "", "not measured"
    if target == "0":
        value = max(row["rust"]["max"] for row in found)
        return f"{value:.1f}", "met" if value == 0 else "**not met**"
    sign, bound = target.split()
    bound = float(bound.rstrip("x"))
    ratios = [row["ratio"]["median"] for row in found]
    met = all(ratio >= bound if sign == ">=" else ratio <= bound for ratio in ratios)
    return ", ".join(f"{ratio:.2f}" for ratio in ratios), "met" if met else "**not met**"


lost = [row for row in rows if row.get("winner") == "C"]
targets = [(text, target, *verdict(target, keys)) for text, target, keys in TARGETS]
targets.append(("no case of the tables below slower than C", "none", f"{len(lost)} of {len(rows)}",
                "met" if not lost else "**not met**"))


def show(figure, value):
    unit = FIGURES[figure][1]
    if unit == "ns":
        return f"{value / 1e3:,.1f} µs"
    if unit == "ms":
        return f"{value:.2f} ms"
    text = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    return f"{text} KB" if unit == "KB" else text


def measured():
    """When each part was, of which revision, as scripts/bench/run has noted."""
    notes = {part: bench / f"{part}.about" for part in PARTS}
    return [(part, *note.read_text().split()) if note.exists() else (part, "", "not measured")
            for part, note in notes.items()]


def csv_table(header, lines):
    if not lines:
        return "*Not measured this time.*\n"
    quoted = [", ".join('"' + str(cell).replace('"', '""') + '"' for cell in line) for line in [header, *lines]]
    return ".. csv-table::\n   :header: " + quoted[0] + "\n\n" + "\n".join("   " + line for line in quoted[1:]) + "\n"


def table(part, cases=None):
    lines = []
    for row in rows:
        if row["part"] != part or cases is not None and row["case"] not in cases:
            continue
        name, figure = FIGURES[row["figure"]][0], row["figure"]
        ratio = row.get("ratio")
        shown = "" if not ratio else f"{ratio['median']:.2f}"
        if ratio and row["pairs"] > 1:
            shown += f" ({ratio['min']:.2f} – {ratio['max']:.2f})"
        lines.append([f"{row['case']}, {name}", show(figure, row["c"]["median"]), show(figure, row["rust"]["median"]),
                      shown, row.get("winner", "level")])
    return csv_table(["case", "C vhost_net", "rvhost", "rvhost / C", "better"], lines)


(documentation / "plots").mkdir(exist_ok=True)


def chart(name, title, unit, wanted, scale=1.0, modules=("c", "rust"), note=""):
    """wanted: (label, part, case, figure). Draws what was measured, and returns its directive."""
    groups = []
    for label, *key in wanted:
        row = index.get(tuple(key))
        if row:
            groups.append((label, [row[m]["median"] * scale for m in modules],
                           [(row[m]["min"] * scale, row[m]["max"] * scale) if row["pairs"] > 1 else None for m in modules],
                           row.get("ratio", {}).get("median")))
    if not groups:
        return ""
    names = {"c": "C vhost_net", "rust": "rvhost", "qemu": "QEMU (vhost=off)"}
    plot.bars(documentation / "plots" / f"{name}.svg", title, unit, [names[m] for m in modules], groups, note)
    return f".. image:: plots/{name}.svg\n   :alt: {title}\n"


WAYS = [("tx", "TX"), ("rx", "RX")]
SIZES = [("64", "64 B"), ("256", "256 B"), ("1500", "1500 B")]
BOTH = [*WAYS, ("both", "both ways")]
LINE = "The line over a bar's end: least to most of all runs."
# Measured with the life of a device, shown beside the native rates
EMULATED = ["tx 64", "rx 64", "both 64"]
# Counted with the costs, shown apart
IDLE = ["idle", "memory"]


def sized(part, figure, ways, sizes=SIZES):
    return [(f"{name}, {text}", part, f"{way} {size}", figure) for way, name in ways for size, text in sizes]


def cost_of(things):
    return [(f"{name}, {thing}", "costs", f"{way} {thing}", "worker") for way, name in WAYS for thing in things]


def devices():
    for way, name in WAYS:
        yield (f"{name}, 1 device", "native", f"{way} 64", "pps")
        for count in (8, 64):
            yield (f"{name}, {count} devices", "native", f"{way} 64 {count} devices", "pps")


def ladder_table():
    lines = []
    for row in rows:
        if row["part"] == "ladder":
            figure = row["figure"]
            lines.append([f"{row['case']}, {FIGURES[figure][0]}",
                          *[show(figure, row[module]["median"]) for module in ("c", "rust", "qemu")],
                          f"{row['ratio']['median']:.2f} ({row['ratio']['min']:.2f} – {row['ratio']['max']:.2f})",
                          row["winner"]])
    return csv_table(["", "C vhost_net", "rvhost", "QEMU (vhost=off)", "rvhost / C", "better"], lines)


losses = "\n".join(
    f"- {row['part']}: {row['case']}, {FIGURES[row['figure']][0]}: {row['ratio']['median']:.2f} of C" for row in lost)
PER_PACKET = "instructions per packet; fewer is better"
per_second = "packets per second; more is better"

document = f""".. SPDX-License-Identifier: GPL-2.0

===========
Performance
===========

.. This file is written by ``make bench``; do not edit it. Words by hand: performance-notes.rst.

rvhost against C vhost_net of the same kernel, on the same work, in the same boot: Linux {about['kernel']},
{about['qemu']}, on a machine with {about['cpus']} × {about['cpu']}. ``make bench`` repeats all of it.

{csv_table(["part", "date", "revision"], measured())}
Targets
=======

{csv_table(["figure, against C vhost_net", "target", "measured", "verdict"], targets)}
Where C is better:

{losses or "nowhere."}

.. include:: performance-notes.rst

The instruments
===============

**Instructions** (``make bench-quick``). QEMU emulates one CPU whose clock counts instructions
(``-icount shift=0,sleep=off``). ``vtest bench --what lockstep`` plays the driver: it publishes 64
packets (8 large ones), kicks if it is asked to, and gives the CPU away until all are used.
*Worker* is the CPU time of the module's threads. *Whole path* is everything the machine does from
before the driver publishes, or the source sends, until the driver sees the batch used: kick, wake-ups,
context switches, worker, and the stack behind the TAP. For RX the cost of the same sending to a TAP
that nobody reads is taken off. Two boots agree to 0.1 %, so each case runs once. Each byte
copied counts as an instruction here: judge by 64 B first. Packets to the network are dropped by the
stack, as no protocol wants them. Counted in the same machine, as waiting takes no time there: memory, what
comes free when 24 of 32 devices are closed, which have carried packets both ways (TAPs, rings and
guest memory stay); idle wake-ups, how often the threads ran in two seconds without work.

**Native** (``scripts/bench/native``). User-Mode Linux with two CPUs runs real code at real speed:
the client has one CPU, all threads of the module the other (C has one per queue pair, rvhost
two). TX keeps a ring of 256 full. RX fills the TAP with 4,096 packets while there are no buffers, and
measures how long emptying it takes: no source can be the limit. Both ways at once is the same,
with as many packets sent meanwhile. Runs alternate (C, rvhost, C, …); medians, and the least and most of the
pairs' ratios. *Undecided*: the pairs disagree. User access is a page walk there and disabling
interrupts a system call, so ratios need the instruction counts beside them.

**Whole system** (``scripts/bench/ladder``). In QEMU (TCG, 2 CPUs) a nested KVM guest has three
network cards, on C vhost_net, rvhost and QEMU's own virtio-net, each on a TAP (no e1000: KVM cannot
emulate its registers on QEMU's emulated SVM, see the script). iperf3 and
``ping -f`` go from the host to each in turns.

**Life** (``scripts/bench/run life``). Start and stop: median time of a device's whole life, from open to close
with a TAP attached in between, and of detaching and attaching the TAP of both queues.
Busy polling is measured here as well, in QEMU (TCG, 2 CPUs): in User-Mode Linux the clock that ends it ticks
every 10 ms. So are the rates of 64 B packets: slower than native, with user access and interrupts as real
CPUs have them, and steadier where the machine is shared.

How many packets per second?
============================

{chart("rate", "How many packets per second does one queue pair carry?", per_second, sized("native", "pps", BOTH), note=LINE)}
{chart("rate-gso", "How many 64 KB packets per second does one queue pair carry?", per_second, sized("native", "pps", BOTH, [("gso", "64 KB GSO")]), note=LINE)}
{table("native", [row["case"] for row in rows if row["part"] == "native" and not any(word in row["case"] for word in ("device", "latency", ","))])}
The same client on two emulated CPUs:

{table("life", EMULATED)}
What does a packet cost?
========================

{chart("worker", "How many instructions does the worker spend on a packet?", PER_PACKET, sized("instructions", "worker", WAYS))}
{chart("whole", "How many instructions does the whole path take for a packet?", PER_PACKET, sized("instructions", "whole", WAYS))}
{table("instructions")}
How do packets get to a network card?
=====================================

64 B packets of UDP over IPv4 between a guest and a card. C vhost_net goes by a TAP in a bridge with the card, or by a
MacVTap on it; rvhost by the same (the first row of three), by a MacVLAN on it, or by the card itself
(*netdev*; ``backends.rst``). Instructions are counted as above. For RX, packets come through a veth pair, one end of
which is the card; what is taken off is the cost of sending the same to a card that drops it. To send to,
the card is such a one (dummy). RX per second, in User-Mode Linux, is how fast what waits is taken, as
above: the way up to there is in the instructions only.

{chart("paths", "What does a packet cost between guest and network card?", "instructions per packet, whole path; fewer is better", [(f"{name}, C on {c}, rvhost on {rust}", "paths", f"{way} 64, {c} and {rust}", "whole") for way, name in WAYS for c in ("bridge", "macvtap") for rust in (c, "macvlan", "netdev")])}
{table("paths")}
{table("native", [row["case"] for row in rows if row["part"] == "native" and "," in row["case"]])}
How long does a lone packet take?
=================================

One packet at a time through a queue whose thread sleeps, 100 µs apart, until the polling driver sees it
used. In instructions: the cases "batch 1" below.

{chart("latency", "How long does one packet take through an idle queue?", "µs; less is better", [(f"{name}, {text}", "native", f"{way} latency", figure) for way, name in WAYS for figure, text in (("p50_ns", "p50"), ("p99_ns", "p99"))], 1e-3, note=LINE)}
{table("native", [row["case"] for row in rows if row["part"] == "native" and "latency" in row["case"]])}
What does a guest see?
======================

{chart("ladder-tcp", "How fast is TCP between host and guest?", "Mbit/s in an emulated machine; more is better", [(case, "ladder", case, "mbit") for case in ("TCP to the guest", "TCP from the guest")], modules=("c", "rust", "qemu"), note=LINE)}
{chart("ladder-rtt", "How long does a ping to the guest take?", "ms in an emulated machine; less is better", [("round trip", "ladder", "request and response", "rtt_ms")], modules=("c", "rust", "qemu"), note=LINE)}
{ladder_table()}
What do features, batches, rings and memory tables cost?
========================================================

Of 64 B packets, in instructions.

{chart("features", "What do features of the ring cost?", PER_PACKET + " (worker)", [(f"{name}, plain", "instructions", f"{way} 64", "worker") for way, name in WAYS] + cost_of(["indirect", "no event index", "in order"]))}
{chart("batch", "What does a packet cost in smaller batches?", PER_PACKET + " (worker)", cost_of([f"batch {n}" for n in (1, 4, 16, 64)]))}
{chart("ring", "What does the size of the ring cost?", PER_PACKET + " (worker)", cost_of([f"ring {n}" for n in (64, 256, 1024)]))}
{chart("regions", "What does a large memory table cost?", PER_PACKET + " (worker)", cost_of([f"regions {n}" for n in (1, 8, 64, 509)]))}
{table("costs", [row["case"] for row in rows if row["part"] == "costs" and row["case"] not in IDLE])}
How do many devices share a CPU?
================================

{chart("devices", "How many packets per second do many devices carry together?", per_second, list(devices()), note=LINE)}
{table("native", [row["case"] for row in rows if row["part"] == "native" and "device" in row["case"]])}
What does a device cost that carries nothing?
=============================================

{chart("memory", "How much memory does a queue pair take?", "KB; less is better", [("queue pair", "costs", "memory", "kb_per_pair")], note=LINE)}
{table("costs", IDLE)}
{table("life", ["start"])}
What does busy polling gain?
============================

On two emulated CPUs. Busy-polled: ``VHOST_SET_VRING_BUSYLOOP_TIMEOUT`` of 50 µs for packets per second, of 200 µs
for latency. The rates without are above, those of the same client on two emulated CPUs.

{table("life", [row["case"] for row in rows if row["part"] == "life" and row["case"] not in [*EMULATED, "start"]])}"""
(documentation / "performance.rst").write_text("\n".join(line.rstrip() for line in document.splitlines()) + "\n")

for text, target, measured, met in targets:
    print(f"{text:52} {target:>8}   {measured:24} {met.strip('*')}")
