"""What happens when the page asks for something: the functions behind its events, apart from how it looks.

Browser events are private (they do not appear in the API, see ``livetalk.ui.api``). This module knows sessions and what
visitors send; it makes no component.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData
from PIL import Image

from livetalk.distill.portraits.motion import MOOD_WORDS, MOTION_WORDS
from livetalk.media.packets import Packer
from livetalk.media.pictures import load_portrait
from livetalk.media.sound import load_speech
from livetalk.stream.talkers.protocol import Persona
from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE, LiveTalkError
from livetalk.ui.api import Outbox
from livetalk.ui.live import SPEECH_LIMIT_S, LiveSessions, Talk
from livetalk.ui.plain import checked_prompt, checked_seed, chosen, plain, sentence
from livetalk.ui.said import SaidNews
from livetalk.ui.visit import LiveSession

MOODS = tuple(MOOD_WORDS)
PERSONA_LIMIT = 2_000
_POSTER_SIDE = 512
_MODES = {"talk": "conversation", "mirror": "mirror"}


def manner(prompt: str, mood: str) -> str:
    """How the person moves and feels: the visitor's words, or those of training captions for the mood."""
    return prompt or f"A person speaks {MOOD_WORDS[mood][0]}, {MOTION_WORDS['gentle'][1]}."


def checked_character(value: Any) -> dict[str, str]:
    """What the visitor chose under mood, voice, talker and persona; only what was said, all of it usable.

    Raises:
        LiveTalkError: an unknown mood, or something that is no text or too long.
    """
    wishes = value if isinstance(value, dict) else {}
    known = {name: wishes[name] for name in ("mood", "voice", "talker", "persona") if wishes.get(name) is not None}
    for name, text in known.items():
        if not isinstance(text, str) or len(text) > PERSONA_LIMIT:
            raise LiveTalkError(f"The {name} cannot be used. Expected a text of up to {PERSONA_LIMIT:,} characters.")
    if known.get("mood", MOODS[0]) not in MOODS:
        raise LiveTalkError(f"There is no mood {known['mood'][:40]!r}. Known moods: {', '.join(MOODS)}.")
    return known


def server_functions(sessions: LiveSessions) -> list[Callable[..., Any]]:
    """What the stage may call without the queue; answers are plain data, an error is ``{"error": sentence}``."""

    async def push(data: list[Any]) -> dict[str, Any]:
        return _answer(lambda sid, rate, pcm: sessions.push(sid, pcm, rate), data)

    async def stop(sid: str) -> dict[str, Any]:
        return _answer(sessions.stop, [sid])

    async def cut(sid: str) -> dict[str, Any]:
        return _answer(sessions.interrupt, [sid])

    async def write(data: list[Any]) -> dict[str, Any]:
        return _answer(lambda sid, text: sessions.write(sid, str(text)), data)

    async def keep(data: list[Any]) -> dict[str, Any]:
        return _answer(sessions.keep, data)

    async def beat(sid: str) -> dict[str, Any]:
        return _answer(sessions.beat, [sid])

    def change(data: list[Any]) -> dict[str, Any]:  # in a thread of its own: it has to compute
        return _answer(lambda sid, wishes: _change(sessions, sid, checked_character(wishes)), data)

    return [push, stop, cut, write, keep, beat, change]


def _answer(deed: Callable[..., Any], arguments: Any) -> dict[str, Any]:
    """What ``deed`` says, if it is plain data, or its error as a sentence."""
    try:
        said = deed(*arguments)
    except (LiveTalkError, TypeError, ValueError) as error:
        return {"error": str(error)}
    return said if isinstance(said, dict) else {}


def _change(sessions: LiveSessions, sid: str, wishes: dict[str, str]) -> None:
    prompt = manner("", wishes["mood"]) if "mood" in wishes else None
    sessions.change(sid, prompt=prompt, voice=wishes.get("voice"), instructions=wishes.get("persona"))


