"""Weights and optimiser states that ZeRO cut up over some number of ranks, put together and cut up for another.

A rank's file has flat parts of the fp32 weights and of each state of the optimiser. At stages 1 and 2 a group's flat tensor goes through
the ranks one after the other, and each file says where its pieces of the parameters lie; at stage 3 every parameter is cut into equal
parts, one per rank, of which the last may have padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_rl.errors import UserError
from gkd_rl.operators import import_deepspeed

FP32, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")

WholeStates = dict[str, dict[str, Tensor]]
"""Parameter → ``fp32`` and each moment of it, whole and flat"""


def whole_states(place: Path, ranks: int) -> tuple[WholeStates, float]:
    """What the files of ``ranks`` ranks in the checkpoint ``place`` hold together, and the number of updates that Adam counts.

    Raises ``UserError`` where they have another form than these.
    """
    import_deepspeed()
    parts = [_load(place, f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"] for rank in range(ranks)]
    if all("fp32_flat_groups" in part for part in parts):
        shapes = _load(place, "*zero_pp_rank_0_mp_rank_00_model_states.pt")["param_shapes"]
        return _of_stage_3(parts, shapes), _step(parts[0]["optimizer_state_dict"])
    if all("single_partition_of_fp32_groups" in part and "param_slice_mappings" in part for part in parts):
        return _of_stages_1_and_2(parts), _step(parts[0]["base_optimizer_state"])
    raise UserError(f"the checkpoint {place} was cut up in a way that only {ranks} processes can go on from; start as many")


def _load(place: Path, pattern: str) -> Any:
    (file,) = (place / "state").glob(pattern)
    return torch.load(file, map_location="cpu", weights_only=False)  # DeepSpeed's own classes; the run's own file, by its hash


def _step(optimizer: Mapping[str, Any]) -> float:
    return float(next(iter(optimizer["state"].values()))["step"])


def _of_stages_1_and_2(parts: Sequence[Mapping[str, Any]]) -> WholeStates:
    pieces: dict[str, dict[str, list[Tensor]]] = {}
    for part in parts:  # in the order of ranks
        for group, mapping in enumerate(part["param_slice_mappings"]):
            moments = part["base_optimizer_state"]["state"][group]
            flat = {FP32: part["single_partition_of_fp32_groups"][group], **{name: moments[name] for name in MOMENTS}}
            for parameter, piece in mapping.items():
                for name, values in flat.items():
                    pieces.setdefault(parameter, {}).setdefault(name, []).append(values[piece.start : piece.start + piece.numel])
    return {parameter: {name: torch.cat(values) for name, values in found.items()} for parameter, found in pieces.items()}


def _of_stage_3(parts: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, torch.Size]]) -> WholeStates:
    flat = [
        {FP32: torch.cat(part["fp32_flat_groups"])}
        | {name: torch.cat([state[name] for _, state in sorted(part["optimizer_state_dict"]["state"].items())]) for name in MOMENTS}
        for part in parts
    ]
    found: WholeStates = {}
    start = 0
    for parameter, shape in (item for group in shapes for item in group.items()):
        share = math.ceil(shape.numel() / len(parts))
        whole = {name: torch.cat([part[name][start : start + share] for part in flat]) for name in (FP32, *MOMENTS)}
        found[parameter] = {name: values[: shape.numel()] for name, values in whole.items()}
        start += share
    return found


def put(deepspeed: Any, states: WholeStates, step: float) -> None:
    """Give a freshly made engine of stage 1 to 3 the weights and the optimiser's states; every rank calls it with the same."""
    trained = {name: parameter for name, parameter in deepspeed.module.named_parameters() if parameter.requires_grad}
    if misfits := sorted(trained.keys() ^ states.keys()):
        raise UserError(f"the checkpoint does not fit the student: {misfits[0]} is missing or unknown")
    for name, parameter in trained.items():
        sharded = hasattr(parameter, "ds_id")
        with import_deepspeed().zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded), torch.no_grad():
            parameter.copy_(states[name][FP32].view(parameter.shape))
    if hasattr(deepspeed.optimizer, "single_partition_of_fp32_groups"):
        _put_at_stages_1_and_2(deepspeed.optimizer, {parameter: states[name] for name, parameter in trained.items()}, step)
    else:
        _put_at_stage_3(deepspeed, {parameter: states[name] for name, parameter in trained.items()}, step)


def _put_at_stages_1_and_2(optimizer: Any, states: Mapping[nn.Parameter, dict[str, Tensor]], step: float) -> None:
    for parameters, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
        moments = {name: torch.zeros_like(flat) for name in MOMENTS}
        for parameter in parameters:
            if (link := parameter._hp_mapping) is None:  # it is other ranks'
                continue
            its, ours = link.lp_fragment_address, link.hp_fragment_address
            for name, values in {FP32: flat.data, **moments}.items():
                values[ours.start : ours.start + ours.numel] = states[parameter][name][its.start : its.start + its.numel].to(values.device)
        optimizer.optimizer.state[flat] = {"step": torch.tensor(step), **moments}


def _put_at_stage_3(deepspeed: Any, states: Mapping[nn.Parameter, dict[str, Tensor]], step: float) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    inner = deepspeed.optimizer.optimizer
    for flat in deepspeed.optimizer.fp32_partitioned_groups_flat:  # they come with the first step otherwise
        inner.state[flat] = {"step": torch.tensor(step), **{name: torch.zeros_like(flat) for name in MOMENTS}}
    for parameter, whole in states.items():
        shape: torch.Size = parameter.ds_shape  # pyright: ignore[reportAttributeAccessIssue]
        shaped = {name: values.view(shape).to(deepspeed.device) for name, values in whole.items()}
        safe_set_full_fp32_param(parameter, shaped[FP32])
        for name in MOMENTS:
            safe_set_full_optimizer_state(parameter, shaped[name], name)
