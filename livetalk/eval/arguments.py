"""Options of ``python -m livetalk evaluate`` and ``bench``; imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from livetalk.engine import Engine


def add_kinds(kinds: Any, add_model_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Every kind of evaluation with its options.

    Args:
        kinds: subparsers of the command.
        add_model_options: adds the options that choose a model.
    """
    clips = kinds.add_parser("clips", help="lips, sharpness, words, silence; on the set that comes with the weights")
    clips.add_argument("--clips", type=int, default=None, help="number of clips (all of the set; 8 when drawn)")
    clips.add_argument("--seconds", type=float, default=None, help="length of each clip (whole; 12 when drawn)")
    clips.add_argument("--long", type=int, default=None, help="number of 60 s clips (all of the set; 2 when drawn)")
    clips.add_argument("--words", type=int, default=None, help="faces that are told every mood and motion")
    clips.add_argument("--silent", type=int, default=8, help="faces that listen to 30 s of silence")
    long = kinds.add_parser("long", help="one face talks for minutes; or the ablation of the identity sinks")
    long.add_argument("--minutes", type=int, default=10, help="stretches of a rollout, the last one like the first")
    long.add_argument("--stretch", type=float, default=None, help="seconds of a stretch (60)")
    long.add_argument("--faces", type=int, default=1, help="rollouts")
    long.add_argument("--ablation", action="store_true", help="0, 3, 9, 12 sinks, with and without portrait channels")
    long.add_argument("--sinks", type=int, nargs="+", default=None, help="sink frames to try instead")
    teacher = kinds.add_parser("teacher", help="student against its teacher: lips, Frechet distances, time")
    teacher.add_argument("--teacher", type=Path, required=True, help="folder with the teacher's weights")
    teacher.add_argument("--clips", type=int, default=24, help="clips of 5 s")
    teacher.add_argument("--steps", type=int, default=48, help="steps of the teacher")
    teacher.add_argument("--text-guidance", type=float, help="of the teacher; 1 = none, by default as distilled")
    teacher.add_argument("--audio-guidance", type=float, help="of the teacher; 1 = none, by default as distilled")
    vae = kinds.add_parser("vae", help="what the VAE alone costs, on newly drawn faces")
    vae.add_argument("--clips", type=int, default=24, help="clips")
    vae.add_argument("--seconds", type=float, default=5.0, help="length of each")
    ablation = kinds.add_parser("ablation", help="the paper's ablation in miniature, on a finished run of distill")
    ablation.add_argument("--run", dest="folder", type=Path, required=True, help="folder of the run: clips, teacher")
    ablation.add_argument("--out", type=Path, required=True, help="receives every stage, table, plot and pictures")
    ablation.add_argument("--seeds", type=int, default=1, help="trainings of every recipe")
    ablation.add_argument("--scale", type=float, default=1.0, help="multiplies all numbers of steps")
    ablation.add_argument("--clips", type=int, default=32, help="new people who are judged, 5 s each")
    ablation.add_argument("--final-uncurated", action="store_true", help="also the paper's last row")
    ablation.add_argument("--beyond", action="store_true", help="instead: what goes beyond the paper, one by one")
    topics = kinds.add_parser("topics", help="how well the offline talker finds what questions are about")
    topics.add_argument("--questions", type=Path, default=Path("tests/data/questions.json"), help="JSON with questions")
    topics.add_argument(
        "--voices", nargs="+", default=["flite:slt", "flite:rms"], help="who asks them; they are typed first"
    )
    make = kinds.add_parser("make-set", help="draw the held-out set that is shipped with the weights")
    make.add_argument("--out", type=Path, default=None, help="folder (held-out/ beside the weights)")
    for kind in (clips, long, teacher):
        kind.add_argument("--data", default=None, help="'fresh' = newly drawn; or the folder of a set")
        kind.add_argument("--report", type=Path, default=None, help="folder for report.md, pictures, plots and JSON")
    for kind in (clips, long, teacher, vae):
        kind.add_argument("--seed", type=int, default=None, help="first seed of newly drawn faces (never looked at)")
    for kind in (clips, long, teacher, vae, make):
        add_model_options(kind)


def add_bench_options(bench: argparse.ArgumentParser) -> None:
    """What ``bench`` measures, and of which model."""
    bench.add_argument("--seconds", type=float, default=30.0, help="seconds of video to generate")
    part = bench.add_mutually_exclusive_group()
    part.add_argument("--network", action="store_true", help="the network alone against its own matrix products")
    part.add_argument("--conversation", action="store_true", help="end of a question to the answer, interruptions")
    bench.add_argument(
        "--browser", action="store_true", help="the page in a headless browser, alone or with --conversation"
    )
    bench.add_argument(
        "--random-weights",
        action="store_true",
        help="of the preset's sizes: as fast as the real ones, nothing to fetch",
    )
    bench.add_argument("--layers", type=int, default=None, help="fewer layers of the network, with --random-weights")
    bench.add_argument("--size", type=int, default=None, help="other pictures, N x N, with --random-weights")
    for choice in dataclasses.fields(Engine):
        known = typing.get_args(typing.get_type_hints(Engine)[choice.name])
        bench.add_argument(
            f"--{choice.name}", choices=known, default=None, help=f"instead of LIVETALK_{choice.name.upper()}"
        )
    bench.add_argument("--sessions", type=int, help="so many streams at once, sharing passes of the network and not")
    bench.add_argument("--talker", default="offline", help="who answers in --conversation")
    bench.add_argument("--turns", type=int, default=10, help="questions of --conversation")
    bench.add_argument("--rounds", type=int, default=20, help="interleaved rounds of --network")
