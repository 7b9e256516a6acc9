"""Compile programs for a device that is not there; one JSON line for each.

    ls *.hlo | python compile.py tpu|tpu4|h100

Runs in the environment of requirements.txt, without TensorFlow. A program is a
serialized HLO module whose first two parameters are a batch. No device is
looked for: the compilers are given a description of one, or of four, over
which the batch is split.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Where the compiler of the GPU writes down what it has made.
DUMP = tempfile.TemporaryDirectory()
FLAGS = {
    "tpu": "",
    "tpu4": "",
    # Tuning would run kernels.
    "h100": f"--xla_gpu_autotune_level=0 --xla_dump_to={DUMP.name} "
    "--xla_dump_hlo_as_text --xla_dump_hlo_pass_re=none",
}
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "XLA_FLAGS": FLAGS[sys.argv[1]],
}

import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jaxlib import _jax, xla_client  # noqa: E402
from program import exchanges, memory, split, traffic  # noqa: E402

# What the compiler asks of a device of this kind (GpuTargetConfigProto).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100"
"""


def devices(target: str) -> list[Any]:
    """Devices of the kind, to compile for only."""
    if target.startswith("tpu"):
        four: list[Any] = topologies.get_topology_desc(
            topology_name="v5e:2x2x1",
            platform="tpu",
            chip_config_name="default",
            chips_per_host_bounds=[2, 2, 1],
        ).devices
        return four if target == "tpu4" else four[:1]
    import jax_plugins.xla_cuda12 as plugin

    [library] = Path(plugin.__path__[0]).glob("xla_cuda_plugin.so")
    api = xla_client.load_pjrt_plugin_dynamically("cuda", str(library))
    xla_client.initialize_pjrt_plugin("cuda")
    topology = xla_client.make_c_api_device_topology(
        api, "1x1x1", topology="1x1x1", target_config=H100
    )
    return [topology._make_compile_only_devices()[0]]


def together(count: int) -> Any:
    """How to compile one program for several devices that exchange."""
    options = xla_client.CompileOptions()
    options.num_partitions = count
    build = options.executable_build_options
    build.num_partitions = count
    build.use_spmd_partitioning = True
    build.use_shardy_partitioner = False
    build.allow_spmd_sharding_propagation_to_output = [True]
    options.device_assignment = build.device_assignment = (
        xla_client.DeviceAssignment.create(np.arange(count)[None])
    )
    return options


def written(done: Any) -> str:
    """The program that was made, as the compiler writes it down."""
    files = [*Path(DUMP.name).glob("*gpu_after_optimizations.txt")]
    if not files:
        [module] = done.hlo_modules()
        text: str = module.to_string()
        return text
    [file] = files
    text = file.read_text()
    file.unlink()
    return text


def compiled(program: bytes, targets: list[Any]) -> dict[str, Any]:
    """What the compiler says of a program; of each device, if several."""
    module: str = _jax.mlir.xla_computation_to_mlir_module(
        xla_client.XlaComputation(program)
    )
    options = xla_client.CompileOptions()
    if len(targets) > 1:
        module = split(module, len(targets))
        options = together(len(targets))
    start = time.monotonic()
    done = targets[0].client.compile(
        module.encode(),
        executable_devices=xla_client.DeviceList(tuple(targets)),
        compile_options=options,
    )
    stats = done.get_compiled_memory_stats()
    try:
        costs = done.cost_analysis()
    except Exception:  # noqa: BLE001 - the GPU's compiler has none
        costs = {}
    costs = costs[0] if isinstance(costs, list) else costs
    seconds = time.monotonic() - start
    text = written(done)
    kernels = traffic(text)
    return {
        "seconds": seconds,
        "flops": costs.get("flops"),
        "traffic": costs.get("bytes accessed", kernels),
        "kernels": kernels,
        "memory": memory(text),
        "temporaries": stats.temp_size_in_bytes,
        "arguments": stats.argument_size_in_bytes,
        "exchanges": exchanges(text),
    }


if __name__ == "__main__":
    made = devices(sys.argv[1])
    for name in sys.stdin:
        try:
            row = compiled(Path(name.rstrip("\n")).read_bytes(), made)
        except Exception as error:  # noqa: BLE001 - what it says is the result
            row = {"error": str(error)[:500]}
        print(json.dumps(row), flush=True)
