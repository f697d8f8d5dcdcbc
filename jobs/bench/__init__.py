"""Benchmarks: plain decoding, our drafters and other engines on the same prompts, in one run.

Every system is one child process that loads its model once. For each cell (workload, batch,
temperature) all systems are warmed up, then timed in turn, A B C A B C ..., so that a machine that
slows down slows all of them; what is reported are ratios to plain decoding of the same turn.
"""
