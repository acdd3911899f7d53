"""The page: layout, and the wiring of its parts to sessions.

``build(avatar)`` gives the ``gr.Blocks``; ``launch_options()`` what it must be launched with. Browser events are
private (they do not appear in the API); ``livetalk.ui.api`` adds the public endpoints.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from livetalk.media.packets import Packer
from livetalk.media.pictures import load_portrait
from livetalk.media.sound import load_speech
from livetalk.stream.avatar import Avatar
from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE, LiveTalkError
from livetalk.ui.api import Outbox, add_api
from livetalk.ui.live import SPEECH_LIMIT_S, LiveSessions
from livetalk.ui.look import style_sheet, theme
from livetalk.ui.plain import SEED_LIMIT, checked_prompt, checked_seed, chosen, plain, sentence
from livetalk.ui.stage import Choice, picker, stage

UPLOAD_LIMIT = "100mb"
SESSION_LIMIT_S = 3600.0
PLACES = 2
_POSTER_SIDE = 512
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_KEEP_FILES_S = 1800
_ENSURE_LIVE = "async (speech) => [speech, await window.livetalk.play()]"


def build(avatar: Avatar, examples: Path = _EXAMPLES, places: int = PLACES) -> gr.Blocks:
    """The page and the API around ``avatar``.

    Args:
        avatar: the loaded models.
        examples: folder with ``portraits/`` and ``speech/``; may be missing, then visitors bring their own.
        places: how many live sessions may be on at once.
    """
    limit_s = float(os.environ.get("LIVETALK_SESSION_LIMIT_S", SESSION_LIMIT_S))
    sessions = LiveSessions(avatar, places, limit_s)
    faces = example_files(examples / "portraits", (".png", ".webp", ".jpg"))
    speeches = example_files(examples / "speech", (".wav", ".flac", ".ogg"))
    with gr.Blocks(
        title="LiveTalk", analytics_enabled=False, fill_width=True, delete_cache=(300, _KEEP_FILES_S)
    ) as page:
        gr.HTML(_headline(avatar.preset.title), elem_id="lt-head-block", padding=False)
        with gr.Row(elem_id="lt-columns"):
            with gr.Column(elem_id="lt-left"):
                first = next(iter(faces.values()), None)
                shown = poster(first) if first else None
                screen = stage(shown, server_functions(sessions), elem_id="lt-stage")
            with gr.Column(elem_id="lt-right"):
                _panel(screen, sessions, faces, speeches)
    return page.queue(default_concurrency_limit=1, max_size=16)


def launch_options() -> dict[str, Any]:
    """Arguments for ``launch``: nothing of a visitor is kept, only uploads and our answers are served."""
    return {
        "theme": theme(),
        "css": style_sheet(),
        "ssr_mode": False,
        "run_history": False,
        "show_error": True,
        "max_file_size": UPLOAD_LIMIT,
        "footer_links": ["api", "gradio", "settings"],
        "_frontend": False,  # no visit to itself: it gives up after 3 s, which a busy machine may need
    }


def _headline(model: str) -> str:
    return (
        '<header id="lt-head"><h1>LiveTalk<i></i></h1><p>Give a portrait a voice, and watch it speak as you listen.</p>'
        f'<p class="lt-model">{html.escape(model)}</p></header>'
    )


def _panel(screen: gr.HTML, sessions: LiveSessions, faces: dict[str, Path], speeches: dict[str, Path]) -> None:
    """Everything beside the stage, wired."""
    face = picker(
        "Face",
        [Choice(name, _label(name), poster(path, 256)) for name, path in faces.items()],
        accept="image/*",
        own_label="Your own",
        elem_id="lt-faces",
    )
    speech = picker(
        "Speech",
        [Choice(name, _label(name)) for name in speeches],
        accept="audio/*,video/*",
        own_label="Your own",
        elem_id="lt-speech",
    )
    with gr.Tabs():
        with gr.Tab("Live"):
            gr.Markdown(
                "Play a clip, or press **Speak** on the stage: the face says what you say while you say it.",
                elem_id="lt-hint",
            )
            play = gr.Button("Play it live", variant="primary", elem_id="lt-play")
        with gr.Tab("Clip"):
            make = gr.Button("Make a video", variant="primary", elem_id="lt-make")
            video = gr.Video(label="Video", elem_id="lt-video", interactive=False)
    with gr.Accordion("Manner and seed", open=False):
        prompt = gr.Textbox(label="How the person speaks", placeholder="calm, friendly, a slow nod", lines=2)
        seed = gr.Number(label="Seed", value=0, precision=0, minimum=0, maximum=SEED_LIMIT)
    sid = gr.Textbox(visible=False)
    outbox = Outbox()
    add_api(sessions, outbox, sessions.places)
    screen.session(
        live_events(sessions, faces),
        [face, prompt, seed],
        screen,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="multiple",
        concurrency_limit=sessions.places,
        concurrency_id="live",
    )
    face.chosen(look_at(sessions, faces), face, screen, api_visibility="private", show_progress="hidden", queue=False)
    play.click(
        play_speech(sessions, speeches),
        [speech, sid],
        None,
        js=_ENSURE_LIVE,
        api_visibility="private",
        show_progress="hidden",
        concurrency_limit=4,
    )
    make.click(
        make_video(sessions, outbox, faces, speeches),
        [face, speech, prompt, seed],
        video,
        api_visibility="private",
        concurrency_limit=1,
        concurrency_id="render",
    )


def server_functions(sessions: LiveSessions) -> list[Callable[..., Any]]:
    """What the stage may call without the queue; answers are plain data, an error is ``{"error": sentence}``."""

    async def push(data: list[Any]) -> dict[str, Any]:
        try:
            sid, rate, pcm = data
            return sessions.push(sid, pcm, rate)
        except (LiveTalkError, TypeError, ValueError) as error:
            return {"error": str(error)}

    async def stop(sid: str) -> dict[str, Any]:
        try:
            sessions.stop(sid)
        except LiveTalkError as error:
            return {"error": str(error)}
        return {}

    async def cut(sid: str) -> dict[str, Any]:
        try:
            sessions.get(sid).interrupt()
        except LiveTalkError as error:
            return {"error": str(error)}
        return {}

    async def place(sid: str) -> int:
        try:
            return sessions.place(sid)
        except LiveTalkError:
            return 0

    return [push, stop, cut, place]


def live_events(sessions: LiveSessions, faces: dict[str, Path]) -> Callable[..., Iterator[dict[str, Any]]]:
    """The generator behind the stage: one value per fragment, then ``end`` or ``error``."""

    def live(face: Any, prompt: Any, seed: Any, event: gr.EventData) -> Iterator[dict[str, Any]]:
        sid = event.sid
        try:
            portrait = chosen(face, faces, "face")
            with sessions.opened(sid, portrait, checked_prompt(prompt), checked_seed(seed)) as session:
                preset = sessions.avatar.preset
                packer = Packer(preset.height, preset.width, "jpeg" if event.codec == "jpeg" else "h264")
                for pictures in session.pictures():
                    state = "speaking" if pictures.speaking else "idle"
                    if len(pictures.pictures):
                        fragment = packer.pack(pictures, state, session.facts())
                    else:
                        fragment = packer.flush(pictures.generation, pictures.first_picture, state)
                    yield {"sid": sid, "b": base64.b64encode(fragment.payload).decode("ascii")}
                    if pictures.first_picture >= sessions.limit_s * PICTURES_PER_SECOND:
                        minutes = f"{sessions.limit_s / 60:g}"
                        yield {"sid": sid, "end": f"A session lasts up to {minutes} minutes. Start another."}
                        return
            yield {"sid": sid, "end": True}
        except Exception as error:
            yield {"sid": sid, "error": sentence(error)}

    return live


def look_at(sessions: LiveSessions, faces: dict[str, Path]) -> Callable[[Any], dict[str, Any]]:
    """Shows the portrait that was just chosen, with what is to be said about it."""

    def look(face: Any) -> dict[str, Any]:
        preset = sessions.avatar.preset
        try:
            portrait = load_portrait(chosen(face, faces, "face"), preset.height, preset.width)
        except Exception as error:
            return {"poster": None, "notice": sentence(error)}
        ours = isinstance(face, dict) and face.get("name") in faces
        picture = poster(faces[face["name"]]) if ours else _data_uri(Image.fromarray(portrait.pixels()))
        return {"poster": picture, "notice": portrait.notice if preset.portraits == "illustrated" else None}

    return look


def play_speech(sessions: LiveSessions, speeches: dict[str, Path]) -> Callable[[Any, Any], None]:
    """Lets the session on the stage say the chosen speech."""

    @plain
    def play(speech: Any, sid: Any) -> None:
        if not sid:
            raise LiveTalkError("The stage is not on, so nothing can be played. Press Start on it and try again.")
        session = sessions.get(sid)
        session.play(load_speech(chosen(speech, speeches, "speech"), PLAYBACK_RATE, SPEECH_LIMIT_S), PLAYBACK_RATE)

    return play


def make_video(
    sessions: LiveSessions, outbox: Outbox, faces: dict[str, Path], speeches: dict[str, Path]
) -> Callable[..., str]:
    """The Clip tab: an mp4 of the chosen face saying the chosen speech."""

    @plain
    def make(face: Any, speech: Any, prompt: Any, seed: Any, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        out = outbox.path("livetalk.mp4")

        def show(done_s: float, total_s: float | None) -> None:
            share = min(1.0, done_s / total_s) if total_s else None
            progress(share, desc=f"{done_s:.0f} s of {total_s:.0f} s" if total_s else f"{done_s:.0f} s")

        sessions.avatar.render(
            chosen(face, faces, "face"),
            chosen(speech, speeches, "speech"),
            out=out,
            prompt=checked_prompt(prompt),
            seed=checked_seed(seed),
            progress=show,
            limit_s=SPEECH_LIMIT_S,
        )
        return str(out)

    return make


def example_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Examples in ``folder`` by name, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}


def poster(path: Path, side: int = _POSTER_SIDE) -> str:
    """A picture of ours as a small square data URI."""
    with Image.open(path) as image:
        return _data_uri(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _label(name: str) -> str:
    """ "good-morning" -> "Good morning"."""
    return name.replace("_", " ").replace("-", " ").strip().capitalize()