def live_events(sessions: LiveSessions, faces: dict[str, Path]) -> Callable[..., Iterator[dict[str, Any]]]:
    """The generator behind the stage: places in line, one value per fragment, then ``end`` or ``error``."""

    def live(face: Any, prompt: Any, seed: Any, character: Any, event: gr.EventData) -> Iterator[dict[str, Any]]:
        sid = event.sid
        try:
            wishes = checked_character(character)
            portrait, number = chosen(face, faces, "face"), checked_seed(seed)
            mode = _MODES.get(getattr(event, "mode", "mirror"), "mirror")
            words = manner(checked_prompt(prompt), wishes.get("mood", MOODS[0]))
            for place in sessions.waits(sid):
                yield {"sid": sid, "place": place}
            talk = _talk(wishes, bool(getattr(event, "keeps", False))) if mode == "conversation" else None
            with sessions.opened(sid, portrait, words, number, mode, talk=talk) as session:
                for value in _shown(sessions, sid, session, event.codec):
                    yield {"sid": sid, **value}
            yield {"sid": sid, "end": True}
        except Exception as error:
            yield {"sid": sid, "error": sentence(error)}

    return live


def _talk(wishes: dict[str, str], keeps: bool) -> Talk:
    persona = Persona(instructions=wishes.get("persona", ""), voice=wishes.get("voice", ""))
    return Talk(talker=wishes.get("talker") or None, persona=persona, keeps=keeps)


def _shown(sessions: LiveSessions, sid: str, session: LiveSession, codec: str) -> Iterator[dict[str, str]]:
    """Messages for the player until the session ends; the last one says so if it has lasted as long as it may."""
    preset, said = sessions.avatar.preset, SaidNews(session)
    packer = Packer(preset.height, preset.width, "jpeg" if codec == "jpeg" else "h264")
    for pictures in sessions.pictures(sid):
        state = "speaking" if pictures.speaking else "idle"
        if len(pictures.pictures):
            fragment = packer.pack(pictures, state, {"said": said.news(), **session.facts()})
        else:
            fragment = packer.flush(pictures.generation, pictures.first_picture, state)
        yield {"b": base64.b64encode(fragment.payload).decode("ascii")}
        if pictures.first_picture >= sessions.limit_s * PICTURES_PER_SECOND:
            yield {"end": f"A session lasts up to {sessions.limit_s / 60:g} minutes. Start another."}
            return


def look_at(sessions: LiveSessions, faces: dict[str, Path]) -> Callable[..., dict[str, Any]]:
    """Shows the portrait that was just chosen, with what is to be said about it; a conversation goes on with it."""

    def look(face: Any, sid: Any = None) -> dict[str, Any]:
        preset = sessions.avatar.preset
        try:
            path = chosen(face, faces, "face")
            portrait = load_portrait(path, preset.height, preset.width)
            if sid:
                sessions.change(sid, portrait=path)
        except Exception as error:
            return {"poster": None, "notice": sentence(error)}
        ours = isinstance(face, dict) and face.get("name") in faces
        picture = poster(path) if ours else _data_uri(Image.fromarray(portrait.pixels()))
        notice = portrait.notice if preset.portraits == "illustrated" else None
        return {"poster": picture, "notice": notice, "changed": bool(sid)}

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
    def make(
        face: Any,
        speech: Any,
        prompt: Any,
        seed: Any,
        character: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        out = outbox.path("livetalk.mp4")

        def show(done_s: float, total_s: float | None) -> None:
            share = min(1.0, done_s / total_s) if total_s else None
            progress(share, desc=f"{done_s:.0f} s of {total_s:.0f} s" if total_s else f"{done_s:.0f} s")

        sessions.avatar.render(
            chosen(face, faces, "face"),
            chosen(speech, speeches, "speech"),
            out=out,
            prompt=manner(checked_prompt(prompt), checked_character(character).get("mood", MOODS[0])),
            seed=checked_seed(seed),
            progress=show,
            limit_s=SPEECH_LIMIT_S,
        )
        return str(out)

    return make


def film(sessions: LiveSessions) -> Callable[[gr.EventData], FileData]:
    """The recording of a conversation that has ended, for its visitor to save."""

    @plain
    def saved(event: gr.EventData) -> FileData:
        path = sessions.recording(event.sid)
        file: Any = FileData(path=str(path), orig_name="livetalk.mp4", mime_type="video/mp4").model_dump()
        return file

    return saved


def poster(path: Path, side: int = _POSTER_SIDE) -> str:
    """A picture of ours as a small square data URI."""
    with Image.open(path) as image:
        return _data_uri(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
