"""Which items of two reporting guidelines a study answers, and where its report does.

The guidelines are CLAIM, 2024 update (Tejani et al., Radiology: Artificial Intelligence
2024;6(4):e240300) and TRIPOD+AI (Collins et al., BMJ 2024;385:e078378). The wording is our own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtransfer.analysis.report.blocks import Table

if TYPE_CHECKING:
    from collections.abc import Collection

YOURS = "left to you"
# Number in CLAIM and in TRIPOD+AI, topic, the sections that answer it, what remains.
_ITEMS: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("1", "1", "Title names the kind of method", (), ""),
    ("2", "2", "Structured abstract", (), ""),
    ("3", "3a-3c", "Background, intended use and users", (), ""),
    ("4", "4", "Aims and hypotheses", ("primary",), "why you ask it"),
    ("5, 6", "", "Design and goal of the study", (), ""),
    ("7, 8", "5a-6c", "Sources of data, dates, setting, eligibility", (), ""),
    ("9", "7", "Preparation of the data", (), "the resolved configuration of a trial holds it"),
    ("10", "", "Subsets of the data that were used", ("curves",), "why they were chosen"),
    ("11", "", "De-identification", (), ""),
    ("12", "11", "Missing data", ("gaps", "failures"), "cases without a label"),
    ("13", "9a-9c", "Acquisition of the images", (), ""),
    ("14-18", "8a-8c", "Reference standard, annotators, their agreement", (), ""),
    ("19", "12a", "Assignment to partitions", ("data", "method"), "proportions"),
    ("20", "12a", "Level at which partitions are disjoint", ("data",), "what a group is"),
    ("21", "10", "Sample size", ("primary",), "how it was planned"),
    ("22", "22", "Description of the model", (), "the resolved configuration of a trial holds it"),
    ("23", "", "Software and its versions", ("environment",), ""),
    ("24", "", "Initialisation of the parameters", ("arms",), "where the weights come from"),
    ("25", "12c", "Training, tuning, number of models", ("tuning", "budget", "method"), ""),
    ("26", "12c", "Selection of the final model", ("tuning", "method"), ""),
    ("27", "", "Ensembles", (), "none is made here"),
    ("28", "12e", "Measures of performance", ("method", "arms"), ""),
    ("29", "12e", "Uncertainty and significance", ("method", "contrasts"), ""),
    ("30", "12d", "Robustness, heterogeneity", ("spread", "subgroups", "external", "across"), ""),
    ("31", "", "Explanations of the model's output", (), ""),
    ("32", "12g", "Evaluation on internal data", ("arms",), ""),
    ("33", "12g", "Testing on external data", ("external",), "if there is another site"),
    ("34", "18d", "Registration", (), ""),
    ("", "13", "Class imbalance", (), "the resolved configuration of a trial holds it"),
    ("", "14", "Fairness", ("subgroups",), "what was done about it"),
    ("", "17", "Ethical approval", (), ""),
    ("35, 36", "20a-20c", "Numbers and characteristics of patients", (), ""),
    ("37", "23a", "Performance with its uncertainty", ("arms", "contrasts", "external"), ""),
    ("38", "23a", "Diagnostic performance and calibration", ("diagnostics", "calibration"), ""),
    ("", "23b", "Heterogeneity of performance", ("subgroups", "external", "across"), ""),
    ("39", "", "Failure analysis", ("worst", "pictures"), "why they fail"),
    ("40", "26", "Limitations", ("notes", "gaps"), "all others"),
    ("41", "25, 27a-27c", "Meaning for practice", (), ""),
    ("42", "18c", "Protocol", ("method", "budget"), "where it can be read"),
    ("43", "18e, 18f", "Availability of data, code and weights", (), ""),
    ("44", "18a, 18b", "Funding and interests", (), ""),
)


def checklist(there: Collection[str]) -> Table:
    """Return the items, and where the report answers each.

    Args:
        there: The names of the report's sections.
    """
    rows = []
    for claim, tripod, topic, sections, rest in _ITEMS:
        answered = [name for name in sections if name in there]
        if answered:
            remains = f"{YOURS}: {rest}" if rest else ""
        else:
            remains = f"{YOURS} ({rest})" if rest and not sections else YOURS
        rows.append((claim, tripod, topic, ", ".join(answered), remains))
    heads = ("CLAIM 2024", "TRIPOD+AI", "Topic", "Answered under", "Remains")
    return Table(heads, (), tuple(rows))
