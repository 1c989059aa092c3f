"""One self-contained page: markup, style, script, plotly and data in a single file.

In: the data of ``algd.experiments.dashboard``. Out: HTML that needs no network. Data stands in it
as JSON without `<`, `>` and `&`, so no name of a run can end the element; the page's policy runs
only the two scripts whose hashes it names.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from algd.errors import UserError, install_command

_PLACE = re.compile(r"\{\{(\w+)\}\}")
_JSON_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def render(data: Mapping[str, Any]) -> str:
    """Return the page.

    Raises:
        UserError: plotly is not installed.
    """
    script, plotly = _resource("page.js"), _plotly()
    connect = "'self'" if data["live"] else "'none'"
    parts = {
        "policy": "; ".join(
            [
                "default-src 'none'",
                f"script-src {_source_hash(script)} {_source_hash(plotly)}",
                "style-src 'unsafe-inline'",  # plotly writes rules of its own
                "img-src data: blob: 'self' file:",
                "media-src data: 'self' file:",
                f"connect-src {connect}",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        "css": _resource("page.css"),
        "data": data_json(data),
        "script": script,
        "plotly": plotly,
    }
    # One pass: what is put in is not searched for places again.
    return _PLACE.sub(lambda place: parts[place[1]], _resource("page.html"))


def data_json(data: Mapping[str, Any]) -> str:
    """Return JSON that may stand inside a script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda letter: _JSON_ESCAPES[letter[0]], text)


def _source_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(f"algd dashboard needs plotly: {install_command('dashboard')}") from error
    # Inside a script element this would end it; in JavaScript both spellings mean the same.
    return get_plotlyjs().replace("</script", "<\\/script").replace("\r\n", "\n")


def _resource(name: str) -> str:
    return files("algd.experiments").joinpath("dashboard_page", name).read_text(encoding="utf-8")
