"""Uploads the model of a run to the Hugging Face Hub, with a model card (see `model_card`).

Uploaded are the Hugging Face files of a checkpoint and the card, in one commit; of a LoRA run the merged model, and
the adapter in the folder `adapter` where its base model is on the Hub. The state for resuming (optimizer,
random generators), and local paths in the files stay on this machine. RUN/hub.json records the last upload.
"""

from __future__ import annotations

import functools
import json
import math
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from paw_fast.errors import UserError
from paw_fast.runs import console, progress, stop_signals
from paw_fast.runs import run_dir as runs
from paw_fast.runs.adapter import BASE, is_adapter, merge_adapter
from paw_fast.runs.atomic_files import build_folder, user_errors
from paw_fast.runs.checkpoint import STATE, find_checkpoint, step_of, verify_checkpoint
from paw_fast.runs.manifest import MANIFEST, read_manifest
from paw_fast.runs.model_card import CARD, Choice, make_card
from paw_fast.runs.retention import BEST, best_checkpoint
from paw_fast.runs.run_data import load_run

RECORD = "hub.json"
ANSWER_TIME_S = 4.0
"""How long the Hub may take to answer before a run begins."""
_OWN_FILES = frozenset({STATE, MANIFEST})
_OWN_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl"})
"""Pickled tensors: the state for resuming. Weights are saved as safetensors."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
_LOCAL_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file", BASE,
               "special_tokens_map_file", "added_tokens_file")  # fmt: skip
"""Keys of config files that may name the place that a model was loaded from."""

Files = Mapping[str, Path | bytes]
"""What is uploaded, by name in the repository: a file, or its content."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Uploaded:
    """An upload. Produced by `push`, kept in RUN/hub.json.

    name: the repository as it was asked for. repo_id: its full name. step: of the checkpoint. commit: its hash.
    """

    name: str
    repo_id: str
    url: str
    step: int
    commit: str


# ------------------------------------------------------------------------------------------------- before a run


