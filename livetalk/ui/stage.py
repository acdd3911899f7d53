"""The parts of the page that Gradio does not have: the Stage (player and microphone) and the Picker.

Both are one ``gr.HTML`` component each, with their html, css and js beside this file (no subclasses: Gradio would write
stub files beside their source). The Stage's value is what the
server last sent it (see ``stage.js``); the Picker's value is ``{"name": ...}`` for one of our examples or an uploaded
Gradio file. This module does not know sessions or models.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

_HERE = Path(__file__).parent


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def stage(poster: str | None, server_functions: list[Callable[..., Any]], elem_id: str) -> gr.HTML:
    """The picture that talks, its controls, and the line with what was measured; event ``session``.

    Args:
        poster: data URI of the portrait shown before anything was generated.
        server_functions: ``push, stop, cut, place``, called by the page without the queue.
        elem_id: id in the page.
    """
    return gr.HTML(
        html_template=_text("stage.html"),
        css_template=_text("stage.css"),
        js_on_load=_text("player.js") + _text("microphone.js") + _text("stage.js"),
        apply_default_css=False,
        server_functions=server_functions,
        elem_id=elem_id,
        poster=poster,
    )


@dataclass(frozen=True)
class Choice:
    """One example of a Picker: its name, what the page calls it, and a picture (data URI) or None."""

    name: str
    label: str
    picture: str | None = None


def picker(title: str, choices: Sequence[Choice], accept: str, own_label: str, elem_id: str) -> gr.HTML:
    """A radio group of our examples with a place for the visitor's own file; event ``chosen``.

    Args:
        title: what is picked ("Face").
        choices: the examples; the first one is chosen at the start.
        accept: the browser's file filter ("image/*").
        own_label: label of the tile for the visitor's own file.
        elem_id: id in the page.
    """
    tiles = "".join(_tile(choice, chosen=index == 0) for index, choice in enumerate(choices))
    kind = "pictures" if any(choice.picture for choice in choices) else "words"
    template = _text("picker.html").replace("[title]", html.escape(title)).replace("[kind]", kind)
    template = template.replace("[accept]", html.escape(accept)).replace("[own]", html.escape(own_label))
    return gr.HTML(
        value={"name": choices[0].name} if choices else None,
        html_template=template.replace("[tiles]", tiles),
        css_template=_text("picker.css"),
        js_on_load=_text("picker.js"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def _tile(choice: Choice, chosen: bool) -> str:
    name, label = html.escape(choice.name, quote=True), html.escape(choice.label)
    inner = f'<img src="{choice.picture}" alt="">' if choice.picture else ""
    return (
        f'<button type="button" role="radio" class="lt-tile" data-name="{name}" aria-checked="{str(chosen).lower()}" '
        f'tabindex="{0 if chosen else -1}" title="{label}" aria-label="{label}">{inner}<span>{label}</span></button>'
    )
