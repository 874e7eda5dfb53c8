"""Runs command lines in forked children of one process that has imported the heavy packages: fixture `server`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {
    "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1", "ALFWORLD_DATA": "",
    "WEBSHOP_DATA": "", "OMP_NUM_THREADS": "1",
}  # fmt: skip


@pytest.fixture(scope="session")
def server():
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("command_server.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT,
    ) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def command(server):
    """Function that runs a command line in a folder; returns its status, stdout and stderr. See `command_server`."""

    def ask(folder, *args, env=None, limit_s=300, memory=None, setup=""):
        request = {
            "args": [str(arg) for arg in args], "folder": str(folder), "env": env or {}, "limit_s": limit_s,
            "memory": memory, "setup": setup,
        }  # fmt: skip
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    return ask
