"""Findings from run folders or anybody's training log: onsets, survival, necessity. No PyTorch."""

from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import FrameError
from grokscape.analysis.pipeline import analyze, analyze_frame
from grokscape.analysis.record import Record
from grokscape.analysis.summary import summary_table

__all__ = ["Finding", "FrameError", "Record", "analyze", "analyze_frame", "summary_table"]