def check_name(name: str, option: str) -> None:
    """Raises `UserError` if no repository can have that name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"{option} {name!r} cannot be the name of a repository: expected NAME or USER/NAME, of letters, digits and "
            "single - _ . between them, at most 96 characters"
        ) from None


def check_target(name: str, option: str) -> None:
    """Checks the name of a repository, the token, and with at most `ANSWER_TIME_S` of network, that the Hub accepts it.

    Raises `UserError` if the name is invalid, there is no token, the Hub refuses it, or it may not write there. A Hub
    that cannot be reached is only a note.
    """
    from huggingface_hub import constants

    check_name(name, option)
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{option} {name}: HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it")
    account, note, problem = _ask_account(constants.ENDPOINT)
    if problem := problem or _not_writable(name, account):
        raise UserError(f"{option} {name}: {problem}")
    if note:
        console.say(f"note: {note}; an upload that fails loses nothing and can be repeated")


def _ask_account(endpoint: str) -> tuple[Mapping[str, Any], str, str]:
    """(what the Hub says of the token's account, a note, a problem); each may be empty."""
    from huggingface_hub import get_token

    try:
        # A login in the browser or by OIDC may ask the network for a fresh token.
        token = _in_thread(get_token, ANSWER_TIME_S)
    except TimeoutError:
        return {}, f"{_host()} did not answer within {ANSWER_TIME_S:g} s", ""
    except Exception as error:
        return {}, "", f"cannot get a Hugging Face token ({_reason(error)})"
    if token is None:
        return {}, "", "no Hugging Face token: run `hf auth login`, or set HF_TOKEN to a token with write access"
    return _whoami(endpoint, token)


@functools.cache
def _whoami(endpoint: str, token: str) -> tuple[Mapping[str, Any], str, str]:
    from huggingface_hub import HfApi

    try:
        return _in_thread(lambda: HfApi(endpoint=endpoint).whoami(token), ANSWER_TIME_S), "", ""
    except TimeoutError:
        return {}, f"{_host()} did not answer within {ANSWER_TIME_S:g} s", ""
    except Exception as error:  # of any class of the network libraries
        if _status(error) in (401, 403):
            return {}, "", _reason(error)
        return {}, f"{_host()}: {_reason(error)}", ""


def _not_writable(name: str, account: Mapping[str, Any]) -> str:
    """Why the account may not write to a repository, as far as its own description says so; else empty."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    role = token.get("role")
    if role == "read":
        return (
            "the Hugging Face token may only read: take one with write access (https://huggingface.co/settings/tokens)"
        )
    owner, slash, _ = name.rpartition("/")
    if role != "write" or not slash or "orgs" not in account:
        return ""
    owners = [str(account.get("name")), *(str(one.get("name")) for one in account["orgs"])]
    if owner.lower() in [one.lower() for one in owners]:
        return ""
    return f"the account {owners[0]} cannot write to {owner}/: expected {' or '.join(f'{one}/...' for one in owners)}"


# ------------------------------------------------------------------------------------------------- what is uploaded


def choose_checkpoint(path: Path) -> tuple[Path, Path, Choice]:
    """Returns the run directory, the checkpoint that is uploaded for a path, and why that one.

    For a run: the one with the highest evaluated success if the run kept it (`--keep-best`) and it was trained, else
    the newest. For a checkpoint: itself. Raises `UserError`, also for a damaged checkpoint.
    """
    if not path.exists():
        raise UserError(f"no run at {path}: give a run directory or one of its checkpoints")
    run_dir = runs.find_run_dir(path)
    choice: Choice = "given"
    if path.resolve() not in (run_dir.resolve(), (run_dir / "checkpoints").resolve()):
        found = find_checkpoint(path)
        if found is None:
            raise UserError(f"{path} is no checkpoint: give a run directory or one of its checkpoints/step_* folders")
    else:
        found, choice = find_checkpoint(run_dir), "newest"
        if found is None:
            raise UserError(f"{run_dir} has no checkpoint yet")
        if load_run(run_dir).setting("keep_best") and (run_dir / BEST).is_file():
            best = best_checkpoint(run_dir)
            found, choice = (best, "best") if step_of(best) > 0 else (found, "no better")
    verify_checkpoint(found)
    return run_dir, found, choice


def model_files(checkpoint: Path) -> dict[str, Path | bytes]:
    """The Hugging Face files of a checkpoint: what its manifest lists, without what only paw-fast reads.

    Config files that name a local path are given as content without it.
    """
    listed, wrong = read_manifest(checkpoint)
    if wrong:
        raise UserError(f"checkpoint {checkpoint} cannot be used: {wrong}")
    files: dict[str, Path | bytes] = {}
    for name in sorted(listed):
        path = checkpoint / name
        if name not in _OWN_FILES and path.suffix not in _OWN_SUFFIXES:
            files[name] = _without_paths(path) if name.endswith("config.json") else path
    return files


def _without_paths(path: Path) -> Path | bytes:
    with user_errors("read the file", path):
        values = json.loads(path.read_text(encoding="utf-8"))
    kept = {
        key: value for key, value in values.items()
        if key not in _LOCAL_KEYS or not isinstance(value, str) or not _is_local(value)
    }  # fmt: skip
    return path if kept == values else (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def _is_local(text: str) -> bool:
    return text.startswith(("/", "~", ".", "\\")) or text[1:3] in (":\\", ":/") or Path(text).exists()


def _merged_files(checkpoint: Path, merged: Path) -> dict[str, Path | bytes]:
    """The files of a checkpoint with an adapter: the merged model, which is written to the folder `merged`, in place of
    the adapter, which is in the folder `adapter` if others can load its base model."""
    own = model_files(checkpoint)
    adapter = {name: content for name, content in own.items() if name.startswith("adapter_")}
    merge_adapter(checkpoint, merged)
    files = {name: content for name, content in own.items() if name not in adapter}
    for path in sorted(merged.iterdir()):
        files[path.name] = _without_paths(path) if path.name.endswith("config.json") else path
    config = adapter["adapter_config.json"]
    text = config if isinstance(config, bytes) else config.read_bytes()
    if BASE in json.loads(text):  # a local one has been taken out
        files |= {f"adapter/{name}": content for name, content in adapter.items()}
    return files


@contextmanager
def prepare(path: Path, name: str, license: str | None = None) -> Iterator[tuple[Path, int, Callable[[str], Files]]]:
    """Yields the run directory, the step of the checkpoint, and a function that gives the files for a repository.

    Raises `UserError` for a run without a checkpoint, a damaged checkpoint, and a run whose card cannot be made.
    """
    run_dir, checkpoint, choice = choose_checkpoint(path)
    step = step_of(checkpoint)
    with tempfile.TemporaryDirectory(prefix="paw-fast-push-") as merged:
        model = _merged_files(checkpoint, Path(merged)) if is_adapter(checkpoint) else model_files(checkpoint)

        def files(repo_id: str) -> Files:
            return {**model, CARD: make_card(run_dir, step, repo_id, choice, license).encode()}

        files(name)  # before anything is created
        yield run_dir, step, files


def write_folder(path: Path, name: str, folder: Path, license: str | None = None) -> None:
    """Writes what would be uploaded into a new folder. Raises `UserError` if it exists and is not empty."""
    with prepare(path, name, license) as (_, _, make_files), user_errors("write the files", folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} already exists: choose a new folder, or remove it")
        build_folder(folder, lambda hidden: _write(make_files(name), hidden))


def _write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copyfile(content, target)


# --------------------------------------------------------------------------------------------------------- upload


def push(path: Path, name: str, private: bool = False, license: str | None = None) -> Uploaded:
    """Uploads the model of a run or a checkpoint with its card, in one commit, and records it in RUN/hub.json.

    The repository is created if it does not exist. Weights in it that the checkpoint does not have are removed.

    Args:
        path: a run directory or a checkpoint, see `choose_checkpoint`.
        name: of the repository, `USER/NAME` or `NAME` of the token's account.
        private: whether a new repository is private. A public one that exists is refused then.
        license: identifier of the model's license for the card.

    Raises `UserError` if nothing can be uploaded, and `stop_signals.Interrupted` if a stop was requested meanwhile.
    """
    with prepare(path, name, license) as (run_dir, step, make_files), progress.phase(f"uploading to {name}"):
        repo_id, url, commit = _in_thread(lambda: _upload(name, private, f"paw-fast: step {step}", make_files))
    done = Uploaded(name, repo_id, url, step, commit)
    try:
        runs.write_json(run_dir / RECORD, asdict(done))
    except UserError as error:  # somebody else's run
        console.say(f"note: the upload is not recorded: {error}")
    return done


def is_pushed(run_dir: Path, name: str) -> bool:
    """Whether the checkpoint that `push` would take is recorded as uploaded to the repository."""
    record = runs.read_json(run_dir / RECORD)
    return record.get("name") == name and record.get("step") == step_of(choose_checkpoint(run_dir)[1])


def push_command(run_dir: Path, name: str, private: bool = False) -> str:
    """The command that uploads a run."""
    return f"paw-fast push {shlex.quote(str(run_dir))} {shlex.quote(name)}{' --private' if private else ''}"


def _upload(name: str, private: bool, message: str, make_files: Callable[[str], Files]) -> tuple[str, str, str]:
    """Returns the full name of the repository, its address, and the commit. Raises `UserError`."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars = not are_progress_bars_disabled()
    if bars:  # they would break into our own
        disable_progress_bars()
    try:
        api = HfApi()
        url = api.create_repo(name, private=private or None, exist_ok=True)
        info = api.model_info(url.repo_id)
        if private and info.private is False:
            raise UserError(
                f"{url.repo_id} exists and is public: make it private in its settings, leave out --private, or choose "
                "another name"
            )
        files = make_files(url.repo_id)
        there = [one.rfilename for one in info.siblings or ()]
        stale = [one for one in there if one not in files and any(fnmatch(one, pattern) for pattern in _WEIGHTS)]
        operations = [
            *(CommitOperationAdd(one, content if isinstance(content, bytes) else str(content))
              for one, content in files.items()),
            *(CommitOperationDelete(one) for one in stale if "/" not in one),
        ]  # fmt: skip
        commit = api.create_commit(url.repo_id, operations, commit_message=message)
        return url.repo_id, str(url), str(commit.oid)
    except UserError:
        raise
    except Exception as error:  # the network libraries have no common base class
        raise UserError(_reason(error, name)) from error
    finally:
        if bars:
            enable_progress_bars()


def _in_thread(work: Callable[[], Result], seconds: float = math.inf) -> Result:
    """Returns what `work` returns and raises what it raises; after `seconds` raises `TimeoutError`.

    It runs in a thread, so that a stop signal or the limit ends the wait for the network, which may have no limit of
    its own (looking up an address).
    """
    found: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive():
        thread.join(0.1)
        if thread.is_alive():
            stop_signals.check()
            if time.monotonic() > deadline:
                raise TimeoutError
    if errors:
        raise errors[0]
    return found[0]


def _host() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT.partition("//")[2] or constants.ENDPOINT


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it was raised from."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error."""
    statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in _chain(error)]
    return next((status for status in statuses if isinstance(status, int)), None)


def _is_network(error: BaseException) -> bool:
    """Whether it is an error of the network; huggingface_hub has changed the library that it comes from."""
    classes = {one.__name__ for one in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError) or bool(classes & {"TransportError", "TimeoutException"})


def _reason(error: BaseException, name: str = "") -> str:
    """What went wrong and how to fix it, in one line."""
    status = _status(error)
    if status == 401:
        return f"{_host()} refuses the token: log in again with `hf auth login`, or set HF_TOKEN to a valid one"
    if status == 403:
        what = f"may not write to {name}" if name else "is not allowed to do that"
        return f"the token {what}: take one with write access, or a repository of your own"
    network = next((one for one in _chain(error) if _is_network(one)), None)
    if status is None and network is not None:
        return f"{_host()} cannot be reached ({type(network).__name__})"
    said = [" ".join(str(one).split()) or type(one).__name__ for one in _chain(error)]
    text = said[0] if len(said) == 1 or status is not None else f"{said[0].rstrip('.')} ({said[-1]})"
    return f"{_host()} answers {status}: {text}" if status is not None else text
