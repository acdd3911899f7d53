"""Encoders against the recorded numbers of the public reference: sound, video VAE, text, portrait fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from livetalk.config import AudioConfig
from livetalk.media.pictures import closest_size, fit_picture
from livetalk.model import text as text_module
from livetalk.model import vae as vae_module
from livetalk.model.audio import AudioWindow, Wav2Vec2AudioEncoder, _interpolate_at
from livetalk.model.conditions import pack_audio
from livetalk.model.text import embed, load_umt5
from livetalk.model.transformer import AudioProjection
from livetalk.model.vae import WanVideoVAE
from livetalk.types import LiveTalkError
from tests.parity import assert_close, load, load_json, relative_error, rms_error, tolerance_of


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def ears() -> Wav2Vec2AudioEncoder:
    described, tensors = load("audio")
    return Wav2Vec2AudioEncoder(AudioConfig(), described["wav2vec2_config"]).load_original(part(tensors, "w2v."))


@pytest.fixture(scope="module")
def wan() -> WanVideoVAE:
    described, tensors = load("vae")
    means, deviations = described["latents_mean"], described["latents_std"]
    return WanVideoVAE.from_original(part(tensors, "vae."), means, deviations)


def cases(tensors: Mapping[str, Tensor], ending: str) -> list[str]:
    """Names in front of ``ending``: the compact copy leaves some recorded cases out."""
    found = sorted(name.removesuffix(ending) for name in tensors if name.endswith(ending))
    assert found
    return found


def test_audio_features(ears: Wav2Vec2AudioEncoder) -> None:
    described, tensors = load("audio")
    tolerance = tolerance_of(described, 1e-4)
    waveform = tensors["in.waveform"].unsqueeze(0)
    for case in cases(tensors, ".out.emb"):
        pictures = tensors[f"{case}.out.emb"].shape[1]
        normalised = ears.normalise(waveform[:, : (pictures - 1) * 1000])
        if f"{case}.in.input_values" in tensors:
            assert_close(normalised, tensors[f"{case}.in.input_values"], tolerance)
        steps = ears.convolutions(normalised)
        assert_close(steps, tensors[f"{case}.out.conv"], tolerance)
        assert_close(ears.resample(steps, pictures), tensors[f"{case}.out.interp"], tolerance)
        assert_close(ears.offline(waveform, pictures), tensors[f"{case}.out.emb"], tolerance)


def test_audio_vectors_of_the_network(ears: Wav2Vec2AudioEncoder) -> None:
    """From the waveform to what the layers add: packed four by four, projected, one projection per layer."""
    described, tensors = load("audio")
    _, weights = load("dit_weights")
    tolerance = tolerance_of(described, 1e-4)
    for case in cases(tensors, ".out.emb"):
        pictures = tensors[f"{case}.out.emb"].shape[1]
        rows = ears.offline(tensors["in.waveform"].unsqueeze(0), pictures)
        bottleneck = weights["audio_proj.proj.weight"].shape[0]
        projection = AudioProjection(ears.feature_width, bottleneck)
        projection.load_state_dict(part(weights, "audio_proj."))
        packed = projection(pack_audio(rows)).detach()
        assert_close(packed[:, :, None, None], tensors[f"{case}.out.packed"], tolerance)
        recorded = tensors[f"{case}.out.cond"]
        for index in range(recorded.shape[0]):
            prefix = f"audio_cond_projs.{index}."
            vectors = functional.linear(packed[0], weights[prefix + "weight"], weights[prefix + "bias"])
            assert_close(vectors, recorded[index, :, 0, 0], tolerance)


def test_audio_in_a_stream(ears: Wav2Vec2AudioEncoder) -> None:
    window = AudioWindow(ears)
    start, stop = window.span(9, 12)
    assert (start, stop) == (9_000 - ears.past_samples, 21_000 + ears.look_ahead_samples)
    sound = 0.1 * torch.randn(2, stop - start, generator=torch.Generator().manual_seed(0))
    together = ears(sound, 12)
    assert together.shape == (2, 12, ears.feature_width)
    for index in range(2):
        alone = window.features(sound[index].numpy(), 12)
        assert relative_error(alone[0], together[index]) < 1e-4
    with pytest.raises(ValueError, match="need"):
        window.features(sound[0, 1:].numpy(), 12)


def test_silence_in_a_stream_is_finite_and_quiet(ears: Wav2Vec2AudioEncoder) -> None:
    window = AudioWindow(ears)
    start, stop = window.span(0, 9)
    silence = torch.zeros(stop - start)
    features = window.features(silence.numpy(), 9)
    assert torch.isfinite(features).all()
    assert torch.equal(features, window.features(silence.numpy(), 9))


def test_rows_in_a_stream_stand_where_their_pictures_start() -> None:
    ramp = torch.arange(10.0).view(1, -1, 1)
    found = _interpolate_at(ramp, torch.tensor([0.0, 3.125, 6.25, 30.0]))
    assert found.flatten().tolist() == [0.0, 3.125, 6.25, 9.0]


def test_a_speech_to_text_file_of_any_age_is_read(ears: Wav2Vec2AudioEncoder) -> None:
    described, tensors = load("audio")
    published = {f"wav2vec2.{name}": tensor for name, tensor in part(tensors, "w2v.").items()}
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        conv = "wav2vec2.encoder.pos_conv_embed.conv."
        published[conv + old] = published.pop(f"{conv}parametrizations.weight.{new}")
    published |= {"lm_head.weight": torch.zeros(3, 3), "wav2vec2.masked_spec_embed": torch.zeros(3)}
    again = Wav2Vec2AudioEncoder(AudioConfig(), described["wav2vec2_config"]).load_original(published)
    for name, tensor in ears.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor)
    del published["wav2vec2.encoder.layer_norm.bias"]
    with pytest.raises(LiveTalkError, match=r"encoder\.layer_norm\.bias"):
        again.load_original(published)


def test_vae_key_map(wan: WanVideoVAE) -> None:
    described, _ = load("vae")
    residuals = wan.net.config.num_res_blocks
    for original, expected in described["diffusers"]["key_map_original_to_diffusers"].items():
        assert vae_module._library_name(original, residuals) == expected


def test_vae_encode(wan: WanVideoVAE) -> None:
    described, tensors = load("vae")
    tolerance = tolerance_of(described, 1e-4)
    picture = wan.encode_image(tensors["in.image"][:, :, 0])
    assert_close(picture.transpose(1, 2), tensors["out.image_latent"], tolerance)
    assert_close(wan.encode(tensors["in.video"]).transpose(1, 2), tensors["out.video_latent"], tolerance)


def test_vae_decode_whole_and_in_chunks(wan: WanVideoVAE) -> None:
    described, tensors = load("vae")
    tolerance = tolerance_of(described, 1e-4)
    latents = tensors["in.latents"].transpose(1, 2)
    recorded = tensors.get("out.decoded", torch.cat([tensors["out.decoded_chunk0"], tensors["out.decoded_chunk1"]], 1))
    assert_close(wan.decode(latents).transpose(1, 2), recorded, tolerance)
    first = (tensors["out.decoded_chunk0"].shape[1] + 3) // 4
    pictures, state = wan.decode_chunk(latents[:, :, :first], None)
    assert_close(pictures.transpose(1, 2), tensors["out.decoded_chunk0"], tolerance)
    later, _ = wan.decode_chunk(latents[:, :, first:], state)
    assert_close(later.transpose(1, 2), tensors["out.decoded_chunk1"], tolerance)
    # an old state stays valid: going back gives the same pictures, whatever was decoded in between
    again, _ = wan.decode_chunk(latents[:, :, first : first + 1], state)
    assert torch.equal(again, later[:, :, : again.shape[2]])


def test_a_spent_state_becomes_the_next_one(wan: WanVideoVAE) -> None:
    _, tensors = load("vae")
    latents = tensors["in.latents"].transpose(1, 2)[:, :, :3]
    whole, state, pieces = wan.decode(latents), None, []
    for frame in range(latents.shape[2]):
        pictures, after = wan.decode_chunk(latents[:, :, frame : frame + 1], state, spend=True)
        assert state is None or after is state
        pieces.append(pictures)
        state = after
    assert torch.equal(torch.cat(pieces, dim=2), whole)


def test_vae_streams_do_not_meet_and_batches_do_not_mix(wan: WanVideoVAE) -> None:
    _, tensors = load("vae")
    one = tensors["in.latents"].transpose(1, 2)[:, :, :3]
    two = one.flip(2)
    states: list[object] = [None, None]
    pieces: list[list[Tensor]] = [[], []]
    for frame in range(one.shape[2]):
        for index, latents in enumerate((one, two)):
            pictures, states[index] = wan.decode_chunk(latents[:, :, frame : frame + 1], states[index])
            pieces[index].append(pictures)
    together = wan.decode(torch.cat([one, two]))
    assert torch.equal(torch.cat(pieces[0], dim=2), wan.decode(one))
    for index in range(2):
        assert relative_error(together[index], torch.cat(pieces[index], dim=2)[0]) < 1e-4


def test_vae_in_bfloat16_is_close() -> None:
    described, tensors = load("vae")
    wan = WanVideoVAE.from_original(part(tensors, "vae."), described["latents_mean"], described["latents_std"])
    pictures = wan.prepare_for_inference(torch.bfloat16).decode(tensors["in.latents"].transpose(1, 2)[:, :, :2])
    assert pictures.dtype == torch.float32
    assert rms_error(pictures.transpose(1, 2), tensors["out.decoded_chunk0"][:, : pictures.shape[2]]) < 0.04


def test_vae_files_that_do_not_fit_name_the_tensor() -> None:
    _, tensors = load("vae")
    weights = part(tensors, "vae.")
    lacking = {name: tensor for name, tensor in weights.items() if name != "decoder.head.2.bias"}
    with pytest.raises(LiveTalkError, match=r"decoder\.conv_out\.bias"):
        WanVideoVAE.from_original(lacking)
    with pytest.raises(LiveTalkError, match="extra"):
        WanVideoVAE.from_original({**weights, "extra": torch.zeros(1)})
    with pytest.raises(LiveTalkError, match=r"decoder\.conv_out\.bias is \[9\]"):
        WanVideoVAE.from_original({**weights, "decoder.head.2.bias": torch.zeros(9)})
    with pytest.raises(LiveTalkError, match="no Wan VAE"):
        WanVideoVAE.from_original({"weight": torch.zeros(1)})


def test_vae_refuses_clips_without_a_latent_frame_count(wan: WanVideoVAE) -> None:
    with pytest.raises(LiveTalkError, match="1 \\+ 4k"):
        wan.encode(torch.zeros(1, 3, 4, 16, 16))


def test_text() -> None:
    described, tensors = load("text")
    network = load_umt5(part(tensors, "t5."))
    found = embed(network, tensors["in.ids"], tensors["in.mask"])
    assert_close(found, tensors["out.embeds_zeroed"], tolerance_of(described, 1e-5))
    assert not found[tensors["in.mask"] == 0].any()
    for original, expected in described["transformers"]["key_map_original_to_transformers"].items():
        assert text_module._library_name(original) == expected


def test_text_files_that_do_not_fit_name_the_tensor() -> None:
    _, tensors = load("text")
    weights = part(tensors, "t5.")
    with pytest.raises(LiveTalkError, match=r"final_layer_norm\.weight"):
        load_umt5({name: tensor for name, tensor in weights.items() if name != "norm.weight"})
    with pytest.raises(LiveTalkError, match="extra"):
        load_umt5({**weights, "extra": torch.zeros(1)})
    with pytest.raises(LiveTalkError, match="no umT5 encoder"):
        load_umt5({"weight": torch.zeros(1)})


def test_portrait_fit() -> None:
    described, tensors = load("image")
    for case in cases(tensors, ".out"):
        fitted = fit_picture(tensors[f"{case}.in"], *described["cases"][int(case)]["target"])
        assert_close(fitted, tensors[f"{case}.out"], tolerance_of(described, 1e-5))


def test_portrait_size_choice() -> None:
    for case in load_json("image").get("match_size", []):
        sizes = [(height, width) for height, width in case["sizes"]]
        assert list(closest_size(sizes, case["h"], case["w"])) == case["picked"]


def test_configurations_are_plain_data() -> None:
    """The window of sound is part of the preset: changing it changes the encoder's span and nothing else."""
    described, tensors = load("audio")
    config = dataclasses.replace(AudioConfig(), past_samples=4_000, look_ahead_samples=0)
    short = Wav2Vec2AudioEncoder(config, described["wav2vec2_config"]).load_original(part(tensors, "w2v."))
    assert AudioWindow(short).span(0, 9) == (-4_000, 9_000)
    assert short(torch.zeros(1, 13_000), 9).shape == (1, 9, short.feature_width)
