"""Rounds played whole on the device: the host's side of them.

Shapes: B sequences, M most draft tokens of a round, L layers, D hidden size.

The host says what the round is (`RoundKey`), writes the sequences' numbers, plays it, and reads one
small result. Rounds that need what the device's do not have (verification by rejection, repetition
penalties, plans that are being made anew, lookup behind the model's own drafts, more stop tokens
than there is room for) go to the host's rounds, one by one; the tokens are the same.
"""

from __future__ import annotations

import time

import torch

from admg.config import DraftConfig, EngineConfig
from admg.controller import LOOKUP_LIMITS
from admg.cuda_graphs import CudaRecorder, GraphReport, RoundGraphs, bucket
from admg.device_round import DeviceRound, RoundKey
from admg.drafters.draft import Draft
from admg.drafters.self_draft import SelfDrafter
from admg.drafting import Drafted, Drafting
from admg.invariants import check_round
from admg.kv_arena import KVArena
from admg.model import Transformer
from admg.noise import signed
from admg.pass_cost import PassCost
from admg.places import Places
from admg.plan import DraftPlan
from admg.plan_classes import PlanClasses
from admg.round_buffers import (
    ACCEPTED,
    DRAFTED,
    FINITE,
    HEAD,
    MOST_STOPS,
    Means,
    RoundBuffers,
    Sizes,
)
from admg.rounds import HostRounds, Played
from admg.row_laws import LawKind
from admg.sequence import Sequence
from admg.verification import Verdict


def plays_whole(config: EngineConfig, device: torch.device) -> bool:
    """Whether rounds are for the device; never where the drafts' configuration is the host's."""
    if config.draft.by_rejection or config.draft.lookup_tail:
        return False
    return config.rounds == "device" or (config.rounds == "auto" and device.type == "cuda")


