"""Starts the JVM with ScienceWorld's simulator, and restarts it when it has ended."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import subprocess
import weakref
from pathlib import Path
from typing import Any

from paw_fast.envs.base import EpisodeLost, one_line
from paw_fast.errors import UserError
from paw_fast.extras import install_hint
from paw_fast.runs import stop_signals

OPTIONS = ("-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")
"""The simulator lists what a room contains in the order of a hash set. By default objects are hashed by random numbers,
and an episode would list them otherwise each time; with hashCode=2, all hashes are equal and the order is that of
insertion."""


def check_installed() -> None:
    """Raises `UserError` if `scienceworld` or Java is missing."""
    missing = [name for name in ("scienceworld", "py4j") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--env scienceworld needs {' and '.join(missing)}: {install_hint('scienceworld')}")
    java = _java()
    if shutil.which(java) is None:
        raise UserError(
            "--env scienceworld needs Java 8 or newer: there is no `java` on the PATH or in JAVA_HOME (Debian: apt "
            "install default-jre-headless)"
        )


def _java() -> str:
    """The Java that py4j takes."""
    home = os.environ.get("JAVA_HOME")
    return os.path.join(home, "bin", "java") if home else "java"


class Jvm:
    """A JVM with any number of simulators, one for each episode slot. Started when it is first needed.

    `num_starts` tells an episode that its simulator is gone.
    """

    def __init__(self, memory_mb: int) -> None:
        self._memory_mb = memory_mb
        self._gateway: Any = None
        self.num_starts = 0
        self._finalizer: weakref.finalize | None = None

    def new_simulator(self) -> Any:
        """Creates a `scienceworld.runtime.pythonapi.PythonInterface`. Starts the JVM if it does not run.

        Raises `UserError` if it cannot be started, and `EpisodeLost` if it ends meanwhile.
        """
        if self._gateway is None:
            self._start()
        return self.call(self._gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface)

    def call(self, function: Any, *args: Any) -> Any:
        """Calls a function of a simulator. Raises `EpisodeLost`, and forgets the JVM, if it does not answer."""
        from py4j.protocol import Py4JError, Py4JJavaError

        try:
            return function(*args)
        except Py4JJavaError as error:  # an exception of the simulator, with the Java trace in its text
            raise EpisodeLost(f"--env scienceworld: the simulator failed: {one_line(error)[:300]}") from error
        except (Py4JError, OSError) as error:
            status = self.stop()
            why = f"failed: {one_line(error)[:300]}" if status is None else f"ended (exit status {status})"
            raise EpisodeLost(f"--env scienceworld: its JVM {why}") from error

    def stop(self) -> int | None:
        """Ends the JVM; returns its exit status if it had ended before. Safe to call twice."""
        gateway, self._gateway = self._gateway, None
        if gateway is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            gateway.java_process.wait(1)
        status = gateway.java_process.poll()
        if self._finalizer is not None:
            self._finalizer()
        return status

    @property
    def pid(self) -> int | None:
        """Process id of the JVM; None if it does not run."""
        return None if self._gateway is None else self._gateway.java_process.pid

    def _start(self) -> None:
        check_installed()
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        # py4j logs what it raises, partly to the root logger.
        logging.getLogger("py4j").setLevel(logging.CRITICAL)
        logging.getLogger().addFilter(_not_of_py4j)
        # Not the package's __init__, which imports more; its jar lies beside it.
        spec = importlib.util.find_spec("scienceworld")
        assert spec is not None
        assert spec.origin is not None
        jar = Path(spec.origin).with_name("scienceworld.jar")
        options = [f"-Xmx{self._memory_mb}m", *OPTIONS]
        try:
            with stop_signals.blocked():  # Ctrl-C is handled by this process only
                port, process = launch_gateway(
                    classpath=str(jar), javaopts=options, die_on_exit=True, cwd=str(jar.parent), return_proc=True
                )
            parameters = GatewayParameters(auto_field=True, port=port)
            self._gateway = JavaGateway(gateway_parameters=parameters, java_process=process)
        except Exception as error:
            raise UserError(
                f"--env scienceworld: Java cannot start the simulator ({' '.join(options)}): {one_line(error)}"
            ) from error
        self._finalizer = weakref.finalize(self, _end, self._gateway)
        self.num_starts += 1


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return record.module != "java_gateway"


def _end(gateway: Any) -> None:
    process = gateway.java_process
    process.kill()
    with contextlib.suppress(Exception):
        gateway.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
