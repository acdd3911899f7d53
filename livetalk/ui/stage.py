"""The parts of the page that Gradio does not have: head, Stage (player and microphone), transcript, pickers, character.

Each is one ``gr.HTML`` component with its html, css and js beside this file (no subclasses: Gradio would write stub
files beside their source). The Stage's value is what the server last sent it (see ``stage.js``); the Picker's value is
``{"name": ...}`` for one of our examples or an uploaded Gradio file; the character's is
``{"mood", "voice", "talker", "persona"}``. This module does not know sessions or models.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from livetalk.ui.words import WORDS, script

_HERE = Path(__file__).parent

SUGGESTIONS = ("What is LiveTalk?", "How do you work?", "Tell me a joke.")
"""What a visitor may ask first; English, as the offline talker is."""

SIGNS = {  # mood -> its brows and mouth as a path in a square of 24
    "neutral": "M8 15.2h8",
    "happy": "M7.6 14c1.9 3.4 6.9 3.4 8.8 0",
    "sad": "M7.8 16.4c1.9-2.8 6.5-2.8 8.4 0",
    "angry": "M8 16.2h8M6.8 7.4l3.2 1.5M17.2 7.4 14 8.9",
    "surprised": "M12 13.6a1.9 2.2 0 1 0 .01 0M7.2 7.1q1.5-1.1 3 0M13.8 7.1q1.5-1.1 3 0",
}


@dataclass(frozen=True)
class Choice:
    """One of several things to choose.

    Attributes:
        name: what the value says.
        label: what the page calls it; a key of ``WORDS`` is translated.
        picture: data URI, or None.
        missing: why it cannot be chosen, in a sentence; None = it can.
        own_voice: of a talker: the voices on the page are not for it.
    """

    name: str
    label: str
    picture: str | None = None
    missing: str | None = None
    own_voice: bool = False


def head(model: str, licence: str, elem_id: str) -> gr.HTML:
    """Name, choice of the mode, and which model is on."""
    return _part("head", ("head",), {"[model]": html.escape(model), "[licence]": html.escape(licence)}, elem_id=elem_id)


def stage(poster: str | None, server_functions: list[Callable[..., Any]], elem_id: str) -> gr.HTML:
    """The picture that talks, its controls, and the line with what was measured; event ``session``.

    Args:
        poster: data URI of the portrait shown before anything was generated.
        server_functions: see ``stage.js``; called by the page without the queue.
        elem_id: id in the page; the page looks itself up under ``lt-stage``.
    """
    scripts = ("player", "microphone", "talk", "stage", "controls")
    return _part("stage", scripts, {}, elem_id=elem_id, server_functions=server_functions, poster=poster)


def transcript(elem_id: str) -> gr.HTML:
    """What was said, and ways to keep it; event ``film`` asks for the recording, whose file becomes the value."""
    buttons = "".join(
        f'<button type="button" class="lt-suggestion">{html.escape(text)}</button>' for text in SUGGESTIONS
    )
    return _part("transcript", ("transcript",), {"[suggestions]": buttons}, elem_id=elem_id)


def picker(title: str, choices: Sequence[Choice], accept: str, elem_id: str, surprises: Sequence[str] = ()) -> gr.HTML:
    """A radio group of our examples with a place for the visitor's own file; event ``chosen``.

    Args:
        title: key of ``WORDS`` for what is picked ("face").
        choices: the examples; the first one is chosen at the start.
        accept: the browser's file filter ("image/*").
        elem_id: id in the page.
        surprises: names to draw from when the visitor wants a surprise.
    """
    tiles = "".join(_tile(choice, chosen=index == 0) for index, choice in enumerate(choices))
    kind = "pictures" if any(choice.picture for choice in choices) else "words"
    filled = {"[title]": title, "[kind]": kind, "[accept]": html.escape(accept), "[tiles]": tiles}
    filled["[no-surprises]"] = "" if surprises else "hidden"
    value = {"name": choices[0].name} if choices else None
    return _part("picker", ("picker",), filled, elem_id=elem_id, value=value, surprises=list(surprises))


def character(moods: Sequence[str], voices: Sequence[Choice], talkers: Sequence[Choice], elem_id: str) -> gr.HTML:
    """Mood, voice, who answers, and who the face is.

    Args:
        moods: keys of ``WORDS``; the first one is chosen at the start.
        voices: the first one is chosen.
        talkers: the first one is chosen.
        elem_id: id in the page.
    """
    filled = {
        "[moods]": "".join(_mood(mood, chosen=index == 0) for index, mood in enumerate(moods)),
        "[voices]": "".join(map(_option, voices)),
        "[talkers]": "".join(map(_option, talkers)),
    }
    value = {"mood": moods[0], "voice": voices[0].name, "talker": talkers[0].name, "persona": ""}
    return _part("character", ("character",), filled, elem_id=elem_id, value=value)


def _part(name: str, scripts: Sequence[str], filled: dict[str, str], **component: Any) -> gr.HTML:
    """A component from the files of that name; ``filled`` replaces the places marked in its html."""
    template, code = _text(f"{name}.html"), "".join(_text(f"{script}.js") for script in ("words", *scripts))
    for mark, text in filled.items():
        template = template.replace(mark, text)
    return gr.HTML(
        html_template=template,
        css_template=_text(f"{name}.css"),
        js_on_load=script(template, code) + code,
        apply_default_css=False,
        **component,
    )


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _label(choice: Choice) -> tuple[str, str]:
    """What the page calls a choice, and the attributes that have it translated."""
    if choice.label in WORDS:
        return html.escape(WORDS[choice.label][0]), f' data-word="{choice.label}"'
    return html.escape(choice.label), ""


def _tile(choice: Choice, chosen: bool) -> str:
    name, label = html.escape(choice.name, quote=True), html.escape(choice.label)
    inner = f'<img src="{choice.picture}" alt="">' if choice.picture else ""
    return (
        f'<button type="button" role="radio" class="lt-tile" data-name="{name}" aria-checked="{str(chosen).lower()}" '
        f'tabindex="{0 if chosen else -1}" title="{label}" aria-label="{label}">{inner}<span>{label}</span></button>'
    )


def _mood(mood: str, chosen: bool) -> str:
    label = html.escape(WORDS[mood][0])
    return (
        f'<button type="button" role="radio" class="lt-feel" data-mood="{mood}" tabindex="{0 if chosen else -1}" '
        f'aria-checked="{str(chosen).lower()}"><svg viewBox="0 0 24 24" aria-hidden="true">'
        f'<circle cx="12" cy="12" r="9.5"/><path d="M8.7 9.9v1M15.3 9.9v1{SIGNS[mood]}"/></svg>'
        f'<span data-word="{mood}">{label}</span></button>'
    )


def _option(choice: Choice) -> str:
    label, word = _label(choice)
    off = f' disabled title="{html.escape(choice.missing, quote=True)}"' if choice.missing else ""
    own = " data-own-voice" if choice.own_voice else ""
    return f'<option value="{html.escape(choice.name, quote=True)}"{word}{off}{own}>{label}</option>'
