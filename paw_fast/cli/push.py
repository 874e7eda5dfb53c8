"""`paw-fast push`: uploads the model of a run to the Hugging Face Hub. Heavy packages are imported inside functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from paw_fast.cli.options import parse
from paw_fast.runs import console, stop_signals


@dataclass(frozen=True)
class PushOptions:
    """Uploads the model of a run to the Hugging Face Hub, with a model card made from the run.

    Only the model, its tokenizer and the card are uploaded. Needs a token with write access: `hf auth login`, or the
    variable HF_TOKEN."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run directory or a checkpoint. Of a run, the checkpoint with the highest evaluated success is uploaded (the
    newest with --no-keep-best)."""
    name: Annotated[str, tyro.conf.Positional]
    """The repository, such as `me/agent`. It is created if it does not exist."""
    private: bool = False
    """A repository that does not exist yet becomes private; one that exists and is public is refused."""
    license: str | None = None
    """License for the card, such as `apache-2.0`; by default that of the base model, if it is known."""
    only_write: Path | None = None
    """Write what would be uploaded into this folder, and upload nothing. Needs no network and no token."""


def push(args: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Runs the command; returns the exit status. `prepare` is called before heavy packages are used."""
    options: PushOptions = parse(PushOptions, args, "push")
    prepare()
    from paw_fast.runs import hub

    if options.only_write is not None:
        hub.check_name(options.name, "NAME")
        hub.write_folder(options.run, options.name, options.only_write, options.license)
        print(options.only_write)
        return 0
    hub.choose_checkpoint(options.run)  # before the network
    hub.check_target(options.name, "NAME")
    with stop_signals.handled(console.say, "leaving the upload"):
        try:
            print(hub.push(options.run, options.name, options.private, options.license).url)
            return 0
        except stop_signals.Interrupted as stop:
            console.say("stopped: the upload is incomplete, repeat the command")
            return stop.status
