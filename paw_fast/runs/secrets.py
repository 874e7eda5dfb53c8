"""Masks credentials in addresses before they are written to run directories, reports and messages."""

from __future__ import annotations

import re

MASK = "***"
_USER = re.compile(r"(?<=://)[^/\s\"'?#]+(?=@)")
_QUERY = re.compile(r"([?&][^=&\s\"']*(?:key|token|secret|passw|auth|signature)[^=&\s\"']*=)[^&#\s\"']+", re.IGNORECASE)


def mask_credentials(text: str) -> str:
    """Replaces user names and passwords in addresses, and the values of secret query parameters, by `***`.

    >>> mask_credentials("see http://me:secret@host:8000/retrieve?api_key=abc&topk=3")
    'see http://***@host:8000/retrieve?api_key=***&topk=3'
    """
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(MASK, text))
