"""Measures Bullpen on this machine: latencies people feel, throughput, memory, idle CPU.

`./dev bench` prints a table and writes `artifacts/bench.json`. Figures are for comparing two
states of the project in one run on one machine; they are never asserted in a test.
"""
