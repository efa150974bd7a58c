"""Draws how a query module comes to read: scores with and without its queries, and where they look."""

import shlex
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.figures.style import BLUE, GREY, ORANGE, escape_dollars, strip_axes

COLOURS = (BLUE, ORANGE, "#3f8f5f", "#8a4fa3", "#b03a5b", "#5a6b7b")
PANELS = (
    ("overall", "overall accuracy, %"),
    ("reading", "signs read, %"),
)


def draw_formation(curves: Sequence[dict[str, Any]]) -> Figure:
    """Three panels over the optimiser steps of stage 2, a colour a cell, of `experiments.formation`.

    Full lines are with the queries, dashed ones with what they fetch left out; the ground is tinted where a
    warm-up hides visual tokens. The last panel has the head that looks at the asked sign most at the end."""
    figure = Figure((10.5, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, 3)
    for panel, (family, title) in zip(axes, PANELS):
        for number, curve in enumerate(curves):
            draw_scores(panel, curve, family, COLOURS[number % len(COLOURS)])
        panel.set_title(title, fontsize=9, loc="left")
    for number, curve in enumerate(curves):
        draw_attention_share(axes[2], curve, COLOURS[number % len(COLOURS)])
    uniform = 100 * curves[0]["uniform_share"]
    last_step = max(curve["points"][-1]["step"] for curve in curves)
    axes[2].axhline(uniform, color=GREY, linewidth=1, linestyle=":")
    axes[2].annotate(
        "spread evenly",
        (last_step, uniform),
        (0, 6),
        textcoords="offset points",
        ha="right",
        fontsize=7,
        color=GREY,
    )
    axes[2].set_title("attention on the asked sign, %", fontsize=9, loc="left")
    for panel in axes:
        strip_axes(panel, "y")
        panel.set_ylim(bottom=0)
        panel.set_xlabel("optimiser step of stage 2", fontsize=8)
    handles = []
    for number, name in enumerate(name_curves(curves)):
        handles.append(Line2D([], [], color=COLOURS[number % len(COLOURS)], label=name))
    handles.append(Line2D([], [], color=GREY, linestyle="--", label="without what the queries fetch"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


# what a warm-up of each form hides
HIDDEN = {
    "step": "visual tokens hidden",
    "fade": "visual tokens of ever fewer rows hidden",
    "thin": "three quarters of the visual tokens hidden",
}


def name_curve(curve: dict[str, Any]) -> str:
    """A cell with what its warm-up hides, which its own name tells only where a sweep has several."""
    name = escape_dollars(curve["cell"])
    if curve["hidden_steps"]:
        name += f", {HIDDEN[curve.get('hidden_form', 'step')]} for {curve['hidden_steps']} steps"
    return name


def name_curves(curves: Sequence[dict[str, Any]]) -> list[str]:
    """Names of cells; those that are called alike have the settings that tell their commands apart."""
    names = [name_curve(curve) for curve in curves]
    commands = []
    for curve in curves:
        words = shlex.split(curve["command"])
        commands.append([word for word in words if not word.startswith("out=")])
    words_by_name: dict[str, list[set[str]]] = {}
    for name, words in zip(names, commands):
        words_by_name.setdefault(name, []).append(set(words))
    longer_names = []
    for name, words in zip(names, commands):
        common_words = set.intersection(*words_by_name[name])
        own_words = [escape_dollars(word) for word in words if word not in common_words]
        longer_names.append(" ".join([name, *own_words]))
    return longer_names


def draw_scores(panel: Axes, curve: dict[str, Any], family: str, colour: str) -> None:
    """A cell's scores with its queries and without what they fetch."""
    steps = [point["step"] for point in curve["points"]]
    for key, style in (("scores", "-"), ("blanked", "--")):
        values = [100 * point[key][family] for point in curve["points"]]
        panel.plot(steps, values, style, color=colour, linewidth=1.6)
    if curve["hidden_steps"]:
        panel.axvspan(0, curve["hidden_steps"], color=colour, alpha=0.08, linewidth=0)


def draw_attention_share(panel: Axes, curve: dict[str, Any], colour: str) -> None:
    """A cell's attention on the sign: the head that ends highest, whatever layer it is in."""
    last = curve["points"][-1]["attention"]
    best = max((share, name, head) for name, shares in last.items() for head, share in enumerate(shares))
    _, name, head = best
    steps = [point["step"] for point in curve["points"]]
    shares = [100 * point["attention"][name][head] for point in curve["points"]]
    panel.plot(steps, shares, color=colour, linewidth=1.6)
    if curve["hidden_steps"]:
        panel.axvspan(0, curve["hidden_steps"], color=colour, alpha=0.08, linewidth=0)