class DeviceRounds:
    """Plays what it can on the device, and the rest by `host`.

    Args:
        model: the target.
        arena: with spare slots.
        host: for the rounds that are not served here.
        config: the engine's.
        longest: most slots of a sequence.
        cost: of target passes; it divides a round's time between drafting and verification.
    """

    def __init__(
        self,
        model: Transformer,
        arena: KVArena,
        host: HostRounds,
        config: EngineConfig,
        longest: int,
        cost: PassCost,
    ) -> None:
        draft, c, device = config.draft, model.config, model.device
        self._arena, self._host, self._cost, self._check = arena, host, cost, config.check
        self._most = config.max_num_seqs
        self._model = self._drafter = model
        self._drafts = max(draft.draft_tokens, *LOOKUP_LIMITS)
        sizes = Sizes(config.max_num_seqs, self._drafts, c.num_layers, c.num_kv_heads)
        self._buffers = RoundBuffers.new(sizes, device)
        self._host_side = RoundBuffers.new(sizes, "cpu", pinned=device.type == "cuda")
        learns = draft.self_drafts and draft.hole_filling
        means = Means(None, None)
        if learns:
            limits = draft.windows is not None
            means = Means.new(
                config.max_num_seqs, c.num_layers, c.hidden_size, device, limits=limits
            )
        self._places = Places(means, config.max_num_seqs, draft.hole_filling_decay)
        self._classes = PlanClasses()
        self._round = DeviceRound(
            model,
            arena,
            self._buffers,
            means,
            decay=draft.hole_filling_decay,
            window=draft.windows.window if draft.windows is not None else None,
            longest=longest,
        )
        recorder = CudaRecorder(device) if device.type == "cuda" else None
        self._graphs = RoundGraphs(lambda key: self._round.play(key, self._drafter), recorder)
        self._plans: list[DraftPlan | None] = []

    @property
    def report(self) -> GraphReport:
        """What has been captured and replayed."""
        return self._graphs.report

    def play(
        self,
        sequences: list[Sequence],
        drafted: Drafted,
        drafting: Drafting | None,
        context: float,
        config: DraftConfig,
    ) -> Played:
        """One round; see `Rounds`."""
        if not self._serves(sequences, drafted):
            return self._host.play(sequences, drafted, drafting, context, config)
        start = time.perf_counter()
        if drafting is not None:
            drafting.look_up(sequences, drafted)
        given = [list(tokens) for tokens in drafted.draft.tokens]
        own = drafted.choice.own
        if max(own) and drafting is not None:
            self._drafter = drafting.own_model or self._model
        longest = max(n + len(g) for n, g in zip(own, given, strict=True))
        key = self._key(sequences, given, own, 1 + longest)
        rows = self._run(sequences, given, own, key)
        verdicts = self._read(sequences, drafted.draft, rows, key)
        if self._check:
            check_round(sequences, drafted.draft, self._arena, False)
        seconds = time.perf_counter() - start
        return self._timed(verdicts, drafted, drafting, sequences, context, seconds)

    def verify_alone(self, sequences: list[Sequence], draft: Draft, config: DraftConfig) -> None:
        """One target pass over drafts, to be timed."""
        given = draft.tokens
        key = self._key(sequences, given, [0] * len(given), 1 + max(map(len, given)))
        self._run(sequences, given, [0] * len(given), key)

    def draft_alone(self, sequences: list[Sequence], drafting: Drafting) -> None:
        """One self-draft pass, to be timed."""
        self._drafter = drafting.own_model or self._model
        ones = [1] * len(sequences)
        nothing: list[list[int]] = [[] for _ in sequences]
        self._run(sequences, nothing, ones, self._key(sequences, nothing, ones, 0))

    def _serves(self, sequences: list[Sequence], drafted: Drafted) -> bool:
        if max(drafted.choice.lookup) > self._drafts:
            return False
        return all(
            s.request.sampling.repetition_penalty == 1
            and s.learned.similarity_sums is None
            and s.learned.unit_sums is None
            and len(s.stops) <= MOST_STOPS
            for s in sequences
        )

    def _key(
        self, sequences: list[Sequence], given: list[list[int]], own: list[int], tokens: int
    ) -> RoundKey:
        """What the round is; `tokens` of each sequence in its verification."""
        drawing = [s for s, n in zip(sequences, own, strict=True) if n]
        plans = [s.plan for s in drawing if s.plan is not None]
        exits = any(s.exit is not None for s in drawing)
        params = [s.request.sampling for s in sequences]
        bans = any(len(s.completion) < s.request.sampling.min_tokens and s.stops for s in sequences)
        return RoundKey(
            bucket(len(sequences), self._most),
            max(own),
            tokens,
            LawKind.of(params, bans),
            self._classes.of(plans, exits=exits),
            learns=any(s.learned.filling is not None for s in sequences),
        )

    def _run(
        self, sequences: list[Sequence], given: list[list[int]], own: list[int], key: RoundKey
    ) -> list[list[int]]:
        """Play the round; the result's rows of the sequences, once they are here."""
        host, device = self._host_side, self._buffers
        self._write(sequences, given, own)
        host.send(device, ("whole", "real", "stops", "given"))
        plans = [s.plan for s in sequences]
        if len(plans) != len(self._plans) or any(
            a is not b for a, b in zip(plans, self._plans, strict=True)
        ):
            self._write_plans(plans)
            host.send(device, ("kept", "kept_mlps", "limited"))
            self._plans = plans
        self._graphs.play(key)
        device.send(host, ("result",))
        if device.result.is_cuda:
            torch.cuda.current_stream(device.result.device).synchronize()
        return host.result[: len(sequences)].tolist()

    def _write(self, sequences: list[Sequence], given: list[list[int]], own: list[int]) -> None:
        """A round's numbers into the host's side of the buffers; other rows become padding."""
        host, vocab = self._host_side, self._model.config.vocab_size
        places = self._places.give(sequences)
        params = [s.request.sampling for s in sequences]
        learned = [s.learned for s in sequences]
        columns: dict[str, list[float]] = {
            "present": [1] * len(sequences),
            "token": [s.tokens[-1] for s in sequences],
            "length": [len(s.tokens) for s in sequences],
            "start": [s.extent.start for s in sequences],
            "capacity": [s.extent.capacity for s in sequences],
            "limit": [*own],
            "given": [len(g) for g in given],
            "base": [signed(s.base) for s in sequences],
            "position": [len(s.tokens) - s.prompt_length for s in sequences],
            "min_tokens": [p.min_tokens for p in params],
            "top_k": [min(p.top_k or vocab, vocab) for p in params],
            "temperature": [p.temperature for p in params],
            "top_p": [p.top_p for p in params],
            "min_p": [p.min_p for p in params],
            "exit_below": [0.0 if s.exit is None else s.exit.threshold for s in sequences],
            "filling_weight": [0.0 if k.filling is None else k.filling.weight for k in learned],
            "left_out_weight": [0.0 if k.left_out is None else k.left_out.weight for k in learned],
        }
        for name, values in columns.items():
            host.fill(name, values)
        host.fill("place", places, rest=self._places.nobody)
        host.fill_rows("stops", [s.stops for s in sequences])
        host.fill_rows("given", given)

    def _write_plans(self, plans: list[DraftPlan | None]) -> None:
        """The plans' masks into the host's side of the buffers."""
        host = self._host_side
        host.kept.fill_(True)
        host.kept_mlps.fill_(True)
        host.limited.fill_(False)
        for i, plan in enumerate(plans):
            if plan is None:
                continue
            host.kept[list(plan.dropped), i] = False
            host.kept_mlps[list(plan.dropped_mlps), i] = False
            for layer, heads in enumerate(plan.windowed):
                host.limited[layer, i, list(heads)] = True

    def _read(
        self, sequences: list[Sequence], draft: Draft, rows: list[list[int]], key: RoundKey
    ) -> list[Verdict]:
        """What the result says; fills in the drafts and ages what the sequences have learned."""
        verdicts = []
        for i, (s, row) in enumerate(zip(sequences, rows, strict=True)):
            accepted, drafted, finite = row[ACCEPTED], row[DRAFTED], row[FINITE]
            targets = row[HEAD : HEAD + key.tokens]
            tokens = row[HEAD + key.tokens : HEAD + key.tokens + drafted]
            draft.add(i, tokens[len(draft.tokens[i]) :], SelfDrafter.source)
            verdicts.append(Verdict(tokens[:accepted], targets[accepted] if finite else None))
            self._places.taught(s, accepted + 1 if finite else 0)
        return verdicts

    def _timed(
        self,
        verdicts: list[Verdict],
        drafted: Drafted,
        drafting: Drafting | None,
        sequences: list[Sequence],
        context: float,
        seconds: float,
    ) -> Played:
        """The round's time, divided by what its verification is known to cost."""
        lengths = [len(tokens) for tokens in drafted.draft.tokens]
        if drafting is None or not max(drafted.choice.own) or not self._cost.measured:
            return Played(verdicts, 0.0, seconds)
        tokens = 1 + sum(lengths) / len(lengths)
        verifying = min(self._cost.estimate(len(lengths), context, tokens), seconds)
        drafting.observe_own(sequences, drafted.draft, context, seconds - verifying)
        return Played(verdicts, seconds - verifying, verifying)
