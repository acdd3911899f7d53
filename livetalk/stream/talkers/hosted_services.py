"""Ears, mind and voice that run elsewhere: speech recognition, chat and text to speech over HTTP.

``HubServices`` speaks to the Hub's inference providers, ``ServerServices`` to any server with OpenAI's ``/v1`` routes.
Whatever goes wrong comes out as a ``TalkerError`` with one sentence. This module does not know in what order a reply is
made; see ``hosted``.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import tempfile
import wave
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
import numpy as np

from livetalk.hub import async_inference_client
from livetalk.media.sound import StreamResampler, load_speech
from livetalk.stream.talkers.pieces import PcmReader, to_pcm
from livetalk.stream.talkers.protocol import TalkerError
from livetalk.types import MODEL_RATE, PLAYBACK_RATE, LiveTalkError

T = TypeVar("T")

EARS, MIND, VOICE = "Speech recognition", "The language model", "Text to speech"
HUB, HUB_ROUTER = "Hugging Face", "https://router.huggingface.co/v1"
NO_KEY = "none"
"""Sent to servers that need no key: without any the Hub's client would send them this machine's token."""

_FILE_HEADS, _HEAD_BYTES = (b"RIFF", b"ID3", b"fLaC", b"OggS"), 4
_SHOWN_CHARACTERS = 160


@dataclass(frozen=True)
class HostedConfig:
    """Which models answer, where, and how long they may take; the defaults have open weights.

    Attributes:
        ears_model: speech recognition (MIT).
        chat_model: what thinks (Apache-2.0); a provider may be named behind it as ``:groq``.
        voice_model: text to speech (Apache-2.0); "" = none, the talker's ``speak`` is used.
        voice: name of a voice of that model; "" = the provider's own choice.
        provider: of all three models at the Hub; "auto" = the first one of the account's order.
        base_url: of a server with OpenAI's routes instead of the Hub, such as ``http://127.0.0.1:8000/v1``.
        api_key: of that server; tokens for the Hub are never sent to it.
        voice_rate: sample rate of that server's PCM, in Hz.
        reasoning_effort: sent to the chat model; "" = not sent.
        reply_tokens: longest reply.
        answer_s: longest wait for words, for the first token, and for a clause's sound.
        stall_s: longest pause inside a stream.
        reply_s: longest time for a whole reply.
        speculative: begin turns on a guess; a guess that is dropped costs its requests.
    """

    ears_model: str = "openai/whisper-large-v3-turbo"
    chat_model: str = "openai/gpt-oss-120b"
    voice_model: str = "hexgrad/Kokoro-82M"
    voice: str = ""
    provider: str = "auto"
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    voice_rate: int = PLAYBACK_RATE
    reasoning_effort: str = "low"
    reply_tokens: int = 400
    answer_s: float = 20.0
    stall_s: float = 8.0
    reply_s: float = 120.0
    speculative: bool = True

    @property
    def place(self) -> str:
        """What people call the place where the models run."""
        return urlsplit(self.base_url).netloc.rpartition("@")[2] if self.base_url else HUB


class HubServices:
    """The three services at the Hub's inference providers, for the length of one turn.

    One client per turn: within it connections are reused, and leaving it cuts off whatever is still running. (The
    Hub's client remembers every stream until it is closed, so that one for a whole conversation would grow.)

    Attributes:
        streams: speech comes in packets, not as a whole.
    """

    streams = False

    def __init__(self, config: HostedConfig, token: str | None) -> None:
        self._config = config
        self._hub = async_inference_client(token, config.provider, None, config.answer_s)

    async def __aenter__(self) -> HubServices:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hub.close()

    async def transcribe(self, samples: np.ndarray) -> str:
        """Words in ``samples`` (float32 at ``MODEL_RATE``); "" = none.

        Raises:
            TalkerError: nobody listened.
        """
        with translated(EARS, self._config.place):
            text = await asyncio.wait_for(self._transcribe(to_wav(samples)), self._config.answer_s)
            return text.strip() if any(letter.isalnum() for letter in text) else ""

    async def chat(self, messages: Sequence[dict[str, str]]) -> AsyncIterator[str]:
        """What the language model writes, as it writes it.

        Raises:
            TalkerError: it did not answer, or stopped in the middle.
        """
        with translated(MIND, self._config.place):
            async for text in timely(self._chat(messages), self._config.answer_s, self._config.stall_s):
                yield text

    async def speak(self, text: str, voice: str) -> AsyncIterator[np.ndarray]:
        """Sound of a clause, float32 at ``PLAYBACK_RATE``, in packets.

        Raises:
            TalkerError: no sound came, or it broke off.
        """
        sounded = False
        with translated(VOICE, self._config.place):
            async for samples in timely(self._speak(text, voice), self._config.answer_s, self._config.stall_s):
                sounded = sounded or len(samples) > 0
                yield samples
        if not sounded:
            raise TalkerError(f"{VOICE} at {self._config.place} sent no sound. Choose another model.", lasting=False)

    async def _transcribe(self, wav: bytes) -> str:
        with tempfile.TemporaryDirectory(prefix="livetalk-") as folder:
            path = Path(folder, "speech.wav")  # some providers learn the format from the name only
            path.write_bytes(wav)
            heard = await self._hub.automatic_speech_recognition(str(path), model=self._config.ears_model)
        return str(heard.text)

    async def _chat(self, messages: Sequence[dict[str, str]]) -> AsyncIterator[str]:
        effort = self._config.reasoning_effort
        stream = await self._hub.chat_completion(
            list(messages),
            model=self._config.chat_model,
            stream=True,
            max_tokens=self._config.reply_tokens,
            extra_body={"reasoning_effort": effort} if effort else None,
        )
        async for chunk in stream:
            # thinking aloud and empty deltas are signs of life, too
            yield (chunk.choices[0].delta.content or "") if chunk.choices else ""

    async def _speak(self, text: str, voice: str) -> AsyncIterator[np.ndarray]:
        extra = {"voice": voice} if voice else None
        data = await self._hub.text_to_speech(text, model=self._config.voice_model, extra_body=extra)
        yield await asyncio.to_thread(load_speech, data, PLAYBACK_RATE)


class ServerServices(HubServices):
    """The three services of one server with OpenAI's routes; its speech is streamed."""

    streams = True

    def __init__(self, config: HostedConfig) -> None:
        self._config = config
        token = config.api_key or NO_KEY
        self._hub = async_inference_client(token, None, config.base_url, config.answer_s)
        self._http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=config.answer_s)
        self._base = config.base_url.rstrip("/")

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()
        await super().__aexit__()

    async def _transcribe(self, wav: bytes) -> str:
        reply = await self._http.post(
            f"{self._base}/audio/transcriptions",
            files={"file": ("speech.wav", wav, "audio/wav")},
            data={"model": self._config.ears_model},
        )
        reply.raise_for_status()
        return str(reply.json()["text"])

    async def _speak(self, text: str, voice: str) -> AsyncIterator[np.ndarray]:
        wanted = {"model": self._config.voice_model, "input": text, "voice": voice, "response_format": "pcm"}
        body = {key: value for key, value in wanted.items() if value}
        pcm, resampler = PcmReader(), StreamResampler(self._config.voice_rate, PLAYBACK_RATE)
        async with self._http.stream("POST", f"{self._base}/audio/speech", json=body) as reply:
            if reply.is_error:
                await reply.aread()
            reply.raise_for_status()
            packets, head = reply.aiter_bytes(), b""
            async for data in packets:
                head += data
                if len(head) >= _HEAD_BYTES:
                    break
            if _is_file(head, reply.headers.get("content-type", "")):  # although PCM was asked for
                whole = head + b"".join([data async for data in packets])
                yield await asyncio.to_thread(load_speech, whole, PLAYBACK_RATE)
                return
            yield resampler.push(pcm.read(head))
            async for data in packets:
                yield resampler.push(pcm.read(data))
        yield resampler.finish()


