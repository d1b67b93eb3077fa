"""The samplers as settings of a run: what each asks for, and that a run does not change with the sampler where it should not."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from workbench import Models, Outcome, check_folder

from gkd_rl.objective.compiled import has_compiler

VLLM = "rollout.sampler=vllm"
CORRECTED = "objective.surrogate.correction.kind=truncate"


@pytest.mark.parametrize("family", ["", "t5_"])
def test_a_run_over_generate_is_that_of_the_native_sampler(cli: Callable[..., Outcome], small: Path, models: Models, family: str, tmp_path):
    texts = {}
    for sampler in ("native", "generate"):
        folder = tmp_path / sampler
        paths = (f"{role}.path={getattr(models, family + role)}" for role in ("student", "teacher"))
        outcome = cli("train", small, f"run_dir={folder}", f"rollout.sampler={sampler}", "rollout.max_new_tokens=6", *paths)
        assert outcome.status == 0, outcome.err
        _, rollouts, _ = check_folder(folder, steps=2)
        texts[sampler] = [row["completion"] for row in rollouts]
    assert texts["native"] == texts["generate"]


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="there is no compiler")
def test_a_run_with_compiled_decoding_samples_the_same(cli: Callable[..., Outcome], small: Path, tmp_path):
    texts = {}
    for compiled in ("false", "true"):
        outcome = cli("train", small, f"run_dir={tmp_path / compiled}", f"rollout.compile={compiled}")
        assert outcome.status == 0, outcome.err
        assert compiled == "false" or "recompile" not in outcome.err
        _, rollouts, _ = check_folder(tmp_path / compiled, steps=2)
        texts[compiled] = [row["completion"] for row in rollouts]
    assert texts["false"] == texts["true"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("rollout.sampler=vlm",), "rollout.sampler"),
        ((VLLM,), "draws from another distribution"),
        (("rollout.sampler=generate", "rollout.compile=true"), "rollout.compile is for the native sampler"),
        (("rollout.compile=true", "engine.zero_stage=3"), "rollout.compile needs weights that stay where they are"),
        ((VLLM, "rollout.temperature=3"), "vLLM samples between 0.01 and 2"),
        ((VLLM, "rollout.min_p=0.1", "rollout.top_p=0.9"), "rollout.min_p and rollout.top_p are both set"),
        ((VLLM, "rollout.vllm.url=localhost:8000"), "rollout.vllm.url is 'localhost:8000'; write it as http://HOST:PORT"),
        ((VLLM, "rollout.vllm.url=http://localhost:8000", "rollout.vllm.sleep=true"), "drop one of them"),
        ((VLLM, "rollout.vllm.kv_cache_gib=0"), "rollout.vllm.kv_cache_gib is 0.0; it must be above 0"),
        ((VLLM, CORRECTED, "rollout.vllm.url=http://127.0.0.1:9", "rollout.vllm.retries=0"), "http://127.0.0.1:9/v1/models failed"),
    ],
)
def test_settings_that_cannot_work_are_refused(refused_run: Callable[..., str], overrides: tuple[str, ...], said: str):
    assert said in refused_run(*overrides)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_its_sampler_is_refused_before_a_model_is_loaded(refused_run: Callable[..., str]):
    said = refused_run(VLLM, CORRECTED, "student.path=embedded:no-such-model")
    assert said == "rollout.sampler is 'vllm' but vLLM is not installed; pip install 'gkd-rl[vllm]', or set rollout.vllm.url"
