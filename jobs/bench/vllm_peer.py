"""vLLM as a system, in the virtual environment of `--peer-python`.

Written against vLLM's documented offline interface (`LLM`, `SamplingParams`, token prompts).
Prefix caching is off: the same prompts come again in every repeat. vLLM does not tell prefill from
decoding here, so a run with one token each is timed as the prefill.

Nothing but the standard library is imported before `load`.
"""

from __future__ import annotations

import gc
import os
import time
from typing import Any

WARM_UP_TOKENS = 8
_GIB = 2**30
# Beside weights and cache: activations and the runtime of a CUDA device.
_CUDA_ROOM = 4 * _GIB
# vLLM polls its queues for a while (a second in 0.32) before it sleeps; who is timed next pays.
_POLLING_SECONDS = 4


class Vllm:
    """Answers a worker's requests with `vllm.LLM`."""

    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Import vLLM with the CPU backend's cores and cache set; `prepare` makes the models."""
        cores = sorted(os.sched_getaffinity(0))[: request["threads"]]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(request["cache_bytes"] // _GIB + 1)
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        import vllm

        self._request = request
        self._llm: Any = None
        self._made_for: tuple[int, int] | None = None
        return {"vllm": vllm.__version__}

    def prepare(self, cell: dict[str, Any]) -> None:
        """An `LLM` for this batch size and length, warmed up."""
        length = max(len(p) for p in cell["prompts"]) + cell["max_tokens"]
        self._cell = cell
        if self._made_for != (cell["batch"], length):
            self._make(cell["batch"], length)
        self._generate(cell["prompts"][: cell["batch"]], min(WARM_UP_TOKENS, cell["max_tokens"]))
        time.sleep(_POLLING_SECONDS)

    def _make(self, batch: int, length: int) -> None:
        from vllm import LLM

        self._llm = None
        gc.collect()
        self._llm = LLM(
            model=self._request["model"],
            dtype=self._request["dtype"],
            max_num_seqs=batch,
            max_model_len=length,
            enable_prefix_caching=False,
            seed=0,
            **self._on_cuda(),
        )
        self._made_for = (batch, length)

    def _on_cuda(self) -> dict[str, Any]:
        """Not the whole device: the other systems are on it too."""
        import torch

        if not torch.cuda.is_available():
            return {}
        wanted = self._request["cache_bytes"] + self._request["weight_bytes"] + _CUDA_ROOM
        return {"gpu_memory_utilization": min(0.9, wanted / torch.cuda.mem_get_info()[1])}

    def run(self) -> dict[str, Any]:
        """Decode all prompts of the cell, then only their first tokens."""
        prompts, tokens = self._cell["prompts"], self._cell["max_tokens"]
        start = time.perf_counter()
        self._generate(prompts, tokens)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        self._generate(prompts, 1)
        prefill_seconds = time.perf_counter() - start
        time.sleep(_POLLING_SECONDS)
        return {
            "seconds": seconds,
            "prefill_seconds": prefill_seconds,
            "sequences": len(prompts),
            "prompt_tokens": sum(len(p) for p in prompts),
            "completion_tokens": len(prompts) * tokens,
        }

    def _generate(self, prompts: list[list[int]], tokens: int) -> None:
        from vllm import SamplingParams

        law = SamplingParams(
            temperature=self._cell["temperature"],
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
        )
        done = self._llm.generate([{"prompt_token_ids": p} for p in prompts], law, use_tqdm=False)
        wrong = [n for d in done if (n := len(d.outputs[0].token_ids)) != tokens]
        if wrong or len(done) != len(prompts):
            raise RuntimeError(f"vLLM gave {wrong[:1] or len(done)} instead of {tokens} tokens")
