"""The parts of the nightly summaries; `jobs.nightly_summaries` puts them together."""
