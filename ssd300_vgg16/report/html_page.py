"""Pages, each one file that a browser opens from disk: drawn by a script from data, or built of elements.

Names come from files that anybody may have written: they are always escaped, and each page lets run and apply only
what is in it.
"""

import base64
import hashlib
import html
import json
from importlib import resources
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ssd300_vgg16.text import printable


def html_page(kind: str, title: str, content: dict) -> str:
    """A page drawn by a script. kind: which, by the name of its .html, .css and .js; the content has a "heading"."""
    script = _part("shared.js") + _part(f"{kind}.js")
    # A "</script>" in a name would end the block.
    data = json.dumps({"title": title, **content}, separators=(",", ":")).replace("<", "\\u003c")
    body = f"""{_part(f"{kind}.html")}
<noscript><p>This page needs JavaScript to draw its figures. It fetches nothing from elsewhere.</p></noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>"""
    # Pictures of report.html are files beside it.
    sources = f"img-src 'self' file: data:; script-src {_hash_of(script)}"
    return _page(kind, f"{title}: {content['heading']}", sources, body)


def static_page(kind: str, title: str, content: list[Element]) -> str:
    """A page of elements, without script; kind: by the name of its .css."""
    # By way of UTF-8, in which a byte of a file's name that is none becomes a reference.
    parts = (ElementTree.tostring(element, encoding="utf-8", method="html") for element in content)
    return _page(kind, title, "img-src data:", b"".join(parts).decode())


def node(tag: str, *parts: Element | str, **attributes: object) -> Element:
    """An HTML or SVG element with its content; a name like class_ or stroke_width is the attribute's own."""
    element = Element(tag, {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items()})
    for content in parts:
        if isinstance(content, Element):
            element.append(content)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + content
        else:
            element.text = (element.text or "") + content
    return element


def _page(kind: str, title: str, sources: str, body: str) -> str:
    # In one piece, since the policy names it by its hash.
    style = _part("shared.css") + _part(f"{kind}.css")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src {_hash_of(style)}; {sources}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(printable(title, 500))}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash_of(text: str) -> str:
    """What names this style or script in a page's policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
