"""What is wrong with a configuration is said in one sentence with the fix, before a run's folder is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def refused_file(refused: Callable[..., str], tmp_path: Path) -> Callable[[str], str]:
    """``refused_file(text)``: how ``gkd-rl train`` answers a configuration file of that text."""

    def refused_file(text: str) -> str:
        file = tmp_path / "bad.yaml"
        file.write_text(text)
        said = refused("train", file, f"run_dir={tmp_path / 'run'}")
        assert said.startswith(str(file))
        assert not (tmp_path / "run").exists()
        return said

    return refused_file


def test_a_missing_file_names_the_nearest(refused, small: Path) -> None:
    assert refused("train", small.parent / "smal.yaml").endswith(f"smal.yaml does not exist; did you mean {small}?")


def test_a_folder_is_no_configuration(refused, tmp_path: Path) -> None:
    assert "is a folder" in refused("train", tmp_path)


def test_malformed_yaml_names_the_line(refused_file) -> None:
    assert "bad.yaml, line 3: not readable as YAML" in refused_file("max_steps: 3\nstudent: {path: x}\n  teacher: [\n")


def test_a_key_given_twice_names_the_line(refused_file) -> None:
    assert "line 2: not readable as YAML (found duplicate key max_steps)" in refused_file("max_steps: 3\nmax_steps: 4\n")


def test_yaml_runs_no_code(refused_file, tmp_path: Path) -> None:
    said = refused_file(f"run_dir: !!python/object/apply:os.system ['touch {tmp_path / 'owned'}']\n")
    assert "not readable as YAML" in said
    assert not (tmp_path / "owned").exists()


def test_bytes_that_are_no_text_are_refused(refused, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not readable as YAML" in refused("train", tmp_path / "bad.yaml")


def test_a_list_is_no_configuration(refused_file) -> None:
    assert "a mapping of keys to values" in refused_file("- 1\n- 2\n")


def test_a_missing_base_names_the_file_that_asked_for_it(refused_file, tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text("max_steps: 3\n")
    assert refused_file("base: comon.yaml\n").endswith(f"comon.yaml does not exist; did you mean {tmp_path / 'common.yaml'}?")


def test_a_base_that_leads_back_is_refused(refused, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    assert "leads back to itself" in refused("train", tmp_path / "a.yaml")


def test_a_base_is_read_relative_to_its_file_and_overridden_by_it(refused, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("max_steps: 0\nrollout: {per_prompt: 0}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nmax_steps: 5\n")
    assert refused("train", tmp_path / "b.yaml") == "rollout.per_prompt is 0; it must be at least 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("objective: {alfa: 1}", "there is no key 'objective.alfa'; the nearest is 'objective.alpha'"),
        ("alpha: 1", "there is no key 'alpha'; the nearest is 'objective.alpha'"),
        ("rewards: [{paht: x}]", "there is no key 'rewards.paht'; the nearest is 'rewards.path'"),
        ("max_steps: many", "max_steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("max_steps: 2.5", "max_steps: Value '2.5'"),
        ("objective: 3", "objective is a section of keys, not the single value 3"),
        ("student: some/model", "student is a section of keys"),
        ("objective: {divergence: {kind: js}}", "objective.divergence.kind: Invalid value 'js', expected one of ['gjsd',"),
        ("engine: {zero_stage: 4}", "engine.zero_stage: Invalid value '4'"),
        ("rewards: {path: x}", "a list is replaced as a whole"),
        ("task: {options: 3}", "task.options"),
        ("student: {path: '${nowhere}'}", "'nowhere'"),
    ],
)
def test_a_wrong_key_or_type_in_a_file_is_named(refused_file, text: str, said: str) -> None:
    assert said in refused_file(text + "\n")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("alpha", "is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("objective.alpha=[1", "its value is not readable as YAML"),
        ("objective.alpha=two", "objective.alpha: Value 'two' of type 'str' could not be converted to Float"),
        ("max_steps=", "max_steps"),
        ("objective.alhpa=1", "the nearest is 'objective.alpha'"),
        ("max_steps=0", "max_steps is 0; it must be at least 1"),
        ("optimizer.lr=0", "optimizer.lr is 0.0; it must be above 0"),
        ("optimizer.lr=nan", "optimizer.lr is nan; it must be a finite number"),
        ("optimizer.beta2=1", "optimizer.beta2 is 1.0; it must be at least 0 and below 1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay"),
        ("engine.threads=-1", "engine.threads"),
        ("log_rollouts_every=-1", "log_rollouts_every"),
        ("rollout.on_policy_share=1.2", "rollout.on_policy_share is 1.2; it must lie between 0 and 1"),
        ("rollout.top_p=1.5", "rollout.top_p is 1.5"),
        ("resume=maybe", "resume is 'maybe'; it must be one of never, auto, new"),
        ("rewards=[]", "rewards is empty"),
    ],
)
def test_a_wrong_override_is_named(refused, small: Path, tmp_path: Path, override: str, said: str) -> None:
    assert said in refused("train", small, f"run_dir={tmp_path / 'run'}", override)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective.alpha=1.01"], "outside [0, 1]"),
        (["teacher.path=null"], "no teacher is configured; add one, or set objective.alpha=0"),
        (["rollout.per_prompt=1"], "objective.advantage.kind 'dr_grpo' compares the answers to one prompt and there is one per prompt"),
        (["rollout.on_policy_share=0"], "no row is sampled from the policy"),
        (["objective.divergence.estimator=k1", "objective.divergence.kind=reverse_kl"], "in which the teacher does not appear"),
        (["objective.divergence.use=advantage"], "is inert"),
        (["objective.divergence.estimator=k2", "objective.divergence.kind=forward_kl"], "estimates the reverse KL"),
        (["objective.divergence.estimator=top_k", "objective.divergence.tail=drop"], "drain the kept tokens"),
        (["objective.divergence.beta=2"], "objective.divergence.beta is 2.0, outside [0, 1]"),
        (["objective.divergence.temperature=0"], "objective.divergence.temperature is 0.0"),
        (["objective.cross_entropy_weight=1"], "there are no dataset rows"),
        (["objective.surrogate.ratio=none", "rollout.passes=2"], "is biased from the second of 2 passes"),
        (["rollout.temperature=0.7"], "the sampler draws from another distribution than the policy"),
        (["objective.alpha_schedule.kind=linear"], "objective.alpha_schedule.end is not set"),
        (["objective.reward_weight=0", "objective.divergence_weight=0"], "objective has no term"),
        (["objective.alpha=1", "objective.surrogate.entropy_weight=0.1"], "part of the reward's term, whose weight is 0"),
        (["objective.alpha=0", "objective.gate.kind=wrong"], "gates the divergence, whose weight is 0"),
    ],
)
def test_an_impossible_combination_is_refused_with_its_reason(
    refused, small: Path, tmp_path: Path, overrides: list[str], said: str
) -> None:
    assert said in refused("train", small, f"run_dir={tmp_path / 'run'}", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("text", "overrides"), [("watch: {action: off}", []), ("max_steps: 3", ["watch.action=off"])])
def test_off_is_a_word_where_it_is_a_choice(tmp_path: Path, text: str, overrides: list[str]) -> None:
    from gkd_rl.config.load import load_config

    (tmp_path / "a.yaml").write_text(text + "\n")
    assert load_config(tmp_path / "a.yaml", overrides).watch.action == "off"


def test_mappings_of_free_form_are_replaced_as_a_whole_and_extended_by_dotted_keys(tmp_path: Path) -> None:
    from gkd_rl.config.load import load_config

    (tmp_path / "a.yaml").write_text("task: {options: {levels: [1], x: 1}}\nablation: {grid: {objective.alpha: [0, 1]}}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntask: {options: {y: 2}}\n")
    config = load_config(tmp_path / "b.yaml", ["ablation.grid={optimizer.lr: [1, 2]}", "task.options.z=3"])
    assert config.ablation.grid == {"optimizer.lr": [1, 2]}
    assert config.task.options == {"y": 2, "z": 3}


def test_a_resolved_configuration_reads_back_as_the_same_one(tmp_path: Path, small: Path, arithmetic: Path) -> None:
    from gkd_rl.config.load import config_to_yaml, differences, load_config

    for file in (small, arithmetic):
        config = load_config(file, ["rewards=[{path: reward_models.ArithmeticVerifier, options: {tolerance: 0.1}}]"])
        (tmp_path / "again.yaml").write_text(config_to_yaml(config))
        again = load_config(tmp_path / "again.yaml")
        assert again == config and differences(again, config) == []


@pytest.mark.parametrize("name", ["arithmetic.yaml", "gsm8k.yaml", "ablate_alpha.yaml"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    from gkd_rl.config.load import load_config
    from gkd_rl.config.validate import validate

    validate(load_config(Path(__file__).resolve().parents[2] / "configs" / name))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("optimizer.kind=adafactor", "engine.zero_stage=1"), "optimizer.kind=adafactor needs whole matrices"),
        (("optimizer.kind=muon", "engine.zero_stage=2"), "optimizer.kind=muon needs whole matrices"),
        (("optimizer.kind=muon", "student.dtype=bfloat16"), "optimizer.kind=muon needs whole matrices"),
        (("engine.offload_optimizer=cpu",), "engine.offload_optimizer works with ZeRO 1 to 3"),
        (("engine.offload_parameters=cpu", "engine.zero_stage=2"), "engine.offload_parameters works with ZeRO 3"),
        (
            ("engine.offload_optimizer=nvme", "engine.nvme_path=/nvme", "engine.zero_stage=2"),
            "engine.offload_optimizer=nvme works with ZeRO 3, and engine.zero_stage is 2",
        ),
        (("engine.offload_optimizer=nvme", "engine.zero_stage=3"), "engine.offload_optimizer=nvme needs engine.nvme_path"),
        (("engine.offload_parameters=nvme", "engine.zero_stage=3"), "engine.offload_parameters=nvme needs engine.nvme_path"),
        (("engine.nvme_path=/nvme", "engine.offload_optimizer=cpu", "engine.zero_stage=1"), "engine.nvme_path is set, and neither"),
        (("optimizer.kind=deepspeed_cpu_adam", "engine.zero_stage=1"), "deepspeed_cpu_adam steps in CPU memory"),
        (
            ("engine.offload_optimizer=cpu", "engine.offload_while_scoring=true", "engine.zero_stage=1"),
            "drop engine.offload_while",
        ),
        (("engine.timeout=0",), "engine.timeout is 0.0; it must be above 0"),
    ],
)
def test_settings_of_the_engine_that_do_nothing_or_harm_are_refused(refused_run, overrides: tuple[str, ...], said: str) -> None:
    assert said in refused_run(*overrides)
