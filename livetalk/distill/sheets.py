"""Contact sheets: pictures of several clips side by side, so that a person can look at what a run has learned.

This module does not know what good pictures look like.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from livetalk.config import Preset
from livetalk.distill.data import ClipStore, driven_rows
from livetalk.model.conditions import Conditions, image_condition, pack_audio
from livetalk.model.transformer import CausalDiT
from livetalk.model.vae import VideoVAE
from livetalk.rollout import chunk_noise, rollout
from livetalk.types import PICTURES_PER_LATENT


def contact_sheet(rows: Sequence[np.ndarray], columns: int, every: int = 1) -> Image.Image:
    """One picture with a row of pictures per clip.

    Args:
        rows: uint8 ``[T, H, W, 3]`` per clip, all of one height and width.
        columns: pictures in a row.
        every: distance in time between neighbours.

    Returns:
        RGB picture of ``len(rows) * H`` by ``columns * W``; places a clip is too short for are black.
    """
    height, width = rows[0].shape[1:3]
    sheet = np.zeros((len(rows) * height, columns * width, 3), np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures[::every][:columns]):
            sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return Image.fromarray(sheet)


@torch.no_grad()
def rollout_sheet(model: CausalDiT, vae: VideoVAE, store: ClipStore, preset: Preset, every: int = 6) -> Image.Image:
    """What a generator makes of the clips of a store: two rows a clip, the truth above the rollout.

    Args:
        model: the generator, any number format, on any device.
        vae: decodes both; on the same device.
        store: held-out clips, a few.
        preset: rollout settings.
        every: distance between neighbouring pictures.
    """
    settings, rows = preset.rollout, []
    for index in range(len(store)):
        clip = store.clip(index)
        latents = clip["latents"][None].float().to(model.device)
        chunks = latents.shape[2] // settings.chunk_frames
        frames = chunks * settings.chunk_frames
        shape = preset.latent_shape(settings.chunk_frames)
        noise = torch.stack([chunk_noise(index, chunk, shape, len(settings.timesteps)) for chunk in range(chunks)])
        sound = pack_audio(driven_rows(clip, preset.model.drive_width)[None])[:, : frames * PICTURES_PER_LATENT]
        cond = Conditions(
            image=image_condition(latents[:, :, :1], frames),
            audio=sound.to(model.device),
            text=clip["text"][None].float().to(model.device),
        )
        for shown in (latents, rollout(model, cond, noise.to(model.device), settings)):
            pictures = (vae.decode(shown.float())[0].permute(1, 2, 3, 0) + 1) * 127.5
            rows.append(pictures.round().clamp(0, 255).byte().cpu().numpy())
    return contact_sheet(rows, columns=len(rows[0]) // every, every=every)
