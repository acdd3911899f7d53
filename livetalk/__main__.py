"""The command line: ``python -m livetalk {render,chat,serve,doctor,download,space,bench,evaluate,distill,curate}``.

Bad input ends with one sentence and exit code 2, never with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from livetalk._version import __version__
from livetalk.engine import Engine, configured_engine
from livetalk.eval.arguments import add_bench_options, add_kinds
from livetalk.types import LiveTalkError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 fine, 2 a problem the user can act on)."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(message)s")
    try:
        return arguments.run(arguments) or 0
    except LiveTalkError as error:
        print(f"livetalk: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("livetalk: stopped.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="livetalk", description="An avatar people can talk to.")
    parser.add_argument("--version", action="version", version=f"livetalk {__version__}")
    parser.add_argument("--verbose", action="store_true", help="say more on the way")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_render(commands)
    _add_chat(commands)
    _add_serve(commands)
    _add_doctor(commands)
    _add_download(commands)
    _add_space(commands)
    _add_bench(commands)
    _add_evaluate(commands)
    _add_distill(commands)
    _add_curate(commands)
    return parser


def _add_render(commands: Any) -> None:
    render = commands.add_parser("render", help="a portrait and a speech clip become a talking video (mp4)")
    render.add_argument("--portrait", required=True, type=Path, help="picture of a face, any usual format")
    render.add_argument("--speech", required=True, type=Path, help="sound file, any usual format, any length")
    render.add_argument("--prompt", default=None, help="how the person moves and feels")
    render.add_argument("--seed", type=int, default=0, help="same seed, same video")
    render.add_argument("--out", required=True, type=Path, help="mp4 to write")
    _add_model_options(render)
    render.set_defaults(run=_render)


def _add_chat(commands: Any) -> None:
    chat = commands.add_parser("chat", help="questions in, a video with the answers out; the last line is JSON")
    chat.add_argument("--portrait", required=True, type=Path, help="picture of a face, any usual format")
    chat.add_argument(
        "--speech", dest="turns", nargs="+", action="extend", type=Path, help="sound files, a question each, up to 30 s"
    )
    chat.add_argument("--text", dest="turns", nargs="+", action="extend", type=str, help="questions in writing")
    chat.add_argument("--out", required=True, type=Path, help="mp4 to write")
    chat.add_argument(
        "--talker", default=None, help="who answers: offline, ... (default: the best this machine can run)"
    )
    chat.add_argument("--voice", default="", help="one of the talker's voices (default: its best)")
    chat.add_argument("--instructions", default="", help="who the avatar is, for talkers that can be told")
    chat.add_argument("--prompt", default=None, help="how the person moves and feels")
    chat.add_argument("--seed", type=int, default=0, help="same seed, same motion")
    _add_model_options(chat)
    chat.set_defaults(run=_chat)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="the page with several engines behind it (python app.py has one)")
    serve.add_argument("--replicas", required=True, type=int, help="engines, each in a process of its own; needs Ray")
    _add_model_options(serve)
    serve.set_defaults(run=_serve)


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="what this machine can run, how fast, and what to install or change")
    doctor.add_argument("--quick", action="store_true", help="measure no speed")
    doctor.add_argument("--json", action="store_true", help="the last line is JSON")
    doctor.set_defaults(run=_doctor)


def _add_download(commands: Any) -> None:
    download = commands.add_parser("download", help="fetch a published model and make it ready, once; then no network")
    download.add_argument("--preset", default="livetalk-1.3b", help="which model")
    download.add_argument("--dry-run", action="store_true", help="only say what it takes: files, sizes, free space")
    download.set_defaults(run=_download)


def _add_space(commands: Any) -> None:
    space = commands.add_parser("space", help="publish this clone as a Hugging Face Space; last line: its address")
    space.add_argument("--repo", required=True, help="user/name of the Space; made if there is none")
    space.add_argument("--private", action="store_true", help="only you see a new Space")
    space.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    space.set_defaults(run=_space)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="speed of this machine; the last line is JSON")
    add_bench_options(bench)
    _add_model_options(bench)
    bench.set_defaults(run=_bench)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="quality on faces and speech never seen; the last line is JSON")
    add_kinds(evaluate.add_subparsers(dest="what", required=True, metavar="what"), _add_model_options)
    evaluate.set_defaults(run=_evaluate)


def _add_distill(commands: Any) -> None:
    distill = commands.add_parser("distill", help="train a model: rulers, encoders, clips, teacher, student")
    distill.add_argument("stage", choices=["rulers", "audio", "vae", "data", "teacher", "ode", "dmd", "export", "all"])
    distill.add_argument("--config", default="mini", help="mini, smoke, livetalk-1.3b, or a recipe as JSON")
    distill.add_argument(
        "--out", type=Path, default=None, help="folder for clips, runs and the model (default: runs/CONFIG)"
    )
    distill.add_argument(
        "--base", type=Path, help="a finished model to go on from, such as checkpoints/mini, instead of from nothing"
    )
    distill.set_defaults(run=_distill)


def _add_curate(commands: Any) -> None:
    curate = commands.add_parser("curate", help="usable training clips out of a folder of talking-head videos")
    curate.add_argument("folder", type=Path, help="videos, in folders or not; name.txt beside one is its caption")
    curate.add_argument("--out", type=Path, required=True, help="receives shards and curation.jsonl")
    curate.add_argument("--frames", type=int, default=21, help="latent frames of a clip (21 = 5 s)")
    curate.add_argument("--report", type=Path, default=None, help="folder for contact sheets")
    curate.add_argument("--limits", type=Path, default=None, help="JSON object of limits other than the defaults")
    curate.add_argument("--faces", type=Path, default=None, help="face_detection_yunet_*.onnx instead of the cascades")
    curate.add_argument("--restore", default="none", help="poor references: none, plain, or an image-to-image model")
    curate.add_argument("--rewrite", default=None, help="chat model that rewrites captions towards motion")
    curate.add_argument("--see", action="store_true", help="show the chat model pictures, too")
    curate.add_argument("--server", default=None, help="address of a local server for these models")
    curate.add_argument("--preset", default="mini", help="whose encoders and picture size, or a folder with a model")
    curate.set_defaults(run=_curate)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="mini", help="which model (see doctor), or a folder with one")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def _render(arguments: argparse.Namespace) -> int:
    from livetalk import load

    avatar = load(arguments.preset, device=arguments.device)
    with tqdm(unit="s", desc="render", disable=not sys.stderr.isatty(), bar_format="{desc} {n:.1f}/{total} s") as bar:

        def progress(done_s: float, total_s: float | None) -> None:
            bar.total = None if total_s is None else round(total_s, 1)
            bar.update(done_s - bar.n)

        path = avatar.render(
            arguments.portrait,
            arguments.speech,
            out=arguments.out,
            prompt=arguments.prompt,
            seed=arguments.seed,
            progress=progress,
        )
    print(path)
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    from livetalk import load
    from livetalk.stream import chat
    from livetalk.stream.talkers.protocol import Persona
    from livetalk.stream.talkers.registry import talker_chain

    turns = [chat.question(turn) for turn in arguments.turns or ()]
    if not turns:
        raise LiveTalkError("Nobody asks anything. Give --speech with sound files, or --text with written questions.")
    avatar = load(arguments.preset, device=arguments.device)
    avatar.identity(arguments.portrait)  # a portrait that cannot be used is told before anybody talks
    persona = Persona(arguments.instructions, arguments.voice)
    with contextlib.closing(chat.Chat(talker_chain(arguments.talker), persona)) as conversation:
        answers = []
        for turn in turns:
            answers.append(conversation.ask(turn))
            print(f"You: {answers[-1].heard}\nLiveTalk: {answers[-1].text}", flush=True)
        facts = {"talker": conversation.talker.title, "notice": conversation.notice}
    sound = chat.with_pauses(answers)
    path = avatar.render(arguments.portrait, sound, out=arguments.out, prompt=arguments.prompt, seed=arguments.seed)
    print(json.dumps({"out": str(path), "turns": len(turns), "seconds": round(len(sound[0]) / sound[1], 3), **facts}))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from livetalk.ui.serve import serve

    serve(arguments.preset, arguments.device, arguments.replicas)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from livetalk.eval import doctor

    findings = doctor.examine(measure=not arguments.quick)
    print(doctor.report(findings))
    if arguments.json:
        print(json.dumps(doctor.as_data(findings)))
    return 0


def _space(arguments: argparse.Namespace) -> int:
    from livetalk import publish

    plan = publish.plan(arguments.repo)
    print(plan.listing(), flush=True)
    print("Nothing was sent (dry run)." if arguments.dry_run else publish.publish(plan, arguments.private))
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from livetalk import hub

    plan = hub.plan_weights(arguments.preset)
    print(plan.report(), flush=True)
    if arguments.dry_run:
        plan.check_space()
    elif (folder := plan.carry_out()) is not None:
        print(folder)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.network:
        from livetalk.eval import network

        figures = network.run(rounds=arguments.rounds)
    elif arguments.conversation:
        from livetalk.eval import bench, conversation

        random = bench.Random(arguments.layers, arguments.size) if arguments.random_weights else None
        figures = conversation.run(
            arguments.preset, arguments.device, arguments.turns, arguments.browser, arguments.talker, random
        )
    elif arguments.browser:
        from livetalk.eval import browser

        figures = browser.run(preset=arguments.preset)
    else:
        from livetalk.eval import bench, together

        random = bench.Random(arguments.layers, arguments.size) if arguments.random_weights else None
        given = {choice.name: getattr(arguments, choice.name) for choice in dataclasses.fields(Engine)}
        chosen = {name: value for name, value in given.items() if value is not None}
        engine = dataclasses.replace(configured_engine(), **chosen)
        told = arguments.preset, arguments.device, arguments.seconds, random, engine
        figures = bench.run(*told) if arguments.sessions is None else together.run(*told, sessions=arguments.sessions)
    _print_figures(figures)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    kinds = {
        "clips": _evaluate_clips,
        "long": _evaluate_long,
        "teacher": _evaluate_teacher,
        "vae": _evaluate_vae,
        "ablation": _evaluate_ablation,
        "topics": _evaluate_topics,
        "make-set": _make_set,
    }
    return kinds[arguments.what](arguments)


def _evaluate_clips(arguments: argparse.Namespace) -> int:
    from livetalk.eval import clips

    plan = clips.Plan(
        clips=arguments.clips,
        seconds=arguments.seconds,
        long_clips=arguments.long,
        silent_clips=arguments.silent,
        words=arguments.words,
    )
    _print_figures(clips.run(plan=plan, **_cases_of(arguments)))
    return 0


def _evaluate_long(arguments: argparse.Namespace) -> int:
    from livetalk.eval import long

    sinks = tuple(arguments.sinks or (long.AHIS_SINKS if arguments.ablation else ()))
    plan = long.LongPlan(arguments.minutes, arguments.stretch, arguments.faces, sinks)
    _print_figures(long.run(plan=plan, **_cases_of(arguments)))
    return 0


def _evaluate_teacher(arguments: argparse.Namespace) -> int:
    from livetalk.eval import versus

    given = {name: getattr(arguments, name) for name in ("text_guidance", "audio_guidance")}
    guidance = {name: value for name, value in given.items() if value is not None}
    plan = versus.VersusPlan(clips=arguments.clips, steps=arguments.steps, **guidance)
    _print_figures(versus.run(arguments.teacher, plan=plan, **_cases_of(arguments)))
    return 0


def _evaluate_vae(arguments: argparse.Namespace) -> int:
    from livetalk.eval import sets

    _print_figures(sets.run_vae(arguments.preset, arguments.device, arguments.seed, arguments.clips, arguments.seconds))
    return 0


def _evaluate_ablation(arguments: argparse.Namespace) -> int:
    from livetalk.eval import ablation, ablation_plan

    logging.getLogger().setLevel(logging.INFO)
    given = {name: getattr(arguments, name) for name in ("seeds", "scale", "clips", "final_uncurated", "beyond")}
    _print_figures(ablation.run(arguments.folder, arguments.out, ablation_plan.AblationPlan(**given)))
    return 0


def _evaluate_topics(arguments: argparse.Namespace) -> int:
    from livetalk.eval import topics

    questions = topics.load_questions(arguments.questions)
    _print_figures({voice or "typed": topics.evaluate_topics(questions, voice) for voice in (None, *arguments.voices)})
    return 0


def _make_set(arguments: argparse.Namespace) -> int:
    from livetalk.eval import sets

    _print_figures(sets.run_make_set(arguments.preset, arguments.device, arguments.out))
    return 0


def _cases_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all measurements on cases are told."""
    return {name: getattr(arguments, name) for name in ("preset", "device", "data", "seed", "report")}


def _distill(arguments: argparse.Namespace) -> int:
    from livetalk.distill import train

    logging.getLogger().setLevel(logging.INFO)
    folder = arguments.out or Path("runs") / Path(arguments.config).stem
    _print_figures(train.run(arguments.stage, arguments.config, folder, arguments.base))
    return 0


def _curate(arguments: argparse.Namespace) -> int:
    from livetalk.distill.curate import command

    given = vars(arguments)
    options = command.Options(**{field.name: given[field.name] for field in dataclasses.fields(command.Options)})
    _print_figures(command.run(arguments.folder, arguments.out, options))
    return 0


def _print_figures(figures: dict[str, Any]) -> None:
    """A readable list, then everything as one JSON line."""
    for name, value in figures.items():
        print(f"{name:>28}  {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
