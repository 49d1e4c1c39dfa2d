"""Presets for every experiment of the paper, by figure, each at the paper's settings and at small scale."""

from collections.abc import Callable

from grokscape.studies import paper_grokking, paper_images, paper_text
from grokscape.studies.paper_parts import Scale
from grokscape.studies.spec import StudySpec

PAPER_PRESETS: dict[str, Callable[[Scale], StudySpec]] = {
    "fig1": paper_grokking.fig1,
    "fig1-code": paper_grokking.fig1_code,
    "fig2": paper_images.fig2,
    "fig4": paper_images.fig4,
    "fig6": paper_images.fig6,
    "fig7": paper_images.fig7,
    "fig11": paper_images.fig11,
    "fig12": paper_images.fig12,
    "fig13": paper_images.fig13,
    "fig16": paper_text.fig16,
    "fig18": paper_text.fig18,
    "fig20": paper_grokking.fig20,
}

SAME_RUNS = {
    "fig3": "fig2",
    "fig5": "fig2",
    "fig8": "fig4",
    "fig9": "fig4",
    "fig10": "fig4",
    "fig14": "fig13",
    "fig15": "fig13",
    "fig17": "fig16",
    "fig19": "fig18",
}
"""Figures that show the runs of another figure."""
