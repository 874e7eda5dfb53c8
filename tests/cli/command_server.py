"""Runs command lines of paw-fast in forked children of one process that has imported the heavy packages.

    python command_server.py < requests > answers

A request is a JSON line {"args": [...], "folder": "...", "env": {...}, "limit_s": 5, "memory": null, "setup": "..."};
the answer has `status` (None: it ran longer than limit_s and was killed), `out` and `err`. A child runs `setup`
(Python), then `paw_fast.cli.main.main`, the entry point of the program.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time


def answer(request):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            run(request, out, err)
        status = wait(child, request["limit_s"])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return {"status": status, "out": texts[0], "err": texts[1]}


def run(request, out, err):
    status = 99
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.chdir(request["folder"])
        os.environ.update(request["env"])
        if request["memory"]:
            resource.setrlimit(resource.RLIMIT_AS, (request["memory"],) * 2)
        sys.stdin = os.fdopen(0)
        sys.argv = ["paw-fast", *request["args"]]
        exec(request.get("setup", ""), {})
        from paw_fast.cli.main import main

        main()
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:  # as the interpreter would print it
        import traceback

        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child, limit_s):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    import contextlib
    import io

    import paw_fast.trainer  # noqa: F401
    from paw_fast.cli import main

    with contextlib.redirect_stdout(io.StringIO()):  # what is imported and cached here need not be in each child
        main.run(["train", "--preset", "tiny", "--print-config"])
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
