"""What the page says that is not a number of a run: settings, readings, and what is missing."""

SETTING = """\
All systems decode the same prompts with the same noise (shared-noise verification), so a row's text
is plain decoding's whatever drafts it, and the quality of all systems is that of the model. ± is
the standard error, intervals are 95 %, both by the bootstrap over prompts; differences are
resampled in pairs. Of few prompts (the table above; fewer in ablations and timed turns) such
intervals come out too narrow. Where a system is several sets, these are resampled too. Tokens per
target pass count recovered and bonus tokens and leave the prefill out. What a draft pass saves is
in bytes of bf16 for one sequence. The controller's choices go by measured time, so its row depends
on the machine and on how many sequences were counted together; it changes how it drafts while it
goes, so that what it left out is not told. Where drafters decode fewer tokens than plain decoding
(the table above), their rows are compared with its beginning. Random sets are drawn anew for each
prompt; the best fixed set in hindsight is chosen on the very prompts that it is judged on (in the
controls for each law, in the main tables for both), so it is more than a fixed set can be expected
to give."""

MODELLED = """\
Computed, not measured: a roofline of bandwidth and operations (`jobs/modelled.py` has the formula),
bf16, each row as one of a batch of sequences like it, at its own context. In a batch a layer's
weights are saved only where all sequences drop it, so that per-input sets save less than one set
for all. The controller is left out, for it changes how it drafts. A small model on a fast GPU is
bound by launches, which the roofline does not know. "here" is this machine by its measured
peaks."""

ROBUST = """\
Tokens per target pass; off the diagonal also the difference to what was calibrated on that text. In
brackets the attention layers dropped on average, for a calibration that drops less commits more,
and the modelled speedup on an H200 at batch 1 and 32."""

READING = """\
ADMG-style, our reading: the paper's algorithm listing, threshold values and two structural rules
were not available to us. A layer whose mean cosine between its attention's input and output (in the
residual stream, over the prompt) is at or above a threshold is dropped. Rule 1, as we read it: a
kept layer between two dropped ones is dropped too if it is at most a margin (0.005) below the
threshold. Rule 2, as we read it: so is the run of layers before the last one. The first and the
last layer stay. Each of these is a parameter; their ablations are above where they were run."""

MISSING = """\
- The paper's own numbers: its result tables and the drafting thresholds were not available, so
  nothing here is set beside them. Speedups published for Draft & Verify and SWIFT come from loops
  bound by kernel launches at batch 1, which this engine is not.
- Models other than the one that is named above: the same command with `--model` runs Llama-2-13B,
  -Chat and CodeLlama-13B, which the paper used.
- Draft & Verify as its authors ran it: their search tries 1,000 sets on longer texts, this one as
  many as `--trials` says on few. Their exit's threshold goes on from one prompt to the next: with
  steps of a thousandth it hardly moves within one completion, so that where it is not carried on
  the exit is nearly a fixed 0.6. The carried one goes over all rows of a text, both laws together.
- pass@1 by several samples: each prompt has one completion here.
- SWIFT itself: what is compared is its idea, a set searched for while serving, by our own search
  and without its token tree. Its rows depend on the order of the prompts.
- XSum's own documents, where the source above names others in their place."""

HOLDS = """\
Losslessness does not depend on a model's size; nearly all else may. Published sets drop 22 to 24 of
the 40 attention layers of 13B models (and 10 to 12 MLPs), and what dropping attention saves depends
on how many keys and values there are to read. {model}Of this run, in tokens per target pass
(greedy, all texts; differences with their 95 % intervals):"""
