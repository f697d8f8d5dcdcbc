"""The data plane: rows, Parquet, Ray Data and run state. It knows nothing about flags or terminals.

A row's path: `source` (shards) -> `prepare` (prompt, key, anti-join) -> `dealing` (order) ->
Tokenize -> Decode -> Detokenize -> `sink` (one file, one commit) -> `manifest`. `run` wires it.
"""
