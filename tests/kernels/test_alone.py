"""The kernels on their own: importing them loads no optional part, and a loop of one's own needs nothing else."""

import json
import subprocess
import sys


def test_importing_the_kernels_loads_torch_and_numpy_alone():
    script = "import json, sys, paw_fast.kernels; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = set(json.loads(out))
    assert {"torch", "paw_fast"} <= loaded
    heavy = {
        "transformers", "tokenizers", "safetensors", "accelerate", "vllm", "trl", "verl", "openenv", "verifiers",
        "gymnasium", "rich", "tyro", "matplotlib", "tensorboardX", "jinja2",
    }  # fmt: skip
    assert loaded & heavy == set()
    script = "import sys, paw_fast.kernels; print(*sorted(m for m in sys.modules if m.startswith('paw_fast.')))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert {name.split(".")[1] for name in out.split()} <= {"kernels", "errors"}
