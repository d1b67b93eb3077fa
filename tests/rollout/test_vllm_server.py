"""How the client of a vLLM server meets one that is away, busy, misled or silent. The server here is a stand-in that needs no vLLM."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from experiences import examples, token_rows
from rollout_checks import forward_logprobs
from safetensors.torch import load_file
from tiny_models import language_model
from transformers import LlamaForCausalLM

from gkd_rl.config.run import VllmConfig
from gkd_rl.config.student import LoraConfig
from gkd_rl.errors import UserError
from gkd_rl.models.language_model import CausalLanguageModel, LanguageModel
from gkd_rl.models.lora import add_lora
from gkd_rl.processes import Processes
from gkd_rl.rollout import vllm_server
from gkd_rl.rollout.drawing import SamplingParams
from gkd_rl.rollout.sampler import InProcessSampler
from gkd_rl.rollout.vllm import VllmSampler
from gkd_rl.rollout.vllm_server import VllmServer
from gkd_rl.types import Example


class StandIn:
    """Answers as vLLM does, with a model's own samples; ``trouble`` may answer first with a status and a body."""

    def __init__(self, model: LanguageModel) -> None:
        self.sampler = InProcessSampler(model, 64)
        self.asked: list[tuple[str, Any]] = []
        self.trouble: Callable[[str, int], tuple[int, Any] | None] = lambda path, number: None
        self.raw = False

    def reply(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((path, body))
        if (said := self.trouble(path, len(self.asked))) is not None:
            return said
        if path == "/v1/models":
            return 200, {"data": [{"id": "student", "max_model_len": 64}]}
        return 200, {"choices": [self._choice(body)]} if path == "/v1/completions" else {}

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["model"] == "student" and body["return_token_ids"] and body["logprobs"] == 0 and body["ignore_eos"]
        params = SamplingParams(body["max_tokens"], body["temperature"], body["top_k"])
        text = self.sampler.model.tokenizer.decode(body["prompt"])
        rollouts = self.sampler.sample([Example(text, key=body["seed"])], 1, params, 0)
        kept = rollouts.completion_mask[0]
        logprobs = (rollouts.logprobs if self.raw else rollouts.sampler_logprobs)[0][kept].tolist()
        reason = "stop" if rollouts.ended[0] else "length"
        return {"token_ids": rollouts.completion_ids[0][kept].tolist(), "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason}


@pytest.fixture
def model() -> LanguageModel:
    return language_model("llama")


@pytest.fixture
def stand_in(model: LanguageModel) -> Iterator[tuple[StandIn, str]]:
    """A stand-in and its address."""
    made = StandIn(model)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*made.reply(self.path, None))

        def do_POST(self) -> None:
            self._send(*made.reply(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _send(self, status: int, body: Any) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield made, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have waited."""
    waited: list[float] = []
    monkeypatch.setattr(vllm_server.time, "sleep", waited.append)
    return waited


def _server(url: str, folder: Path, retries: int = 3) -> VllmServer:
    return VllmServer(VllmConfig(url=url, retries=retries, timeout=5), folder, 64, 4)


def test_rows_come_back_in_order_each_with_a_seed_of_its_own(stand_in, model: LanguageModel, tmp_path: Path):
    server, url = stand_in
    sampler = VllmSampler(model, _server(url, tmp_path), Processes(1), True, 500)
    sampler.sync(3)
    rollouts = sampler.sample(examples(6), 2, SamplingParams(8, temperature=0.7), 5)
    requests = [body for path, body in server.asked if path == "/v1/completions"][-12:]
    assert len({body["seed"] for body in requests}) == 12
    assert sorted(prompt for prompt, _ in token_rows(rollouts)) == sorted(body["prompt"] for body in requests)
    assert rollouts.group.tolist() == [key for key in range(6) for _ in range(2)] and rollouts.version.tolist() == [3] * 12
    mask = rollouts.completion_mask
    torch.testing.assert_close(rollouts.logprobs[mask], forward_logprobs(model, rollouts)[mask], atol=1e-4, rtol=0)
    assert (rollouts.logprobs - rollouts.sampler_logprobs)[mask].abs().max() > 0.01


def test_each_delivery_is_a_whole_checkpoint_and_the_one_before_is_removed(stand_in, model: LanguageModel, tmp_path: Path):
    server, url = stand_in
    (tmp_path / "version-of-mine").mkdir()
    sampler = VllmSampler(model, _server(url, tmp_path), Processes(1), True, 500)
    for version in (0, 1, 1):
        sampler.sync(version)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["version-1", "version-of-mine"]
    weights = load_file(tmp_path / "version-1" / "model.safetensors")
    assert weights.keys() == model.module.state_dict().keys() and "lm_head.weight" in weights  # tied: vLLM's reload does not tie again
    calls = [(path, body) for path, body in server.asked if path in ("/collective_rpc", "/reset_prefix_cache")]
    paths = [str((tmp_path / f"version-{version}").resolve()) for version in (0, 1)]
    reloads = [("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}}) for path in paths]
    assert calls == [reloads[0], ("/reset_prefix_cache", {}), reloads[1], ("/reset_prefix_cache", {})]


def test_a_student_with_an_adapter_is_delivered_merged(stand_in, model: LanguageModel, tmp_path: Path):
    _, url = stand_in
    names = set(model.module.state_dict())
    add_lora(model.module, LoraConfig(rank=2), 0)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    _server(url, tmp_path).deliver(model, 0)
    assert load_file(tmp_path / "version-0" / "model.safetensors").keys() == names
    delivered = LlamaForCausalLM.from_pretrained(tmp_path / "version-0").eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        found, wanted = delivered(input_ids=ids).logits, model.module(input_ids=ids).logits
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, language_model("llama").module(input_ids=ids).logits, atol=1e-2)


def test_a_busy_server_is_asked_again_after_growing_waits(stand_in, waits: list[float], tmp_path: Path):
    server, url = stand_in
    server.trouble = lambda path, number: (503, {"error": {"message": "loading"}}) if number <= 3 else None
    _server(url, tmp_path)
    assert waits == [1, 2, 4]


def test_a_server_that_stays_away_ends_the_run_with_its_reason(stand_in, waits: list[float], tmp_path: Path):
    server, url = stand_in
    server.trouble = lambda path, number: (503, {"error": {"message": "still\nloading"}})
    with pytest.raises(UserError, match=rf"{url}/v1/models failed \(attempt 4 of 4\): 503 still loading"):
        _server(url, tmp_path)
    with pytest.raises(UserError, match=r"failed \(attempt 2 of 2\): .*refused"):
        _server("http://127.0.0.1:9", tmp_path, retries=1)
    assert waits == [1, 2, 4, 1]


def test_what_the_server_refuses_is_not_asked_again(stand_in, waits: list[float], tmp_path: Path):
    server, url = stand_in
    server.trouble = lambda path, number: (400, {"error": {"message": "no such field"}}) if path == "/v1/completions" else None
    with pytest.raises(UserError, match=r"failed \(attempt 1 of 4\): 400 no such field"):
        _server(url, tmp_path)
    assert waits == []


@pytest.mark.parametrize("choice", [{"token_ids": [], "logprobs": {"token_logprobs": []}}, {"token_ids": [3]}, {"text": "a"}])
def test_answers_without_tokens_or_log_probabilities_are_errors(stand_in, choice: dict, tmp_path: Path):
    server, url = stand_in
    server.trouble = lambda path, number: (200, {"choices": [{**choice, "finish_reason": "stop"}]}) if "completions" in path else None
    with pytest.raises(UserError, match="no tokens or no log-probabilities"):
        _server(url, tmp_path)


def test_log_probabilities_of_the_untruncated_distribution_are_refused(stand_in, tmp_path: Path):
    server, url = stand_in
    server.raw = True
    with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
        _server(url, tmp_path)


def test_a_server_without_reload_endpoint_is_refused(stand_in, model: LanguageModel, tmp_path: Path):
    server, url = stand_in
    server.trouble = lambda path, number: (404, {"detail": "Not Found"}) if path == "/collective_rpc" else None
    with pytest.raises(UserError, match="VLLM_SERVER_DEV_MODE=1"):
        _server(url, tmp_path).deliver(model, 0)


def test_prefixes_kept_for_the_old_weights_are_an_error(stand_in, model: LanguageModel, tmp_path: Path):
    server, url = stand_in
    server.trouble = lambda path, number: (200, {"success": False}) if path == "/reset_prefix_cache" else None
    with pytest.raises(UserError, match="kept prefixes cached for the old weights"):
        _server(url, tmp_path).deliver(model, 0)


def test_a_server_of_another_model_is_refused(stand_in, tmp_path: Path):
    _, url = stand_in
    other = language_model("llama", seed=9)
    assert isinstance(other, CausalLanguageModel)
    with pytest.raises(UserError, match=r"log-probabilities are \d\.\d\d per token away .* runs another model"):
        VllmSampler(other, _server(url, tmp_path), Processes(1), True, 500).sync(0)


def test_a_window_that_is_too_small_is_refused(stand_in, tmp_path: Path):
    _, url = stand_in
    with pytest.raises(UserError, match=r"reads at most 64 tokens, but .* = 65; start it with a larger --max-model-len"):
        VllmServer(VllmConfig(url=url, retries=0), tmp_path, 65, 4)
