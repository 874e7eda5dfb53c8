"""Checks WebShop's data for `paw-fast doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from paw_fast.envs.base import Finding, Gap, one_line
from paw_fast.envs.webshop.factory import find_files


def check_data() -> Finding:
    """The product files in WEBSHOP_DATA."""
    named = os.environ.get("WEBSHOP_DATA")
    data: dict[str, Any] = {"path": named, "problem": None}
    text, gaps = "WEBSHOP_DATA is not set", ()
    if named:
        try:
            if not Path(named).is_dir():
                raise NotADirectoryError(f"WEBSHOP_DATA names {named}, which is no folder")
            data["files"] = [path.name for path in find_files(Path(named), None, False) if path is not None]
        except Exception as error:  # a folder without the files is a finding
            data["problem"] = one_line(error)
        text = f"{named}: {', '.join(data.get('files', ())) or data['problem']}"
    if data["problem"]:
        fix = "point WEBSHOP_DATA at the folder of the product files, or unset it"
        gaps = (Gap("WebShop data", data["problem"], fix),)
    return Finding(data, text, gaps)
