"""paw-fast: trains language agents that learn a policy and a world model at once (PaW, arXiv 2606.02388).

    from paw_fast import evaluate, make_config, train

    result = train(make_config("tiny", env="alfworld", steps=2))
    print(result.success, evaluate(result).success)

Importing the package is cheap: torch and the rest are loaded when one of these names is first used.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paw_fast.api import TrainResult, evaluate, train
    from paw_fast.config import TrainConfig
    from paw_fast.config.build import make_config
    from paw_fast.errors import UserError
    from paw_fast.evaluation.success import EvalResult

__version__ = "0.1.0"
__all__ = ["EvalResult", "TrainConfig", "TrainResult", "UserError", "__version__", "evaluate", "make_config", "train"]

_HOMES = {
    "EvalResult": "paw_fast.evaluation.success",
    "TrainConfig": "paw_fast.config",
    "TrainResult": "paw_fast.api",
    "UserError": "paw_fast.errors",
    "evaluate": "paw_fast.api",
    "make_config": "paw_fast.config.build",
    "train": "paw_fast.api",
}
"""The module of each public name. No name may be that of a submodule, which Python would put in its place."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        # tqdm, which transformers imports, asks for ipywidgets in a notebook; none of its bars are shown.
        warnings.filterwarnings("ignore", message="IProgress not found")
        module = importlib.import_module(_HOMES[name])
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
