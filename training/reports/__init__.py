"""Reports of a run: figures for programs, and to read with pictures."""

from training.reports.label_report import HeatMaps, LabelEvaluation, write_label_report

__all__ = ["HeatMaps", "LabelEvaluation", "write_label_report"]
