"""A page without script, in the style of the others. What it is built of are elements, so names are always escaped."""

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ssd300_vgg16.report.html_page import allowed, part
from ssd300_vgg16.text import printable


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


def static_page(title: str, content: list[Element], style: str = "") -> bytes:
    """The whole page, as a file. style: rules beyond those that all pages share."""
    style = part("shared.css") + style
    policy = f"default-src 'none'; img-src data:; style-src {allowed(style)}"
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", http_equiv="Content-Security-Policy", content=policy),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", printable(title)),
        node("style", style),
    )
    page = node("html", head, node("body", *content), lang="en")
    return b"<!DOCTYPE html>\n" + ElementTree.tostring(page, encoding="utf-8", method="html")
