"""What people look at: the page and the figures of a run folder. No PyTorch here."""

from grokscape.report.comparison import write_comparison
from grokscape.report.document import write_report
from grokscape.report.figures import write_figures
from grokscape.report.paper import FigureError, figure

__all__ = ["FigureError", "figure", "write_comparison", "write_figures", "write_report"]