def _is_file(head: bytes, kind: str) -> bool:
    """Whether sound begins like a file rather than like bare samples; MP3 needs its name, too."""
    return head.startswith(_FILE_HEADS) or (head[:1] == b"\xff" and "mp" in kind)


def to_wav(samples: np.ndarray) -> bytes:
    """A WAV file of ``samples`` (float32 at ``MODEL_RATE``)."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(MODEL_RATE)
        file.writeframes(to_pcm(samples))
    return target.getvalue()


async def timely(stream: AsyncIterator[T], first_s: float, stall_s: float) -> AsyncIterator[T]:
    """The items of a stream, with a limit on every wait: servers that drip comments never run into a read timeout.

    Raises:
        asyncio.TimeoutError: the first item took longer than ``first_s`` or another one longer than ``stall_s``.
    """
    items, limit_s = stream.__aiter__(), first_s
    while True:
        try:
            item = await asyncio.wait_for(items.__anext__(), limit_s)
        except StopAsyncIteration:
            return
        limit_s = stall_s
        yield item


async def check_reachable(config: HostedConfig, token: str | None) -> None:
    """Ask for the list of models, to find out early that there is no network or that the token is refused.

    Raises:
        TalkerError: nobody answers, or the token is refused.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with translated(MIND, config.place):
        async with httpx2.AsyncClient(headers=headers, timeout=config.stall_s) as http:
            request = http.get(f"{(config.base_url or HUB_ROUTER).rstrip('/')}/models")
            reply = await asyncio.wait_for(request, config.stall_s)
            if reply.status_code in (401, 403):  # servers without this route are fine
                reply.raise_for_status()


