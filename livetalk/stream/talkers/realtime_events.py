"""The words of the Realtime protocol: settings, the events we send, and what the servers' events mean.

OpenAI's protocol is spoken in two spellings: the one of its general availability (nested session fields,
``response.output_audio.delta``) and the one of its beta (flat fields, ``response.audio.delta``), which Alibaba and
others kept. We send what ``RealtimeConfig.nested`` says and understand both. Pure functions; nothing here knows a
connection.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from livetalk.stream.talkers.pieces import to_pcm
from livetalk.stream.talkers.protocol import Message, Persona, TalkerError
from livetalk.types import PLAYBACK_RATE

Event = dict[str, Any]

OWN_INSTRUCTIONS = (
    "You are a friendly person in a live video conversation. Answer in one to three short sentences of plain spoken"
    " language, in the language you are spoken to. If you did not understand something, ask."
)
GO_ON = (
    "The connection broke in the middle of your last answer. Go on exactly where it stopped, without a greeting and"
    " without repeating anything."
)
TRANSCRIPTION = "conversation.item.input_audio_transcription."
_SHOWN_CHARACTERS = 160
_GA_NAMES = {"response.audio.": "response.output_audio.", "response.text.": "response.output_text."}
_GA_NAMES["response.audio_transcript."] = "response.output_audio_transcript."
# About requests that came too late or that a server does not know; the conversation goes on without them.
_HARMLESS = (
    "response_cancel_not_active",
    "response_cancel_no_active_response",
    "response_not_active",
    "unknown_or_invalid_event",
    "invalid_event",
    "item_truncate",
    "item_delete",
)
_LASTING = ("invalid_api_key", "insufficient_quota", "authentication", "permission", "model_not_found", "access_denied")
_REFUSING_CLOSES = (1008, 3000, 3003, 4001, 4003)


@dataclass(frozen=True)
class RealtimeConfig:
    """Where the server is and how it likes to be spoken to.

    Attributes:
        url: ``ws://`` or ``wss://``, such as ``wss://api.openai.com/v1/realtime``.
        key: sent as bearer token; "" = none.
        model: asked for in the URL; "" = the server's only one.
        voice: "" = the server's own choice.
        nested: fields as in the protocol's general availability; False = flat as in its beta (Alibaba).
        input_rate: sample rate of the PCM we send, in Hz: 24000, or 16000 (Alibaba).
        output_rate: sample rate of the PCM we get, in Hz.
        flat_format: name of PCM in flat fields ("pcm16", or "pcm").
        server_vad: the server finds the end of the turn (Hugging Face speech-to-speech); it gets whole turns and a
            pause. False = we say so, which makes all talkers feel alike.
        transcriber: model that writes down the visitor's words; "" = not asked for.
        speculative: turns may be begun on a guess: only for servers that can delete items.
        open_s: longest wait for a connection.
        settle_s: longest wait for a cancelled reply to end, for settings to be confirmed, for a late transcript.
        stall_s: longest silence of the server within a turn.
        pause_s: silence sent behind a turn with ``server_vad``.
    """

    url: str = ""
    key: str = field(default="", repr=False)
    model: str = ""
    voice: str = ""
    nested: bool = True
    input_rate: int = PLAYBACK_RATE
    output_rate: int = PLAYBACK_RATE
    flat_format: str = "pcm16"
    server_vad: bool = False
    transcriber: str = ""
    speculative: bool = False
    open_s: float = 10.0
    settle_s: float = 2.0
    stall_s: float = 15.0
    pause_s: float = 1.2

    @property
    def place(self) -> str:
        """What people call the server."""
        return urlsplit(self.url).netloc.rpartition("@")[2] or "the realtime server"

    @property
    def address(self) -> str:
        """The URL with the model in it."""
        if not self.model or "model=" in self.url:
            return self.url
        return f"{self.url}{'&' if '?' in self.url else '?'}model={quote(self.model, safe='/')}"

    @property
    def headers(self) -> dict[str, str]:
        """What is sent along with the handshake."""
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return key if self.nested else {**key, "OpenAI-Beta": "realtime=v1"}


# --- what we send -----------------------------------------------------------------------------------


def session_update(config: RealtimeConfig, persona: Persona) -> Event:
    """Who the server should be, and how sound travels."""
    detection = {"type": "server_vad", "silence_duration_ms": 500} if config.server_vad else None
    transcription = {"transcription": {"model": config.transcriber}} if config.transcriber else {}
    voice = {"voice": persona.voice or config.voice} if persona.voice or config.voice else {}
    instructions = persona.instructions or OWN_INSTRUCTIONS
    if config.nested:
        heard = {"format": {"type": "audio/pcm", "rate": config.input_rate}, "turn_detection": detection}
        said = {"format": {"type": "audio/pcm", "rate": config.output_rate}}
        session: Event = {
            "type": "realtime",
            "output_modalities": ["audio"],
            "instructions": instructions,
            "audio": {"input": {**heard, **transcription}, "output": {**said, **voice}},
        }
    else:
        session = {
            "modalities": ["text", "audio"],
            "instructions": instructions,
            "input_audio_format": config.flat_format,
            "output_audio_format": config.flat_format,
            "turn_detection": detection,
            **{f"input_audio_{name}": value for name, value in transcription.items()},
            **voice,
        }
    return {"type": "session.update", "session": session}


def append(samples: np.ndarray) -> Event:
    """Sound of the visitor (float32 at the configured rate)."""
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(to_pcm(samples)).decode("ascii")}


def line(role: str, text: str, nested: bool) -> Event:
    """A line of the conversation: of the "user", the "assistant" or the "system"."""
    said = ("output_text" if nested else "text") if role == "assistant" else "input_text"
    item = {"type": "message", "role": role, "content": [{"type": said, "text": text}]}
    return {"type": "conversation.item.create", "item": item}


def lines(history: Sequence[Message], nested: bool) -> list[Event]:
    """The conversation so far, for a server that does not know it."""
    roles = {"visitor": "user", "avatar": "assistant"}
    return [line(roles[message.role], message.text, nested) for message in history if message.text]


def truncate(item: str, heard_s: float) -> Event:
    """Only the beginning of the server's item was heard."""
    ms = int(heard_s * 1000)
    return {"type": "conversation.item.truncate", "item_id": item, "content_index": 0, "audio_end_ms": ms}


