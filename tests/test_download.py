"""Published weights from a Hub on this machine: listing, fetching, checking, converting, loading, and every refusal."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, scan_cache_dir
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from livetalk import hub
from livetalk.__main__ import main
from livetalk.config import PRESETS, Preset
from livetalk.download.refusals import REVISIONS_VARIABLE
from livetalk.download.weights import Plan, ready_folder
from livetalk.hub import load_models, plan_weights
from livetalk.model import converted
from livetalk.types import LiveTalkError
from tests import published_files as made
from tests.hub_server import DROP, HALF, WRONG, HubServer, Repository
from tests.test_hub import RunsCode

COMMITS = {made.STUDENT: "1" * 40, made.WAN: "2" * 40, made.SPEECH: "3" * 40}
FOLDERS = {made.STUDENT: "student", made.WAN: "wan", made.SPEECH: "speech"}
NEEDED = {
    "anything.safetensors",
    made.TEXT_FILE,
    made.VAE_FILE,
    f"{made.TOKENIZER}/tokenizer.json",
    f"{made.TOKENIZER}/tokenizer_config.json",
    "config.json",
    "model.safetensors",
}


@dataclasses.dataclass
class Online:
    """An imitated Hub, and a machine that never fetched anything from it."""

    server: HubServer
    remote: Path
    cache: Path
    config: Preset

    def blob_folder(self, name: str) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}" / "blobs"

    def refusal(self) -> str:
        """The one sentence (or two) that fetching everything ends with."""
        with pytest.raises(LiveTalkError) as caught:
            plan_weights("published").carry_out()
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
        return str(caught.value)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Online]:
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    config = made.write_tiny(remote)
    for decoy in ("student/demo.mp4", "wan/diffusion_pytorch_model.safetensors", "wan/assets/a.safetensors"):
        (remote / decoy).parent.mkdir(exist_ok=True)
        (remote / decoy).write_bytes(b"not wanted")
    for decoy in ("pytorch_model.bin", "tf_model.h5", "README.md"):
        (remote / "speech" / decoy).write_bytes(b"not wanted")
    repositories = {name: Repository(remote / folder, COMMITS[name]) for name, folder in FOLDERS.items()}
    with HubServer(repositories, token="good") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", REVISIONS_VARIABLE):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(hub.CHECKPOINTS_VARIABLE, str(tmp_path / "by-hand"))
        monkeypatch.setenv(hub.CACHE_VARIABLE, str(tmp_path / "prompts"))
        monkeypatch.setitem(PRESETS, "published", config)
        yield Online(server, remote, cache, config)


def test_a_dry_run_says_what_it_takes_and_fetches_nothing(online: Online, capsys) -> None:
    assert main(["download", "--preset", "published", "--dry-run"]) == 0
    said = capsys.readouterr().out
    sizes = {path.name: path.stat().st_size for path in online.remote.rglob("*")}
    for name in NEEDED:
        assert f"{sizes[Path(name).name] / 1e6:.2f} MB  {name}" in said
    assert "demo.mp4" not in said and "pytorch_model" not in said and "README" not in said
    assert all(commit in said for commit in COMMITS.values())
    assert "made up, too" in said and re.search(r"to fetch: .* MB; to write when converted: .* MB; free: ", said)
    assert not online.server.fetched() and not online.cache.exists()


def test_download_fetches_what_is_needed_once_and_loads_without_the_hub(online: Online, capsys, monkeypatch) -> None:
    assert main(["download", "--preset", "published"]) == 0
    folder = ready_folder(online.config)
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert set(online.server.fetched()) == NEEDED and len(online.server.fetched()) == len(NEEDED)
    assert online.cache in folder.parents and not list(online.cache.rglob("*.pth.part"))
    described = json.loads((folder / "config.json").read_text())
    assert described["sources"] == COMMITS and described["preset"] == "published"
    asked = len(online.server.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["download", "--preset", "published"]) == 0
    assert "is ready in" in capsys.readouterr().out
    models = load_models("published", device="cpu", dtype="float32")
    assert len(online.server.log) == asked
    for name, tensor in load_file(online.remote / "student" / "anything.safetensors").items():
        assert torch.equal(models.transformer.state_dict()[name], tensor)
    # the cache stays one that huggingface_hub understands, and the fetched files may go
    assert not scan_cache_dir(online.cache).warnings
    shutil.rmtree(online.cache / "models--b--wan")
    assert load_models("published", device="cpu").identity(torch.zeros(3, 16, 16), "happy").text[0, 0].any()
    moved = online.cache.parent / "moved"
    shutil.move(folder, moved)
    assert load_models(moved, device="cpu").preset.name == "published"


def test_converted_files_are_exact_safe_and_take_no_space_twice(online: Online) -> None:
    folder = plan_weights("published").carry_out()
    assert folder is not None and not list(folder.rglob("*.pth"))
    for part, file in (("vae", made.VAE_FILE), ("text", made.TEXT_FILE)):
        original = torch.load(online.remote / "wan" / file, weights_only=True)
        converted = load_file(folder / f"{part}.safetensors")
        assert converted.keys() == original.keys()
        assert all(torch.equal(converted[n], t) and converted[n].dtype == t.dtype for n, t in original.items())
    student = next(online.blob_folder(made.STUDENT).iterdir())
    assert (folder / "transformer.safetensors").samefile(student)


def test_a_wrapped_transformer_is_unwrapped_once(online: Online) -> None:
    path = online.remote / "student" / "anything.safetensors"
    plain = load_file(path)
    save_file({f"model.{name}": tensor.half() for name, tensor in plain.items()}, path)
    folder = plan_weights("published").carry_out()
    converted = load_file(folder / "transformer.safetensors")
    assert converted.keys() == plain.keys() and converted["head.head.weight"].dtype == torch.float16


def test_loading_fetches_and_converts_by_itself_and_repairs_what_was_cut_short(online: Online) -> None:
    load_models("published", device="cpu")
    assert set(online.server.fetched()) == NEEDED
    cut = ready_folder(online.config) / "vae.safetensors"
    os.truncate(cut, 100)
    load_models("published", device="cpu")
    assert cut.stat().st_size > 100 and len(online.server.fetched()) == len(NEEDED)


def test_offline_works_from_the_cache_alone(online: Online, monkeypatch) -> None:
    plan_weights("published").carry_out()
    shutil.rmtree(ready_folder(online.config))  # as if another program had fetched the files
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(online.server.log)
    assert load_models("published", device="cpu").preset.name == "published"
    assert len(online.server.log) == asked
    shutil.rmtree(ready_folder(online.config))
    shutil.rmtree(online.cache / "models--c--speech")
    assert re.search(r"c/speech are not all in .*HF_HUB_OFFLINE", online.refusal())


def test_the_commit_stays_until_another_is_asked_for(online: Online, monkeypatch) -> None:
    plan_weights("published").carry_out()
    online.server.repositories[made.STUDENT].move_to("4" * 40)
    assert plan_weights("published").ready
    os.truncate(ready_folder(online.config) / "vae.safetensors", 100)
    assert plan_weights("published").snapshots[0].version == COMMITS[made.STUDENT]
    monkeypatch.setenv(REVISIONS_VARIABLE, f"{made.STUDENT}@main")
    plan = plan_weights("published")
    assert plan.ready is None and plan.snapshots[0].version == "4" * 40
    plan.carry_out()
    assert json.loads((ready_folder(online.config) / "config.json").read_text())["sources"][made.STUDENT] == "4" * 40
    assert plan_weights("published").ready
    monkeypatch.setenv(REVISIONS_VARIABLE, f"{made.STUDENT}@{'4' * 40} {made.WAN}@{COMMITS[made.WAN]}")
    assert plan_weights("published").ready
    monkeypatch.setenv(REVISIONS_VARIABLE, made.STUDENT)
    with pytest.raises(LiveTalkError, match=r"LIVETALK_REVISIONS holds 'a/student'.*owner/name@commit"):
        plan_weights("published")


def test_files_put_there_by_hand_need_no_hub(online: Online, tmp_path: Path) -> None:
    shutil.copytree(online.remote, tmp_path / "by-hand" / "published")
    folder = plan_weights("published").carry_out()
    assert folder == ready_folder(online.config) and not online.server.log
    assert not scan_cache_dir(online.cache).warnings
    assert plan_weights("published").ready
    student = tmp_path / "by-hand" / "published" / "student" / "anything.safetensors"
    changed = {name: tensor + 1 for name, tensor in load_file(student).items()}
    student.unlink()
    save_file(changed, student)
    weights = load_models("published", device="cpu", dtype="float32").transformer.state_dict()
    assert torch.equal(weights["head.head.bias"], changed["head.head.bias"])


def test_a_cache_that_must_not_be_written_is_read_as_it_is(online: Online, monkeypatch, caplog) -> None:
    plan_weights("published").carry_out()
    shutil.rmtree(ready_folder(online.config))
    ready_folder(online.config).write_text("in the way")
    assert load_models("published", device="cpu").preset.name == "published"
    assert "read as they are" in caplog.text
    assert "could not be written" in online.refusal()


def test_a_connection_that_drops_goes_on_where_it_was(online: Online) -> None:
    online.server.faults["anything.safetensors"] = DROP
    plan_weights("published").carry_out()
    half = (online.remote / "student" / "anything.safetensors").stat().st_size // 2
    whole_pieces = half - half % constants.DOWNLOAD_CHUNK_SIZE
    assert f"anything.safetensors from {whole_pieces}" in online.server.fetched()


def test_half_a_file_is_told_and_the_next_run_goes_on(online: Online) -> None:
    online.server.faults["anything.safetensors"] = HALF
    size = (online.remote / "student" / "anything.safetensors").stat().st_size
    assert f"ended after {size // 2} of {size} bytes" in online.refusal()
    before = plan_weights("published")
    assert before.snapshots[0].missing_bytes == size - size // 2
    online.server.faults.clear()
    online.server.repositories[made.STUDENT].move_to("4" * 40)  # what was begun is finished at its commit
    before = plan_weights("published")
    before.carry_out()
    assert before.snapshots[0].version == COMMITS[made.STUDENT]
    assert f"anything.safetensors from {size // 2}" in online.server.fetched()


@pytest.mark.parametrize("name", ["anything.safetensors", f"{made.TOKENIZER}/tokenizer.json"])
def test_a_wrong_hash_is_told_and_the_file_thrown_away(online: Online, name: str) -> None:
    online.server.faults[name] = WRONG
    assert re.search(rf"{re.escape(Path(name).name)} is damaged: its hash is not [0-9a-f]+", online.refusal())
    assert not list(online.cache.rglob("*.incomplete")) and not list(online.cache.rglob(Path(name).name))
    online.server.faults.clear()
    assert plan_weights("published").carry_out()


def test_a_file_that_rotted_in_the_cache_is_fetched_again(online: Online) -> None:
    plan_weights("published").carry_out()
    folder = ready_folder(online.config)
    shutil.rmtree(folder)
    blob = next(online.blob_folder(made.STUDENT).iterdir())
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    plan_weights("published").carry_out()
    assert blob.read_bytes() == whole and online.server.fetched().count("anything.safetensors") == 2


def test_a_pickle_that_wants_to_run_code_is_refused(online: Online) -> None:
    torch.save({"weights": RunsCode()}, online.remote / "wan" / made.VAE_FILE)
    assert re.search(r"vae\.pth is damaged or no file of plain weights", online.refusal())
    assert plan_weights("published").ready is None


def test_a_choice_of_weight_files_is_refused_before_anything_is_fetched(online: Online) -> None:
    shutil.copy(online.remote / "student" / "anything.safetensors", online.remote / "student" / "more.safetensors")
    assert re.search(r"exactly one .*anything\.safetensors, more\.safetensors.*by-hand", online.refusal())
    assert not online.server.fetched()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"private": made.STUDENT}, r"no repository .*/a/student, or it is private.*HF_TOKEN"),
        ({"gated": made.STUDENT}, r"/a/student is gated.*Accept them on that page.*HF_TOKEN"),
        ({"token": "bad"}, r"refused this machine's token for .*/a/student \(status 401\).*hf auth login"),
        ({"status": 503}, r"/a/student answered with status 503 .*Try again later"),
        ({"revision": "5" * 40}, r"/a/student has no revision '5{40}'.*LIVETALK_REVISIONS"),
        ({"lacks": made.VAE_FILE}, r"/b/wan at 222222222222 has no vae\.pth.*Expected text\.pth, vae\.pth"),
        ({"fault": 404}, r"/a/student answered with status 404"),
        ({"port": 1}, r"/a/student could not be reached \(ConnectError\).*Connect to the network"),
        ({"free": 10}, r"LiveTalk-1\.3B needs .* MB in .*, and 0\.00 MB are free.*HF_HOME"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals_are_one_sentence(online: Online, monkeypatch, setting: dict, expected: str) -> None:
    server, ((kind, value),) = online.server, setting.items()
    if kind == "private":
        del server.repositories[value]
    elif kind == "gated":
        server.repositories[value].gated = True
    elif kind == "token":
        monkeypatch.setenv("HF_TOKEN", value)
    elif kind == "status":
        server.status = value
    elif kind == "revision":
        monkeypatch.setenv(REVISIONS_VARIABLE, f"{made.STUDENT}@{value}")
    elif kind == "lacks":
        (online.remote / "wan" / value).unlink()
    elif kind == "fault":
        server.faults["anything.safetensors"] = value
    elif kind == "port":
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{value}")
    else:
        monkeypatch.setattr(Plan, "free_bytes", value)
    assert re.search(expected, online.refusal())


def test_a_token_opens_what_is_gated_and_stays_with_the_hub(online: Online, monkeypatch) -> None:
    online.server.repositories[made.STUDENT].gated = True
    monkeypatch.setenv("HF_TOKEN", "good")
    assert plan_weights("published").carry_out()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs Linux's disk that is always full")
def test_a_disk_that_fills_up_while_fetching_is_told(online: Online) -> None:
    digest = plan_weights("published").snapshots[0].files[0].digest
    blobs = online.blob_folder(made.STUDENT)
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.incomplete").symlink_to("/dev/full")
    assert re.search(r"disk that holds .*cache is full\. Free some space.*kept", online.refusal())


def test_a_disk_that_fills_up_while_converting_is_told(online: Online, monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(converted, "save_file", full)
    assert re.search(r"disk that holds .*livetalk is full\. Free some space.*kept", online.refusal())
    assert plan_weights("published").ready is None and plan_weights("published").fetch_bytes == 0
    assert load_models("published", device="cpu").preset.name == "published"
    assert "is full" in caplog.text and "read as they are" in caplog.text


def test_the_command_obeys_the_variables_of_the_hub(online: Online, tmp_path: Path) -> None:
    """In a process of its own, as users run it: HF_ENDPOINT, HF_HOME, and an error without a traceback."""
    program = "import sys; from livetalk.__main__ import main; sys.exit(main())"
    environment = {**os.environ, "HF_ENDPOINT": online.server.address, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", program, "download", "--preset", "livetalk-1.3b", "--dry-run"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(r"livetalk: There is no repository .*/GAIR/LiveTalk-1\.3B-V0\.1, or it is.*\n", done.stderr)


def test_mini_needs_no_download(capsys) -> None:
    assert main(["download", "--preset", "mini"]) == 0
    assert "comes with the program" in capsys.readouterr().out
