"""The command line: ``python -m livetalk {render,doctor,bench,evaluate,distill}``.

Bad input ends with one sentence and exit code 2, never with a traceback.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from livetalk._version import __version__
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
    _add_doctor(commands)
    _add_bench(commands)
    _add_evaluate(commands)
    _add_distill(commands)
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


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="what this machine can run, and why")
    doctor.set_defaults(run=_doctor)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="speed of this machine; the last line is JSON")
    bench.add_argument("--seconds", type=float, default=30.0, help="seconds of video to generate")
    part = bench.add_mutually_exclusive_group()
    part.add_argument("--network", action="store_true", help="the network alone against its own matrix products")
    part.add_argument("--browser", action="store_true", help="the page in a headless browser: stalls, stop time")
    bench.add_argument("--rounds", type=int, default=20, help="interleaved rounds of --network")
    _add_model_options(bench)
    bench.set_defaults(run=_bench)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="quality on faces and speech never seen; the last line is JSON")
    evaluate.add_argument("what", choices=["clips"])
    evaluate.add_argument(
        "--seed", type=int, default=None, help="held-out seed of faces and sentences (fresh by default)"
    )
    evaluate.add_argument("--clips", type=int, default=8, help="number of clips")
    evaluate.add_argument("--seconds", type=float, default=10.0, help="length of each clip")
    evaluate.add_argument("--long", type=int, default=2, help="number of 60 s clips")
    evaluate.add_argument("--report", type=Path, default=None, help="folder for contact sheets and the JSON")
    _add_model_options(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _add_distill(commands: Any) -> None:
    distill = commands.add_parser("distill", help="train mini: data, audio, vae, probe, generator")
    distill.add_argument("stage", choices=["data", "audio", "vae", "probe", "pretrain", "export", "all"])
    distill.add_argument("--config", default="mini", choices=["mini", "smoke"], help="sizes and budgets")
    distill.add_argument("--folder", type=Path, default=Path("runs/mini"), help="where shards and checkpoints go")
    distill.set_defaults(run=_distill)


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


def _doctor(_: argparse.Namespace) -> int:
    from livetalk.eval import doctor

    print(doctor.report(doctor.examine()))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.network:
        from livetalk.eval import network

        figures = network.run(rounds=arguments.rounds)
    elif arguments.browser:
        from livetalk.eval import browser

        figures = browser.run(preset=arguments.preset)
    else:
        from livetalk.eval import bench

        figures = bench.run(preset=arguments.preset, device=arguments.device, seconds=arguments.seconds)
    _print_figures(figures)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from livetalk.eval import clips

    figures = clips.run(
        preset=arguments.preset,
        device=arguments.device,
        seed=arguments.seed,
        clips=arguments.clips,
        seconds=arguments.seconds,
        long=arguments.long,
        report=arguments.report,
    )
    _print_figures(figures)
    return 0


def _distill(arguments: argparse.Namespace) -> int:
    from livetalk.distill import train

    logging.getLogger().setLevel(logging.INFO)
    _print_figures(train.run(arguments.stage, config=arguments.config, folder=arguments.folder))
    return 0


def _print_figures(figures: dict[str, Any]) -> None:
    """A readable list, then everything as one JSON line."""
    for name, value in figures.items():
        print(f"{name:>28}  {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
