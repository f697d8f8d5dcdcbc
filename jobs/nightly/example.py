"""The nightly job file that users copy: `admg-batch nightly --example > nightly.toml`."""

EXAMPLE = """\
# Summaries of each day's documents. Try it by hand, then let cron or a Kubernetes CronJob call it:
#
#   admg-batch nightly --config nightly.toml --dry-run
#   admg-batch nightly --config nightly.toml
#
# The shards of input/date=2026-11-20/ become the summaries in output/date=2026-11-20/. Relative
# paths are relative to this file; s3://, gs:// and hdfs:// URIs work as well.
input = "input"
output = "output"
model = "demo"  # or a Hugging Face folder
id_column = "id"
keep = []  # columns to carry into the output
# allow_bad_shards = true  # leave out what cannot be read, and exit with 3

[nightly]
time_zone = "UTC"  # whose calendar says when a day has ended, as "Europe/Berlin"
days_back = 1  # 1: a tick does the last day that has ended
catch_up_days = 3  # look at so many days before it too: missed nights, shards that came late
# keep_days = 90  # remove output folders that are older

[summary]
text_column = "text"
# reference_column = "summary"  # a summary by people, for ROUGE
style = "auto"  # chat where the model has a chat template, few-shot for base models
# instruction = "Summarise the minutes below in five points."
long_documents = "map-reduce"  # in parts, then the parts' summaries; or "truncate"
# part_tokens = 2000  # of a part; otherwise as much as fits
# [[summary.examples]]  # your own for few-shot, as many as you like
# text = "..."
# summary = "..."

[quality]
sample_rows = 5000  # looked at for lengths, copying, loops and ROUGE
alarm_share = 0.01  # of empty summaries, or of those that end in a loop

[sampling]
max_tokens = 160

[draft]
drafter = "auto"

[engine]
actors = 1
"""
