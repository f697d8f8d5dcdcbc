"""Tasks with references: their data, their prompts, and how good completions are."""
