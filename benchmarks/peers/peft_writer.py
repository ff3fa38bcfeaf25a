"""transformers + PEFT with an adapter a row: ``python -m benchmarks.peers.peft_writer FOLDER fp32|bf16``.

Reads numbers of rows, a line each, and answers with a JSON line: ``steps``
(seconds for all new tokens but the first) and ``whole`` (with the prompts).
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, StoppingCriteria
from transformers.utils import logging

from benchmarks.writing.decoding import ADAPTERS, NEW, RANK

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class TokenClock(StoppingCriteria):
    """Asked after each token."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.at.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype), config, adapter_name="a0")
    for number in range(1, ADAPTERS):
        model.add_adapter(f"a{number}", config)
    state = model.state_dict()
    for number in range(ADAPTERS):
        for name, value in load_file(folder / f"adapter-{number}.safetensors").items():
            state[name.replace(".weight", f".a{number}.weight")].copy_(value)
    return model.to(dtype).eval()


def main() -> None:
    folder, dtype = Path(sys.argv[1]), {"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    model = loaded(folder, dtype)
    prompts = torch.tensor(json.loads((folder / "prompts.json").read_text()))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        rows, clock = int(line), TokenClock()
        ids = prompts[:rows]
        with torch.inference_mode():
            started = time.perf_counter()
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                adapter_names=[f"a{number}" for number in range(rows)],
                do_sample=False,
                min_new_tokens=NEW,
                max_new_tokens=NEW,
                stopping_criteria=[clock],
            )
        sys.stdout.write(json.dumps({"steps": clock.at[-1] - clock.at[0], "whole": time.perf_counter() - started}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
