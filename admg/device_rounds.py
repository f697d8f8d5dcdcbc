"""Rounds played whole on the device: the host's side of them.

Shapes: B sequences, M most draft tokens of a round, L layers, D hidden size.

The host says what the round is (`RoundKey`), writes the sequences' numbers, plays it, and reads one
small result. Rounds that need what the device's do not have (verification by rejection, repetition
penalties, plans that are being made anew, lookup behind the model's own drafts, more stop tokens
than there is room for) go to the host's rounds, sequence by sequence where it is a sequence's own
affair; the tokens are the same.
"""

from __future__ import annotations

import time

import torch

from admg.attention_varlen import kernel_for, plain_kernel, plain_longest
from admg.clock import device_seconds
from admg.config import DraftConfig, EngineConfig
from admg.cuda_graphs import CudaRecorder, GraphLimits, GraphReport, RoundGraphs, bucket
from admg.device_round import DeviceRound, RoundKey
from admg.device_sizes import buffers_of
from admg.drafters.draft import Draft
from admg.drafters.self_draft import SelfDrafter
from admg.drafting import Drafted, Drafting
from admg.invariants import check_round
from admg.kv_arena import KVArena
from admg.model import Transformer
from admg.pass_cost import PassCost
from admg.places import Places
from admg.plan_classes import PlanClasses
from admg.round_buffers import ACCEPTED, DRAFTED, FINITE, HEAD, MOST_STOPS
from admg.round_writer import RoundWriter
from admg.rounds import HostRounds, Played, Rounds
from admg.row_laws import LawKind
from admg.sampling import Sampler
from admg.sequence import Sequence
from admg.verification import Verdict


def plays_whole(config: EngineConfig, device: torch.device) -> bool:
    """Whether rounds are for the device; never where the drafts' configuration is the host's."""
    if config.draft.by_rejection or config.draft.lookup_tail:
        return False
    return config.rounds == "device" or (config.rounds == "auto" and device.type == "cuda")


def rounds_of(
    model: Transformer, arena: KVArena, sampler: Sampler, config: EngineConfig, cost: PassCost
) -> Rounds:
    """The rounds of an engine; `cost` is that of target passes."""
    host = HostRounds(model, arena, sampler, config)
    if not plays_whole(config, model.device):
        return host
    return DeviceRounds(model, arena, host, config, cost)


