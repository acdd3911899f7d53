"""The page: its layout, and the wiring of its parts to what happens behind them (``livetalk.ui.events``).

``build(avatar)`` gives the ``gr.Blocks``; ``launch_options()`` what it must be launched with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from livetalk.stream.avatar import Avatar
from livetalk.stream.capacity import configured_number
from livetalk.stream.talkers.registry import AUTO, CHOICES, Visitor, choice, default_name, talker_chain
from livetalk.ui.api import Outbox, add_api
from livetalk.ui.events import (
    MOODS,
    film,
    live_events,
    look_at,
    make_video,
    play_speech,
    poster,
    server_functions,
)
from livetalk.ui.lending import LentAvatar, is_lent, lender
from livetalk.ui.lent import LentGpus
from livetalk.ui.line import visitor_limit
from livetalk.ui.live import LiveSessions
from livetalk.ui.look import style_sheet, theme
from livetalk.ui.opening import Elsewhere
from livetalk.ui.plain import SEED_LIMIT
from livetalk.ui.stage import Choice, character, head, picker, stage, transcript
from livetalk.ui.words import i18n, said
from livetalk.voice import available_voices

UPLOAD_LIMIT = "100mb"
SESSION_LIMIT_S = 3600
OTHER_THREADS = 16
"""Of the server, beside those that visitors keep busy."""
OFFLINE = "offline"
"""The talker that speaks with the voices of ``livetalk.voice``; others bring their own."""

ROBOT_VOICES = ("en-us", "en-us+f2", "en-us+f4", "en-us+m3", "en-us+m7")
_TILE_SIDE = 192
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_KEEP_FILES_S = 1800
_GREETER = "elena"
"""The example who is there when the page opens: of the kind that the embedded model draws best."""
_PICTURES, _SOUNDS = (".png", ".webp", ".jpg"), (".wav", ".flac", ".ogg")
_ENSURE_LIVE = "async (speech) => [speech, await window.livetalk.play()]"
_TALKING = "(face) => [face, window.livetalk.talking]"


@dataclass(frozen=True)
class _Shelf:
    """Examples by name.

    Attributes:
        faces: portraits that have a tile.
        surprises: more portraits.
        speeches: clips.
    """

    faces: dict[str, Path]
    surprises: dict[str, Path]
    speeches: dict[str, Path]

    @property
    def portraits(self) -> dict[str, Path]:
        """All portraits."""
        return {**self.faces, **self.surprises}


def build(
    avatar: Avatar, examples: Path = _EXAMPLES, places: int | None = None, elsewhere: Elsewhere | None = None
) -> gr.Blocks:
    """The page and the API around ``avatar``.

    Args:
        avatar: the loaded models.
        examples: folder with ``portraits/`` and ``speech/``; may be missing, then visitors bring their own.
        places: how many live sessions may be on at once; None = as many as the machine carries.
        elsewhere: opens sessions in other processes; None = pictures are made in this one.

    Raises:
        LiveTalkError: an environment variable makes no sense.
    """
    limit_s = configured_number("LIVETALK_SESSION_LIMIT_S", "seconds") or SESSION_LIMIT_S
    if is_lent():
        avatar = LentAvatar(avatar, lender(avatar, talker_chain))
        elsewhere = LentGpus(avatar)
    return page_of(LiveSessions(avatar, places, limit_s, elsewhere=elsewhere), examples)


def page_of(sessions: LiveSessions, examples: Path = _EXAMPLES) -> gr.Blocks:
    """The page and the API around ``sessions``; see ``build``."""
    portraits = examples / "portraits"
    faces = example_files(portraits, _PICTURES)
    shelf = _Shelf(
        dict(sorted(faces.items(), key=lambda face: face[0] != _GREETER)),
        example_files(portraits / "more", _PICTURES),
        example_files(examples / "speech", _SOUNDS),
    )
    preset = sessions.avatar.preset
    with gr.Blocks(
        title="LiveTalk", analytics_enabled=False, fill_width=True, delete_cache=(300, _KEEP_FILES_S)
    ) as page:
        head(preset.title, _licence(preset.weights.licence), elem_id="lt-head")
        with gr.Row(elem_id="lt-columns"):
            with gr.Column(elem_id="lt-left"):
                first = next(iter(shelf.faces.values()), None)
                screen = stage(poster(first) if first else None, server_functions(sessions), elem_id="lt-stage")
            with gr.Column(elem_id="lt-right"):
                _panel(screen, sessions, shelf)
    return page.queue(default_concurrency_limit=1, max_size=16)


def launch_options() -> dict[str, Any]:
    """Arguments for ``launch``: nothing of a visitor is kept, only uploads and our answers are served."""
    return {
        "theme": theme(),
        "css": style_sheet(),
        "i18n": i18n(),
        "ssr_mode": False,
        "run_history": False,
        "show_error": True,
        "max_threads": visitor_limit() + OTHER_THREADS,
        "max_file_size": UPLOAD_LIMIT,
        "footer_links": ["api", "gradio", "settings"],
        "_frontend": False,  # no visit to itself: it gives up after 3 s, which a busy machine may need
    }


def _panel(screen: gr.HTML, sessions: LiveSessions, shelf: _Shelf) -> None:
    """Everything beside the stage, wired."""
    record = transcript(elem_id="lt-transcript")
    face = picker(
        "face",
        [Choice(name, _label(name), poster(path, _TILE_SIDE)) for name, path in shelf.faces.items()],
        accept="image/*",
        elem_id="lt-faces",
        surprises=tuple(shelf.surprises),
    )
    who = character(MOODS, voices(), talkers(), elem_id="lt-character")
    with gr.Column(elem_id="lt-clips"):
        speech = picker(
            "speech",
            [Choice(name, _label(name)) for name in shelf.speeches],
            accept="audio/*,video/*",
            elem_id="lt-speech",
        )
        gr.Markdown(said("mirror_help"), elem_id="lt-hint")
        play = gr.Button(said("play"), variant="primary", elem_id="lt-play")
        make = gr.Button(said("make"), variant="primary", elem_id="lt-make")
        video = gr.Video(label=said("video"), elem_id="lt-video", interactive=False)
        with gr.Accordion(said("manner"), open=False, elem_id="lt-manner"):
            prompt = gr.Textbox(label=said("prompt"), placeholder="calm, friendly, a slow nod", lines=2)
            seed = gr.Number(label=said("seed"), value=0, precision=0, minimum=0, maximum=SEED_LIMIT)
    sid = gr.Textbox(visible=False)
    outbox = Outbox()
    add_api(sessions, outbox)
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    screen.session(
        live_events(sessions, shelf.portraits),
        [face, prompt, seed, who],
        screen,
        trigger_mode="multiple",
        concurrency_limit=visitor_limit(),
        concurrency_id="live",
        **quiet,
    )
    face.chosen(look_at(sessions, shelf.portraits), [face, sid], screen, js=_TALKING, queue=False, **quiet)
    record.film(film(sessions), None, record, queue=False, **quiet)
    play.click(
        play_speech(sessions, shelf.speeches), [speech, sid], None, js=_ENSURE_LIVE, concurrency_limit=4, **quiet
    )
    make.click(
        make_video(sessions, outbox, shelf.portraits, shelf.speeches),
        [face, speech, prompt, seed, who],
        video,
        api_visibility="private",
        concurrency_limit=1,
        concurrency_id="render",
    )


def voices() -> list[Choice]:
    """Voices of this machine that the page offers, the talker's own choice first."""
    found = [Choice("", "automatic")]
    for voice in available_voices():
        engine, _, name = voice.partition(":")
        if engine == "flite":
            found.append(Choice(voice, f"voice_{name}"))
        elif name in ROBOT_VOICES:
            found.append(Choice(voice, "voice_robot" if "+" not in name else f"Robot {name.partition('+')[2]}"))
    return found


def talkers() -> list[Choice]:
    """Who may answer, the default first, with the reason for those that cannot work here."""
    default = default_name()
    missing = {one.name: one.missing(Visitor()) for one in CHOICES}
    others = [
        Choice(one.name, one.label, missing=missing[one.name], own_voice=one.name != OFFLINE)
        for one in CHOICES
        if one.name != default
    ]
    if default == AUTO:
        label, own_voice = "automatic", any(why is None for name, why in missing.items() if name != OFFLINE)
    else:
        label, own_voice = choice(default).label, default != OFFLINE
    return [Choice("", label, own_voice=own_voice), *others]


def example_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Examples in ``folder`` by name, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}


def _label(name: str) -> str:
    """ "good-morning" -> "Good morning"."""
    return name.replace("_", " ").replace("-", " ").strip().capitalize()


def _licence(name: str) -> str:
    """ "apache-2.0" as people write it."""
    return {"apache-2.0": "Apache-2.0", "mit": "MIT"}.get(name, name)
