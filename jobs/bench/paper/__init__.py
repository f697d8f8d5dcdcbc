"""The paper's comparison, rebuilt: `admg-batch bench paper`.

What a drafter does to a prompt (tokens per target pass, acceptance, what its passes leave out) does
not depend on the clock: it is counted once, in fp32, for many prompts together, and every row is
checked to be plain decoding's. Only the measured speedup is timed. Every cell of the tables is kept
in one record as soon as it is finished; the results page is made from that record alone.
"""