class DeviceRounds:
    """Plays what it can on the device, and the rest by `host`.

    Args:
        model: the target.
        arena: with spare slots.
        host: for the rounds that are not served here.
        config: the engine's.
        cost: of target passes; it divides a round's time between drafting and verification.
    """

    def __init__(
        self,
        model: Transformer,
        arena: KVArena,
        host: HostRounds,
        config: EngineConfig,
        cost: PassCost,
    ) -> None:
        draft, c, device = config.draft, model.config, model.device
        self._arena, self._host, self._cost, self._check = arena, host, cost, config.check
        self._most = config.max_num_seqs
        self._model = self._drafter = model
        self._buffers, means = buffers_of(config, c, device)
        self._host_side = self._buffers.on_host(pinned=device.type == "cuda")
        self._places = Places(means, config.max_num_seqs, draft.hole_filling_decay)
        self._classes = PlanClasses()
        self._longest = min(config.max_model_len or c.max_position_embeddings, arena.num_slots)
        self._plain_kernel = kernel_for(device, model.dtype, c.head_dim) is plain_kernel
        self._round = DeviceRound(
            model,
            arena,
            self._buffers,
            means,
            decay=draft.hole_filling_decay,
            window=draft.windows.window if draft.windows is not None else None,
            longest=self._longest,
        )
        recorder = CudaRecorder(device) if device.type == "cuda" else None
        self._graphs = RoundGraphs(self._play_eagerly, recorder, GraphLimits.of(device))
        self._writer = RoundWriter(self._host_side, self._buffers, self._places, c.vocab_size)

    def _play_eagerly(self, key: RoundKey) -> None:
        self._round.play(key, self._drafter)

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
        """One round; see `Rounds`. Sequences that the device does not serve have a pass apart."""
        mine: list[int] = []
        theirs: list[int] = []
        for i, s in enumerate(sequences):
            (mine if _serves(s, config.self_drafts) else theirs).append(i)
        if not mine:
            return self._host.play(sequences, drafted, drafting, context, config)
        if not theirs:
            return self._play(sequences, drafted, drafting, context, config)
        verdicts: dict[int, Verdict] = {}
        seconds = [0.0, 0.0]
        for rows in (theirs, mine):
            part = ([sequences[i] for i in rows], drafted.part(rows), drafting, context, config)
            played = self._play(*part) if rows is mine else self._host.play(*part)
            verdicts |= zip(rows, played.verdicts, strict=True)
            seconds[0] += played.draft_seconds
            seconds[1] += played.verify_seconds
        return Played([verdicts[i] for i in range(len(sequences))], *seconds)

    def _play(
        self,
        sequences: list[Sequence],
        drafted: Drafted,
        drafting: Drafting | None,
        context: float,
        config: DraftConfig,
    ) -> Played:
        start = time.perf_counter()
        if drafting is not None:
            drafting.look_up(sequences, drafted)
            # Asked for in each round: smaller weights may have been given back.
            self._drafter = drafting.own_model or self._model
        given = [list(tokens) for tokens in drafted.draft.tokens]
        own = drafted.choice.own
        longest = max(n + len(g) for n, g in zip(own, given, strict=True))
        key = self._key(sequences, given, own, 1 + longest, learns=config.self_drafts)
        self._writer.send(sequences, given, own)
        self._buffers.forget()
        self._graphs.play(key)
        verdicts = self._read(sequences, drafted.draft, self._fetch(len(sequences)), key)
        if self._check:
            check_round(sequences, drafted.draft, self._arena, False)
        seconds = time.perf_counter() - start
        return self._timed(verdicts, drafted, drafting, sequences, context, seconds)

    def prepare(self, sizes: list[int], tokens: tuple[int, ...]) -> None:
        """Capture the rounds that will be timed, the largest first, over padding alone.

        Where lengths make rounds of another kind they are captured as they come.
        """
        if not self._plain_kernel:
            self._writer.send([], [], [])
            kinds = ((size, count) for size in sizes for count in tokens)
            self._graphs.prepare(self._target_key(size, count, []) for size, count in kinds)

    def _target_key(self, size: int, tokens: int, sequences: list[Sequence]) -> RoundKey:
        """A greedy round without drafts of the model's own, which nobody learns from."""
        kind = (bucket(size, self._most), 0, tokens, LawKind())
        return RoundKey(*kind, longest=self._bound(sequences, tokens))

    def _bound(self, sequences: list[Sequence], more: int) -> int | None:
        """`RoundKey.longest` of a round that adds up to so many tokens to its sequences."""
        if not self._plain_kernel:
            return None
        slots = max((len(s.tokens) for s in sequences), default=0) + more
        return plain_longest(slots, self._longest)

    def time_target(self, sequences: list[Sequence], draft: Draft, config: DraftConfig) -> float:
        """Seconds of a round that is one target pass over these drafts, the host's part too."""
        start = time.perf_counter()
        nobody = [0] * len(sequences)
        key = self._target_key(len(sequences), 1 + max(map(len, draft.tokens)), sequences)
        self._writer.send(sequences, draft.tokens, nobody)
        self._graphs.play(key)
        self._fetch(len(sequences))
        return time.perf_counter() - start

    def time_own(self, sequences: list[Sequence], drafting: Drafting) -> float:
        """Seconds that a self-draft pass over these sequences adds to a round: the device's."""
        self._drafter = drafting.own_model or self._model
        ones = [1] * len(sequences)
        nothing: list[list[int]] = [[] for _ in sequences]
        key = self._key(sequences, nothing, ones, 0, learns=False)
        self._writer.send(sequences, nothing, ones)
        return device_seconds(self._model.device, lambda: self._graphs.play(key))

    def _wait(self) -> None:
        """Until the device has done all that it was given."""
        device = self._model.device
        if device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(device))
            done.synchronize()

    def _key(
        self,
        sequences: list[Sequence],
        given: list[list[int]],
        own: list[int],
        tokens: int,
        *,
        learns: bool,
    ) -> RoundKey:
        """What the round is; `tokens` of each sequence in its verification."""
        drawing = [s for s, n in zip(sequences, own, strict=True) if n]
        plans = [s.plan for s in drawing if s.plan is not None]
        exits = any(s.exit is not None for s in drawing)
        params = [s.request.sampling for s in sequences]
        bans = any(
            s.stops and len(s.tokens) - s.prompt_length < s.request.sampling.min_tokens
            for s in sequences
        )
        return RoundKey(
            bucket(len(sequences), self._most),
            max(own),
            tokens,
            LawKind.of(params, bans, self._model.config.vocab_size),
            self._classes.of(plans, exits=exits),
            learns=learns and any(s.learned.filling is not None for s in sequences),
            longest=self._bound(sequences, max(tokens, max(own))),
        )

    def _fetch(self, count: int) -> list[list[int]]:
        """The result's first rows, once they are here: the one time that the host waits."""
        self._buffers.send(self._host_side, ("result",))
        self._wait()
        rows: list[list[int]] = self._host_side.result[:count].tolist()
        return rows

    def _read(
        self, sequences: list[Sequence], draft: Draft, rows: list[list[int]], key: RoundKey
    ) -> list[Verdict]:
        """What the result says; fills in the drafts and ages what the sequences have learned."""
        verdicts = []
        for i, (s, row) in enumerate(zip(sequences, rows, strict=True)):
            accepted, drafted, finite = row[ACCEPTED], row[DRAFTED], row[FINITE]
            if accepted < 0:
                raise RuntimeError(f"a round on {self._model.device} left no result: {key}")
            targets = row[HEAD : HEAD + key.tokens]
            tokens = row[HEAD + key.tokens : HEAD + key.tokens + drafted]
            draft.add(i, tokens[len(draft.tokens[i]) :], SelfDrafter.source)
            verdicts.append(Verdict(tokens[:accepted], targets[accepted] if finite else None))
            if key.learns:
                self._places.taught(s, accepted + 1 if finite else 0, limits=key.plans.limited)
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
        if seconds > verifying:  # else the estimate is off, and says nothing of the drafts
            drafting.observe_own(sequences, drafted.draft, context, seconds - verifying)
        return Played(verdicts, seconds - verifying, verifying)


def _serves(s: Sequence, learns: bool) -> bool:
    """Whether the device's rounds have all that this sequence asks for now.

    What plans are made anew from is learned on the host, in rounds that are learned from at all.
    """
    remade = s.learned.similarity_sums is not None or s.learned.unit_sums is not None
    usual = s.request.sampling.repetition_penalty == 1 and len(s.stops) <= MOST_STOPS
    return usual and not (learns and remade)
