"""What the page says, in four languages: one table for Gradio's own components and for ours.

Names in ``{}`` are filled in by the page. Sentences that the server finds out itself (what is wrong with a file, which
talker failed) are English. This module knows no component.
"""

from __future__ import annotations

import json
import re

import gradio as gr
from gradio.i18n import I18nData

LANGUAGES = ("en", "de", "es", "zh")

WORDS: dict[str, tuple[str, str, str, str]] = {
    # The head of the page
    "tagline": (
        "Talk to a face, and it talks back.",
        "Sprich mit einem Gesicht, und es antwortet.",
        "Habla con un rostro y te responde.",
        "对着一张脸说话，它会回答你。",
    ),
    "modes": ("What to do", "Was tun", "Qué hacer", "选择功能"),
    "talk_tab": ("Talk", "Gespräch", "Conversar", "对话"),
    "mirror_tab": ("Mirror", "Spiegel", "Espejo", "镜像"),
    "clip_tab": ("Clip", "Video", "Vídeo", "短片"),
    "licence": ("Licence", "Lizenz", "Licencia", "许可"),
    # The stage
    "stage": ("Stage", "Bühne", "Escenario", "舞台"),
    "portrait": ("The chosen portrait", "Das gewählte Porträt", "El retrato elegido", "所选肖像"),
    "moving": ("The portrait, talking", "Das Porträt spricht", "El retrato, hablando", "正在说话的肖像"),
    "controls": ("Stage controls", "Bedienung der Bühne", "Controles del escenario", "舞台控制"),
    "off": ("Ready when you are", "Bereit", "Cuando quieras", "准备就绪"),
    "waiting": ("Getting ready", "Macht sich bereit", "Preparándose", "正在准备"),
    "place": ("Place {place} in line", "Platz {place} in der Reihe", "Puesto {place} en la cola", "排队第 {place} 位"),
    "idle": ("Here", "Da", "Aquí", "在线"),
    "listening": ("Listening", "Hört zu", "Escuchando", "正在听"),
    "thinking": ("Thinking", "Denkt nach", "Pensando", "正在想"),
    "speaking": ("Speaking", "Spricht", "Hablando", "正在说"),
    "late": ("Catching up", "Holt auf", "Poniéndose al día", "正在追赶"),
    "talk": ("Talk", "Sprechen", "Hablar", "说话"),
    "talk_hint": (
        "Talk: opens your microphone and the sound",
        "Sprechen: schaltet Mikrofon und Ton ein",
        "Hablar: activa tu micrófono y el sonido",
        "说话：打开麦克风和声音",
    ),
    "microphone_off": ("Microphone off", "Mikrofon aus", "Apagar micrófono", "关闭麦克风"),
    "microphone_on": ("Microphone on", "Mikrofon an", "Encender micrófono", "打开麦克风"),
    "mute": ("Mute", "Stumm", "Silenciar", "静音"),
    "hush": ("Stop talking (Esc)", "Nicht weiterreden (Esc)", "Dejar de hablar (Esc)", "停止说话 (Esc)"),
    "leave": ("End the conversation", "Gespräch beenden", "Terminar la conversación", "结束对话"),
    "write": ("Or write …", "Oder schreib …", "O escribe …", "也可以打字……"),
    "write_label": ("Your message", "Deine Nachricht", "Tu mensaje", "你的消息"),
    "send": ("Send", "Senden", "Enviar", "发送"),
    "start": ("Start", "Start", "Empezar", "开始"),
    "stop": ("Stop", "Stopp", "Parar", "停止"),
    "speak": ("Speak", "Sprich", "Habla", "开口"),
    "speak_hint": (
        "Speak: your microphone drives the face",
        "Sprich: dein Mikrofon bewegt das Gesicht",
        "Habla: tu micrófono mueve el rostro",
        "开口：用麦克风驱动面孔",
    ),
    "headphones": (
        "I wear headphones: let me hear the mirror",
        "Ich trage Kopfhörer: lass mich den Spiegel hören",
        "Llevo auriculares: quiero oír el espejo",
        "我戴着耳机：让我听到镜像",
    ),
    "cut": (
        "Skip the rest of this speech",
        "Den Rest überspringen",
        "Saltar el resto",
        "跳过剩余部分",
    ),
    "mirror_sound": ("Mirror with sound", "Spiegel mit Ton", "Espejo con sonido", "有声镜像"),
    "mirror_silent": ("Mirror, silent", "Spiegel, stumm", "Espejo, en silencio", "无声镜像"),
    # Figures
    "measured": ("Measured now", "Gerade gemessen", "Medido ahora", "当前测量"),
    "reply_after": ("Answer after", "Antwort nach", "Respuesta tras", "应答延迟"),
    "reply_after_hint": (
        "From the end of your speech to the first sound of the answer",
        "Vom Ende deiner Worte bis zum ersten Ton der Antwort",
        "Desde el final de tu voz hasta el primer sonido de la respuesta",
        "从你说完到听见回答的第一个声音",
    ),
    "picture_after": ("Lips after sound", "Lippen nach Ton", "Labios tras sonido", "口型滞后"),
    "picture_after_hint": (
        "From the first sound of the answer to its first picture",
        "Vom ersten Ton der Antwort bis zu ihrem ersten Bild",
        "Del primer sonido de la respuesta a su primera imagen",
        "从回答的第一个声音到它的第一帧画面",
    ),
    "speed": ("Speed", "Tempo", "Velocidad", "速度"),
    "speed_hint": (
        "Seconds of video made per second",
        "Sekunden Video je Sekunde",
        "Segundos de vídeo por segundo",
        "每秒生成的视频秒数",
    ),
    "speed_value": ("{factor} × live", "{factor} × live", "{factor} × real", "{factor} 倍实时"),
    "first_picture": ("First picture", "Erstes Bild", "Primera imagen", "首帧"),
    "mirror_delay": ("Mirror delay", "Verzögerung", "Retardo", "镜像延迟"),
    "offset": ("Sound to picture", "Ton zu Bild", "Sonido a imagen", "音画偏差"),
    "answered_by": ("Answered by", "Es antwortet", "Responde", "回答者"),
    # Sentences of the page itself
    "no_microphone": (
        "No microphone was found. Write instead: the box below is always open.",
        "Kein Mikrofon gefunden. Schreib stattdessen: Das Feld darunter ist immer offen.",
        "No se encontró ningún micrófono. Escribe: el cuadro de abajo siempre está abierto.",
        "没有找到麦克风。请打字：下面的输入框始终可用。",
    ),
    "refused_microphone": (
        "The microphone was not allowed. Allow it in the browser, or write instead: the box below is always open.",
        "Das Mikrofon wurde nicht erlaubt. Erlaube es im Browser, oder schreib: Das Feld darunter ist immer offen.",
        "No se permitió el micrófono. Permítelo en el navegador o escribe: el cuadro de abajo siempre está abierto.",
        "麦克风未获允许。请在浏览器中允许，或者打字：下面的输入框始终可用。",
    ),
    "broken_microphone": (
        "The microphone could not be opened ({name}). Write instead, or try another microphone.",
        "Das Mikrofon ließ sich nicht öffnen ({name}). Schreib stattdessen, oder nimm ein anderes.",
        "No se pudo abrir el micrófono ({name}). Escribe, o prueba con otro.",
        "无法打开麦克风（{name}）。请打字，或换一个麦克风。",
    ),
    "headphones_best": (
        "Best with headphones.",
        "Am besten mit Kopfhörern.",
        "Mejor con auriculares.",
        "戴耳机效果最好。",
    ),
    "lost": (
        "The server does not answer. Check the connection, then press Talk again.",
        "Der Server antwortet nicht. Prüfe die Verbindung und drücke noch einmal auf Sprechen.",
        "El servidor no responde. Comprueba la conexión y pulsa Hablar de nuevo.",
        "服务器没有响应。请检查网络，然后再次点击“说话”。",
    ),
    # The transcript
    "conversation": ("Conversation", "Gespräch", "Conversación", "对话记录"),
    "you": ("You", "Du", "Tú", "你"),
    "avatar": ("Avatar", "Avatar", "Avatar", "头像"),
    "interrupted": ("interrupted", "unterbrochen", "interrumpido", "被打断"),
    "copy": ("Copy", "Kopieren", "Copiar", "复制"),
    "copied": ("Copied", "Kopiert", "Copiado", "已复制"),
    "save_text": ("Save as text", "Als Text speichern", "Guardar como texto", "保存为文本"),
    "save_video": ("Save as video", "Als Video speichern", "Guardar como vídeo", "保存为视频"),
    "keep": ("Record", "Aufnehmen", "Grabar", "录制"),
    "keep_hint": (
        "Record this conversation: the video is ready for ten minutes after its end. Otherwise nothing of it is kept.",
        "Dieses Gespräch aufnehmen: Das Video ist zehn Minuten lang nach dem Ende bereit. Sonst bleibt nichts davon.",
        "Grabar esta conversación: el vídeo estará listo diez minutos tras el final. Si no, no se guarda nada de ella.",
        "录制此对话：结束后十分钟内可下载视频。否则不会保留任何内容。",
    ),
    "newest": ("Newest", "Neueste", "Lo último", "最新"),
    "empty": (
        "Press Talk and say something, or begin with one of these:",
        "Drück auf Sprechen und sag etwas, oder fang hiermit an:",
        "Pulsa Hablar y di algo, o empieza con una de estas:",
        "点击“说话”开口，或者从这里开始：",
    ),
    # Choosing
    "face": ("Face", "Gesicht", "Rostro", "面孔"),
    "speech": ("Speech", "Sprache", "Voz", "语音"),
    "own": ("Your own", "Eigenes", "Propio", "自选"),
    "surprise": ("Surprise me", "Überrasch mich", "Sorpréndeme", "随机"),
    "mood": ("Mood", "Stimmung", "Ánimo", "情绪"),
    "neutral": ("Calm", "Ruhig", "Tranquilo", "平静"),
    "happy": ("Happy", "Fröhlich", "Alegre", "开心"),
    "sad": ("Sad", "Traurig", "Triste", "悲伤"),
    "angry": ("Angry", "Wütend", "Enfadado", "生气"),
    "surprised": ("Surprised", "Erstaunt", "Sorprendido", "惊讶"),
    "voice": ("Voice", "Stimme", "Voz", "声音"),
    "automatic": ("Automatic", "Automatisch", "Automático", "自动"),
    "voice_slt": ("Woman, clear", "Frau, klar", "Mujer, clara", "女声，清晰"),
    "voice_rms": ("Man, calm", "Mann, ruhig", "Hombre, tranquilo", "男声，平稳"),
    "voice_awb": ("Man, Scottish", "Mann, schottisch", "Hombre, escocés", "男声，苏格兰口音"),
    "voice_kal16": ("Man, plain", "Mann, schlicht", "Hombre, sencillo", "男声，简单"),
    "voice_robot": ("Robot", "Roboter", "Robot", "机器人"),
    "talker": ("Who answers", "Wer antwortet", "Quién responde", "由谁回答"),
    "persona": ("Character", "Charakter", "Personaje", "角色"),
    "persona_hint": (
        "Who is the face? For example: a patient museum guide who loves short answers.",
        "Wer ist das Gesicht? Zum Beispiel: ein geduldiger Museumsführer, der kurze Antworten liebt.",
        "¿Quién es el rostro? Por ejemplo: un guía de museo paciente que responde con brevedad.",
        "这张脸是谁？例如：一位喜欢简短回答的耐心博物馆讲解员。",
    ),
    # The mirror and the clip
    "mirror_help": (
        "Play a clip, or press **Speak** on the stage: the face says what you say while you say it.",
        "Spiel eine Aufnahme ab, oder drück auf der Bühne auf **Sprich**: Das Gesicht sagt, was du sagst.",
        "Reproduce una grabación o pulsa **Habla** en el escenario: el rostro dice lo que tú dices.",
        "播放一段录音，或在舞台上点击**开口**：面孔会同步说出你的话。",
    ),
    "play": ("Play it live", "Live abspielen", "Reproducir en vivo", "现场播放"),
    "make": ("Make a video", "Video erstellen", "Crear un vídeo", "生成视频"),
    "video": ("Video", "Video", "Vídeo", "视频"),
    "manner": ("Manner and seed", "Art und Startwert", "Manera y semilla", "神态与种子"),
    "prompt": ("How the person speaks", "Wie die Person spricht", "Cómo habla la persona", "人物怎样说话"),
    "seed": ("Seed", "Startwert", "Semilla", "随机种子"),
}

