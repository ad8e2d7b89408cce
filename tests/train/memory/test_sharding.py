"""What of a run a device holds: by hand, for each way of spreading it and each launch file."""

import pytest
import yaml

from seodang.data.errors import UserError
from seodang.train.memory.allocations import Moment
from seodang.train.memory.optimizers import OptimizerCost
from seodang.train.memory.peak import Measured, memory_plan
from seodang.train.memory.sharding import Layout, read_launch_file
from seodang.train.memory.step import Step

# 1,000 weights in 2 bytes with masters and two moments in 4; a root of 200 bytes, layers of 450
MEASURED = Measured(
    parameters=2000, count=1000, trained=1000, beside=0, root=200, layer=450, gradients=2000, optimizer=OptimizerCost(8000, 4000, [Moment(2000, 400)], "AdamW"),
    forward=[Moment(0, 5000)], backward=[Moment(500, 4600), Moment(2000, 100)], activations=4500, accumulates=False, step=Step(lambda: None, 10, 5, ""), cache=0,
    logits=0, dtype="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize(
    ("way", "standing", "forward", "backward", "optimizer"),
    [
        ("ddp", 2000 + 12000 + 2000, 5000, 4600 + 500, 2000 + 400),  # buckets as large as the gradients
        ("zero1", 2000 + 3000 + 2000, 5000, 4600 + 500, 2000 + 100),
        ("zero2", 2000 + 3000 + 2000, 5000, 4600 + 125, 500 + 100),
        ("zero3", 500 + 3000 + 2000 + 2000, 5000, 4600 + 125, 500 + 100),  # all of so few weights live at a time
        ("fsdp", 500 + 3000 + 200 + 2 * 450, 5000, 4600 + 125 + 450, 500 + 100),
    ],
)
def test_each_way_shares_out_what_it_does_on_four_devices(way, standing, forward, backward, optimizer):
    moments = memory_plan(MEASURED, Layout(4, way)).moments
    sums = {name: sum(parts.values()) for name, parts in moments.items()}
    gathered = {"zero3": 2000, "fsdp": 1100}.get(way, 0)
    assert sums == {"forward": standing + forward, "backward": standing + backward, "optimizer": standing - gathered + optimizer}


def test_one_device_holds_all():
    plan = memory_plan(MEASURED, Layout())
    assert (plan.peak, plan.peak_moment) == (2000 + 12000 + 4600 + 500, "backward")
    assert plan.moments["backward"]["activations"] == 4500 and plan.moments["backward"]["passing"] == 100


def test_what_is_offloaded_lies_in_the_hosts_memory():
    plan = memory_plan(MEASURED, Layout(2, "zero3", offloads_optimizer=True, offloads_parameters=True))
    assert plan.host == (8000 + 4000) / 2 + 2000 / 2 + 2000 / 2
    assert plan.moments["forward"]["parameters"] == plan.moments["forward"]["optimizer state"] == 0 and "optimizer" not in plan.moments


@pytest.mark.parametrize(
    ("told", "layout"),
    [
        ({"distributed_type": "MULTI_GPU", "num_processes": 4, "mixed_precision": "bf16"}, Layout(4, "ddp", mixed_precision="bf16")),
        ({"distributed_type": "NO"}, Layout(1, "ddp", mixed_precision="no")),
        (
            {"distributed_type": "FSDP", "num_processes": 16, "num_machines": 2, "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True}},
            Layout(16, "fsdp", mixed_precision="no"),
        ),
        (
            {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_reshard_after_forward": False, "fsdp_offload_params": True, "fsdp_activation_checkpointing": True}},
            Layout(2, "fsdp", True, True, True, True, "no"),
        ),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 8, "deepspeed_config": {"zero_stage": 2, "offload_optimizer_device": "cpu"}},
            Layout(8, "zero2", offloads_optimizer=True, mixed_precision="no"),
        ),
        (
            {"distributed_type": "DEEPSPEED", "num_processes": 8, "deepspeed_config": {"zero_stage": 3, "offload_optimizer_device": "none"}},
            Layout(8, "zero3", mixed_precision="no"),
        ),
    ],
)  # fmt: skip
def test_launch_files_are_accelerates(tmp_path, told, layout):
    path = tmp_path / "launch.yaml"
    path.write_text(yaml.safe_dump(told))
    assert read_launch_file(str(path)) == layout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: TPU", "distributed_type must be one of NO, MULTI_CPU, MULTI_GPU, FSDP, DEEPSPEED, got TPU"),
        ("[1, 2]", "distributed_type must be one of"),
        ("a: [", "is not YAML"),
        ("{distributed_type: FSDP, num_processes: many}", "num_processes must be a whole number, got 'many'"),
        ("{distributed_type: FSDP, num_processes: 0}", "devices must be at least 1, got 0"),
        ("{distributed_type: FSDP, num_processes: .inf}", "num_processes must be a whole number, got inf"),
        ("{distributed_type: FSDP, num_processes: 2, fsdp_config: [1]}", "fsdp_config must hold names and values"),
        ("{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: 3}", "deepspeed_config must hold names and values, got 3"),
        ("{distributed_type: DEEPSPEED, num_processes: 2}", "deepspeed_config has no zero_stage"),
        ("{distributed_type: FSDP, parallelism_config: {parallelism_config_cp_size: 2}}", "parallelism_config_cp_size 2: rows are not cut among processes"),
        ("{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: {zero_stage: 4}}", "zero_stage must be 0, 1, 2 or 3, got 4"),
    ],
)
def test_a_launch_file_that_says_nothing_is_refused(tmp_path, text, message):
    path = tmp_path / "launch.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_launch_file(str(path))


def test_no_launch_file():
    with pytest.raises(UserError, match="there is no such file"):
        read_launch_file("nowhere.yaml")
