"""`admg-batch bench gpu`: what passes of a 13B shape cost on this device, and what that is worth.

Costs are measured with made-up weights, through the engine as it decodes; text with a real small
model that is widened to the same cost. Every part has a process of its own and a bound in time;
what does not fit in time or memory is left out by name.
"""
