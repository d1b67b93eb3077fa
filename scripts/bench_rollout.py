"""Tokens per second of our sampler, of Hugging Face ``generate``, of vLLM where it is installed, and of the matrix products alone.

    python scripts/bench_rollout.py                    # 64 prompts, 128 new tokens each, a 20M-parameter Llama, vocabulary 32,000
    python scripts/bench_rollout.py --mixed --json     # answers of 16 to 256 tokens

All samplers draw from the whole distribution at temperature 1 with one model. ``--mixed`` makes one token in a hundred an end
token, so that answers end at lengths of their own. Contenders are warmed up and take turns; the best time of each counts. The floor
is what the linear layers and the head cost for the same tokens, one ``torch.mm`` each per step over all rows, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # threads of all contenders wait alike

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gkd_rl.config.run import VllmConfig
from gkd_rl.models.language_model import LanguageModel, encode_prompts, wrap
from gkd_rl.processes import Processes
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.rollout.vllm import VllmSampler
from gkd_rl.rollout.vllm_engine import ColocatedVllm
from gkd_rl.types import Example

Run = Callable[[], int]
"""Samples once; returns the number of new tokens."""


def language_model(arguments: argparse.Namespace) -> tuple[LanguageModel, LlamaForCausalLM]:
    """A Llama of random weights with a tokenizer of made-up words, and the same as Transformers alone makes it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 64,
        num_key_value_heads=arguments.width // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.02,
    )
    ends = list(range(1, 1 + arguments.vocabulary // 100)) if arguments.mixed else [1]
    names = ["<pad>", "<end>", *(f"w{i}" for i in range(2, arguments.vocabulary))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")
    model = LlamaForCausalLM(config).to(arguments.device, getattr(torch, arguments.dtype)).eval()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = 0
    plain = deepcopy(model)
    return wrap(model, tokenizer), plain


def prompts(arguments: argparse.Namespace) -> list[Example]:
    """Seeded prompts of 16 to 64 words."""
    generator = torch.Generator().manual_seed(1)
    first = 2 + arguments.vocabulary // 100
    examples = []
    for key in range(arguments.prompts):
        length = int(torch.randint(16, 65, (1,), generator=generator))
        ids = torch.randint(first, arguments.vocabulary, (length,), generator=generator).tolist()
        examples.append(Example(" ".join(f"w{i}" for i in ids), key=key))
    return examples


def ours(model: LanguageModel, examples: list[Example], least: int, most: int) -> Run:
    """The sampler that training uses."""
    sampler = InProcessSampler(model, len(examples))
    return lambda: int(sampler.sample(examples, 1, SamplingParams(most, min_new_tokens=least), 0).completion_mask.sum())


def generate(plain: LlamaForCausalLM, model: LanguageModel, examples: list[Example], least: int, most: int) -> Run:
    """``generate`` of Transformers with its default cache."""
    ids, mask = encode_prompts(model, [model.tokenizer(str(example.prompt)).input_ids for example in examples])
    assert model.module.generation_config is not None
    ends = torch.tensor(model.module.generation_config.eos_token_id, device=ids.device)

    @torch.no_grad()
    def run() -> int:
        out = plain.generate(  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            ids, attention_mask=mask.long(), do_sample=True, top_k=0, top_p=1.0, temperature=1.0, min_new_tokens=least, max_new_tokens=most
        )[:, ids.shape[1] :]
        ended = torch.isin(out, ends).long().cumsum(-1)
        return int((ended - torch.isin(out, ends).long() == 0).sum())

    return run


def vllm(model: LanguageModel, examples: list[Example], least: int, most: int) -> Run:
    """vLLM in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    folder = tempfile.mkdtemp()
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    llm = LLM(folder, dtype=str(model.module.dtype).removeprefix("torch."), max_model_len=512, disable_log_stats=True)
    assert model.module.generation_config is not None
    ends = model.module.generation_config.eos_token_id
    params = SamplingParams(temperature=1.0, min_tokens=least, max_tokens=most, stop_token_ids=ends, detokenize=False)
    asked = [{"prompt_token_ids": model.tokenizer(str(example.prompt)).input_ids} for example in examples]
    return lambda: sum(len(answer.outputs[0].token_ids) for answer in llm.generate(asked, params, use_tqdm=False))


def vllm_sampler(model: LanguageModel, examples: list[Example], least: int, most: int) -> Run:
    """vLLM as ``rollout.sampler``: with the trainer's forward pass for the policy's log-probabilities."""
    processes = Processes()
    sampler = VllmSampler(model, ColocatedVllm(VllmConfig(kv_cache_gib=1), processes, 512, len(examples)), processes, False, 16_384)
    sampler.sync(0)
    return lambda: int(sampler.sample(examples, 1, SamplingParams(most, min_new_tokens=least), 0).completion_mask.sum())


def floor(model: LanguageModel, rows: int, steps: int) -> Run:
    """The products of one decoding step with ``rows`` rows, as often as there are steps."""
    weights = [m.weight for m in model.module.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1], device=w.device, dtype=w.dtype) for w in weights}

    @torch.no_grad()
    def run() -> int:
        for _ in range(steps):
            for weight in weights:
                torch.mm(inputs[weight.shape[1]], weight.T)
        return rows * steps

    return run


def speeds(contenders: dict[str, Run], repeats: int, device: str) -> dict[str, float]:
    """Tokens per second, the best of ``repeats`` turns after one to warm up."""
    best = dict.fromkeys(contenders, 0.0)
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            tokens = run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                best[name] = max(best[name], tokens / (time.perf_counter() - started))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per prompt")
    parser.add_argument("--mixed", action="store_true", help="answers of 16 to 256 tokens instead")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    (model, plain), examples = language_model(arguments), prompts(arguments)
    least, most = (16, 256) if arguments.mixed else (arguments.tokens, arguments.tokens)
    contenders = {"gkd-rl": ours(model, examples, least, most), "generate": generate(plain, model, examples, least, most)}
    if find_spec("vllm"):
        contenders["vLLM"] = vllm(model, examples, least, most)
        contenders["vLLM as sampler"] = vllm_sampler(model, examples, least, most)
    contenders["matrix products alone"] = floor(model, len(examples), most)
    found = speeds(contenders, arguments.repeats, arguments.device)
    ratio = {name: found["gkd-rl"] / found[name] if name in found else None for name in ("generate", "vLLM", "matrix products alone")}
    figures = {
        "compiled_vs_generate": ratio["generate"],
        "compiled_vs_vllm": ratio["vLLM"],
        "compiled_vs_floor": ratio["matrix products alone"],
        "tokens_per_second": found,
        "parameters": model.parameters,
        "device": torch.cuda.get_device_name()
        if arguments.device == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        **{key: getattr(arguments, key) for key in ("prompts", "tokens", "mixed", "vocabulary", "dtype")},
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    table = Table(
        title=f"{model.parameters / 1e6:.1f}M parameters, {len(examples)} prompts, {least} to {most} new tokens, {figures['device']}"
    )
    for column in ("", "tokens/s", "gkd-rl is times as fast"):
        table.add_column(column, justify="left" if not column else "right")
    for name, speed in found.items():
        table.add_row(name, f"{speed:,.0f}", f"{found['gkd-rl'] / speed:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
