"""How the page looks: theme, colours for light and dark, and the layout's style sheet."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

VERMILION = gr.themes.Color(
    c50="#fff4ef",
    c100="#ffe5da",
    c200="#ffc9b5",
    c300="#ffa685",
    c400="#ff7a4d",
    c500="#ea5627",
    c600="#d9481f",
    c700="#b33716",
    c800="#8c2d15",
    c900="#6d2614",
    c950="#3d1208",
    name="vermilion",
)
PAPER = gr.themes.Color(
    c50="#fbf8f3",
    c100="#f4efe7",
    c200="#e6ded2",
    c300="#d2c7b7",
    c400="#a89b8c",
    c500="#7d7165",
    c600="#5f554b",
    c700="#463e37",
    c800="#2b2622",
    c900="#1d1916",
    c950="#131110",
    name="paper",
)
FONTS = ("Avenir Next", "Avenir", "Segoe UI", "Noto Sans", "DejaVu Sans", "Helvetica Neue", "sans-serif")


def theme() -> gr.themes.Base:
    """Warm paper and ink with one vermilion accent; fonts of the visitor's system, so nothing is fetched."""
    base = gr.themes.Base(
        primary_hue=VERMILION, secondary_hue=VERMILION, neutral_hue=PAPER, font=FONTS, font_mono=("monospace",)
    )
    return base.set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        background_fill_primary="*neutral_50",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="#f4ede4",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="#b8aa9a",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#3a2219",
        block_background_fill="*neutral_50",
        block_background_fill_dark="*neutral_900",
        block_border_width="0px",
        block_radius="18px",
        block_shadow="none",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="#b8aa9a",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_200",
        input_border_color_dark="*neutral_700",
        input_radius="14px",
        button_large_radius="999px",
        button_medium_radius="999px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
    )


def style_sheet() -> str:
    """The layout's css."""
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
