#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Usage: sums.py STATS FDINFO DEV
Whether all agree on what a device has done that stands still: what the rvhost tool says as JSON, the
lines of fdinfo, and, in its process's /proc/PID/net/dev, the TAP's own counters."""
import json
import sys

FRAME, HEADER, BATCH = 64, 12, 64  # bytes of each frame and before it; packets


def lines(path, between):
    with open(path, encoding="utf-8") as f:
        return [line.strip().split(between, 1) for line in f if between in line]


def differences(device, fdinfo, interfaces):
    def same(what, a, b):
        return [] if a == b else [f"{what}: {a} is not {b}"]

    for queue in device["queues"]:
        q, counters = queue["queue"], queue["counters"]
        for name, value in counters.items():
            if isinstance(value, int):
                yield from same(f"{q} {name}", value, int(fdinfo[f"{q}-" + name.replace("_", "-")]))
        for name in "drops", "errors":
            reasons = sum(int(n) for key, n in fdinfo.items() if key.startswith(f"{q}-{name}-"))
            yield from same(f"{q} {name} by reason", reasons, int(fdinfo[f"{q}-{name}"]))
        sizes = sum(counters["batches_by_size"].values())
        yield from same(f"{q} batches by size", sizes, counters["batches"])
        # What the TAP received the guest has sent. What it sent the guest has, or it is in a batch that
        # waits for buffers.
        tap = interfaces[queue["netdev"]][0 if q == "tx" else 8:]
        waiting = tap[1] - counters["packets"]
        if q == "tx" or not 0 <= waiting <= BATCH:
            yield from same(f"{q} packets and the TAP's", counters["packets"], tap[1])
        bytes_ = counters["bytes"] - HEADER * counters["packets"] + FRAME * waiting
        yield from same(f"{q} bytes and the TAP's", bytes_, tap[0])
        if counters["packets"] < 1000:
            yield f"{q}: {counters['packets']} packets only"


def main():
    stats, fdinfo, dev = sys.argv[1:]
    with open(stats, encoding="utf-8") as f:
        device, = json.load(f)["devices"]
    interfaces = {name: [int(n) for n in rest.split()] for name, rest in lines(dev, ":") if "|" not in rest}
    wrong = list(differences(device, dict(lines(fdinfo, ":\t")), interfaces))
    print("\n".join(wrong) or "no number differs")
    sys.exit(bool(wrong))


main()