_OURS = "livetalk_"  # Gradio has words of its own
_USED = re.compile(r"""word\(\s*'([a-z0-9_]+)'|data-word(?:-[a-z]+)?="([a-z0-9_]+)\"""")


def tables() -> dict[str, dict[str, str]]:
    """Every word by language."""
    return {language: {key: words[at] for key, words in WORDS.items()} for at, language in enumerate(LANGUAGES)}


def i18n() -> gr.I18n:
    """The same for Gradio's own components; ``launch`` takes it."""
    words = {language: {f"{_OURS}{key}": text for key, text in table.items()} for language, table in tables().items()}
    return gr.I18n(**words, **{"zh-CN": words["zh"]})


def said(key: str) -> I18nData:
    """A word for a Gradio component, which shows it in the visitor's language.

    Raises:
        KeyError: a word that is not in the table.
    """
    return I18nData(f"{_OURS}{WORDS[key] and key}")


def used_in(text: str) -> set[str]:
    """Keys that html or javascript names: ``data-word="key"`` and ``word('key')``."""
    return {first or second for first, second in _USED.findall(text)}


def script(*texts: str, more: tuple[str, ...] = ()) -> str:
    """Javascript that defines ``WORDS`` (key -> language -> words) with what ``texts`` and ``more`` use.

    Raises:
        KeyError: a word that is not in the table.
    """
    keys = sorted({*more, *(key for text in texts for key in used_in(text))})
    chosen = {key: dict(zip(LANGUAGES, WORDS[key], strict=True)) for key in keys}
    return f"const WORDS = {json.dumps(chosen, ensure_ascii=False)};\n"