@contextlib.contextmanager
def translated(step: str, place: str) -> Iterator[None]:
    """Turn what HTTP clients raise into ``TalkerError``.

    Args:
        step: what was tried, as the beginning of a sentence.
        place: where.
    """
    try:
        yield
    except TalkerError:
        raise
    except LiveTalkError as error:  # sound that cannot be read
        raise TalkerError(f"{step} at {place} sent something unusable. {error}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, asyncio.TimeoutError) as error:
        raise explained(error, step, place) from error


def explained(error: Exception, step: str, place: str) -> TalkerError:
    """One sentence for a failed request, and whether the next one would fail too."""
    where = f"{step} at {place}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return _refusal(int(status), step, place, getattr(error, "server_message", None))
    if isinstance(error, (asyncio.TimeoutError, TimeoutError, httpx2.TimeoutException)):
        return TalkerError(f"{where} took too long to answer. Say it again, or choose another talker.", lasting=False)
    if isinstance(error, httpx2.ConnectError):
        reason = "its address was not found" if _is_dns(error) else "nobody answers there"
        return TalkerError(f"{where} cannot be reached: {reason}. Check the network.")
    if isinstance(error, httpx2.HTTPError):
        return TalkerError(f"{where} broke off ({_short(error)}). Say it again.", lasting=False)
    return TalkerError(f"{where} cannot be used: {_short(error)}. Choose other models or another talker.")


def _refusal(status: int, step: str, place: str, message: str | None) -> TalkerError:
    where, said = f"{step} at {place}", f", {_short(message)}" if message else ""
    if status in (401, 403):
        key = "set HF_TOKEN to a token that may call Inference Providers" if place == HUB else "set the right key"
        return TalkerError(f"{where} refused the token ({status}{said}). Sign in again, or {key}.")
    if status == 402:
        account = " at https://huggingface.co/settings/billing" if place == HUB else ""
        return TalkerError(
            f"{where} wants to be paid (402): the account's credits are used up. Buy credits{account}, or choose"
            " another talker."
        )
    if status == 429:
        return TalkerError(f"{where} gets too many requests (429). Wait a moment, then say it again.", lasting=False)
    if status >= 500:
        return TalkerError(f"{where} is not available at the moment ({status}). Try again soon.", lasting=False)
    return TalkerError(f"{where} refused the request ({status}{said}). Choose other models or another talker.")


def _is_dns(error: BaseException | None) -> bool:
    """Whether a name could not be resolved, somewhere down the chain of causes."""
    while error is not None:
        if isinstance(error, socket.gaierror) or "getaddrinfo" in str(error) or "[Errno -" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _short(error: object) -> str:
    """The first line of a message, not too long, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_SHOWN_CHARACTERS].rstrip(". ")