def delete(item: str) -> Event:
    """The item never was."""
    return {"type": "conversation.item.delete", "item_id": item}


def cut_to(items: dict[str, int], heard_s: float, sample_rate: int) -> list[Event]:
    """Events that cut a reply's items (samples by name, in order) to the first ``heard_s`` seconds."""
    events: list[Event] = []
    left = max(0, round(heard_s * sample_rate))
    for item, samples in items.items():
        if left < samples:
            events.append(truncate(item, left / sample_rate) if left or not events else delete(item))
        left = max(0, left - samples)
    return events


# --- what servers send ------------------------------------------------------------------------------


def kind_of(event: Event) -> str:
    """The event's type in the spelling of general availability."""
    kind = str(event.get("type", ""))
    for beta, ga in _GA_NAMES.items():
        if kind.startswith(beta):
            return ga + kind[len(beta) :]
    return kind


def response_of(event: Event) -> str | None:
    """The reply that an event belongs to, if it says so."""
    inner = event.get("response")
    found = event.get("response_id") or (inner.get("id") if isinstance(inner, dict) else None)
    return str(found) if found else None


def sound_of(event: Event) -> bytes:
    """PCM of a sound delta.

    Raises:
        TalkerError: it is no base64.
    """
    try:
        return base64.b64decode(event.get("delta") or event.get("audio") or "", validate=True)
    except ValueError as error:
        raise TalkerError("The realtime server sent sound that cannot be read. Ask again.", lasting=False) from error


def is_harmless(event: Event) -> bool:
    """Whether an ``error`` event is only about something that came too late."""
    inner = event.get("error") or {}
    return any(word in f"{inner.get('code')} {inner.get('type')}" for word in _HARMLESS)


def complaint(event: Event, place: str) -> TalkerError:
    """What an ``error`` event, or a failed reply, says, as one sentence."""
    inner = event.get("error") or (event.get("response") or {}).get("status_details") or {}
    inner = inner.get("error") or inner
    codes = f"{inner.get('code')} {inner.get('type')}".lower()
    message = " ".join(str(inner.get("message") or inner.get("code") or inner.get("type") or "no reason given").split())
    said = message[:_SHOWN_CHARACTERS].rstrip(". ")
    if any(word in codes for word in _LASTING):
        return TalkerError(f"{place} refuses to answer: {said}. Check the key and the account, or use another talker.")
    return TalkerError(f"{place} reported an error: {said}. Ask again.", lasting=False)


def refused_close(code: int | None, reason: str, place: str) -> TalkerError | None:
    """The sentence for a connection that was closed on purpose; None if it just broke."""
    if code not in _REFUSING_CLOSES:
        return None
    said = reason[:_SHOWN_CHARACTERS].rstrip(". ") or f"code {code}"
    return TalkerError(f"{place} closed the connection: {said}. Check the key and the account, or use another talker.")


def refused_handshake(status: int, place: str) -> TalkerError:
    """The sentence for an HTTP status instead of a connection."""
    if status in (401, 403):
        return TalkerError(f"{place} refused the key ({status}). Set LIVETALK_REALTIME_KEY to a key of that server.")
    if status == 402:
        return TalkerError(f"{place} wants to be paid (402): the account is empty. Fill it, or use another talker.")
    if status == 429 or status >= 500:
        return TalkerError(f"{place} takes no more visitors at the moment ({status}). Try again soon.", lasting=False)
    return TalkerError(f"{place} does not speak the Realtime protocol there ({status}). Check the URL and the model.")
