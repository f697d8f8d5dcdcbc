"""The options of `admg-batch run` that say how drafts are made, verified and audited."""

from __future__ import annotations

from typing import get_args

import click

from admg.config import DraftConfig, Drafter, DraftWeights, Verification
from admg.draft_rules import WindowRule
from jobs.option_kinds import layers, option, share, switch

DRAFT = "Drafting (for speed; the text stays the same unless --verification token or block)"
_DEFAULTS = DraftConfig()
_EXIT = _DEFAULTS.exit

draft_options = [
    option(
        DRAFT,
        "--drafter",
        type=click.Choice(get_args(Drafter)),
        help="Self-speculation, lookup in the text, what pays (auto), or plain decoding.  "
        "[default: auto; admg where options say how it drafts]",
    ),
    option(
        DRAFT,
        "--plan",
        metavar="FILE",
        help="A plan file of `admg-batch calibrate`, or a published set, as "
        "draft-verify:llama-2-13b; options override it.",
    ),
    option(
        DRAFT,
        "--plan-any-model",
        is_flag=True,
        callback=switch,
        help="Take the plan though it was made for another model.",
    ),
    option(
        DRAFT, "--draft-tokens", type=int, help="Longest draft.", default=_DEFAULTS.draft_tokens
    ),
    option(DRAFT, "--drop-layers", type=int, help="Drop this many attention layers."),
    option(
        DRAFT,
        "--similarity-threshold",
        type=float,
        help="Drop attention layers whose similarity is this or above.",
    ),
    option(
        DRAFT,
        "--drop-quantile",
        type=float,
        help="Drop this share of the attention layers.",
        default=_DEFAULTS.drop.quantile,
    ),
    option(
        DRAFT,
        "--drop-attention",
        metavar="LAYERS",
        callback=layers,
        help="Drop these attention layers, whatever the prompt, as 8,9,12.",
    ),
    option(
        DRAFT,
        "--drop-mlps",
        metavar="LAYERS",
        callback=layers,
        help="Drop the MLPs of these layers as well.  [default: none]",
    ),
    option(
        DRAFT,
        "--window-share",
        metavar="SHARE",
        callback=share,
        help="Limit this share of the (layer, KV head) pairs to the first 4 keys and a window; "
        "auto, with --drafter auto: the share that pays.",
    ),
    option(
        DRAFT,
        "--window-threshold",
        type=float,
        help="Limit the KV heads whose limit leaves this similarity or more.",
    ),
    option(
        DRAFT,
        "--window",
        type=int,
        help="Last keys that a limited head reads.",
        default=WindowRule(share=0.0).window,
    ),
    option(
        DRAFT,
        "--exit-threshold",
        type=float,
        help="End a draft below this confidence; adapts by itself.  [default: off]",
    ),
    option(
        DRAFT,
        "--exit-target",
        type=float,
        help="The accepted share that the exit's threshold is moved towards.",
        default=_EXIT.target,
    ),
    option(
        DRAFT,
        "--exit-step",
        type=float,
        help="How far it moves, before the decay below; 0 leaves it.",
        default=_EXIT.step,
    ),
    option(
        DRAFT,
        "--exit-every",
        type=int,
        help="Verifications from one move to the next.",
        default=_EXIT.every,
    ),
    option(
        DRAFT,
        "--exit-match-decay",
        type=float,
        help="What the accepted share so far weighs against the last draft's.",
        default=_EXIT.match_decay,
    ),
    option(
        DRAFT,
        "--exit-threshold-decay",
        type=float,
        help="What the threshold so far weighs against where it is moved.",
        default=_EXIT.threshold_decay,
    ),
    option(
        DRAFT,
        "--exit-carry/--no-exit-carry",
        help="Begin a row with the threshold of the row before, as Draft & Verify's authors do: "
        "its statistics then depend on the order of rows.",
        default="off",
    ),
    option(
        DRAFT,
        "--similarity",
        type=click.Choice(["mean", "last", "decay"]),
        help="How the prompt's tokens count in a layer's similarity.",
        default=_DEFAULTS.similarity,
    ),
    option(
        DRAFT,
        "--hole-filling/--no-hole-filling",
        help="Put the running mean of a dropped layer's output in its place.",
        default="on" if _DEFAULTS.hole_filling else "off",
    ),
    option(
        DRAFT,
        "--remake-after",
        type=int,
        help="Choose layers and heads anew after this many verified tokens.  [default: never]",
    ),
    option(
        DRAFT,
        "--remake-every",
        type=int,
        help="Go on choosing them anew, as often as this many verified tokens.  [default: never]",
    ),
    option(
        DRAFT,
        "--draft-weights",
        type=click.Choice(get_args(DraftWeights)),
        help="Draft with the model's matrices in 8 or 4 bits: pays in small batches.",
        default=_DEFAULTS.draft_weights,
    ),
    option(
        DRAFT,
        "--lookup-store-tokens",
        type=int,
        help="Tokens of finished rows that an actor's lookup copies from; 0 is off.",
        default=_DEFAULTS.lookup_store_tokens,
    ),
    option(
        DRAFT,
        "--lookup-tail",
        type=int,
        help="Tokens that lookup may add to what the model has drafted; 0 is off.",
        default=_DEFAULTS.lookup_tail,
    ),
    option(
        DRAFT,
        "--verification",
        type=click.Choice(get_args(Verification)),
        help="Shared noise (plain decoding's text), or rejection by token or block (its law only: "
        "at temperatures above 0, with --drafter auto or ngram, texts then depend on batch, actors "
        "and time, and a row that is decoded again may get another one).",
        default=_DEFAULTS.verification,
    ),
    option(
        DRAFT,
        "--audit",
        metavar="SHARE",
        type=float,
        help="Decode this share of the rows again plainly, to compare texts and times.",
        default="0",
    ),
    option(
        DRAFT,
        "--explain",
        is_flag=True,
        callback=switch,
        help="At the end print what --drafter auto went by: measured costs, and its choices.",
    ),
]
