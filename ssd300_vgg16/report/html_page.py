"""A page as one file that a browser opens from disk: what all pages share, a kind's own parts, and the data as JSON."""

import base64
import hashlib
import html
import json
import re
from importlib import resources


def html_page(kind: str, title: str, content: dict) -> str:
    """The whole page; nothing in the content can become markup or script. It has a "heading".

    kind: which of this folder's pages, by the name of its .html, .css and .js.
    """
    style, script = (part(f"shared.{language}") + part(f"{kind}.{language}") for language in ("css", "js"))
    # The policy lets run and show what is here, and nothing that a name could bring.
    policy = f"default-src 'none'; img-src 'self' file: data:; style-src {allowed(style)}; script-src {allowed(script)}"
    parts = {
        "policy": policy,
        "title": html.escape(f"{title}: {content['heading']}"),
        "style": style,
        "body": part(f"{kind}.html"),
        "script": script,
        "content": json.dumps({"title": title, **content}, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # In one pass: what is filled in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], part("shared.html"))


def part(name: str) -> str:
    """A file of this folder, as text."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def allowed(text: str) -> str:
    """What lets a page's policy apply this style or run this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
