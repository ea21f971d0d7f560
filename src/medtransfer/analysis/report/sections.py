"""The sections of a report, in order; one that has nothing to show is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtransfer.analysis.grid import where
from medtransfer.analysis.report import curves, tables
from medtransfer.analysis.report import figures as draw
from medtransfer.analysis.report.blocks import (
    Block,
    Bullets,
    Card,
    Cards,
    Figures,
    Pictures,
    Section,
    Table,
    Text,
)
from medtransfer.analysis.report.checklist import checklist
from medtransfer.analysis.report.facts import (
    budgets,
    central,
    central_setting,
    settings,
)
from medtransfer.analysis.report.method import method, references
from medtransfer.analysis.report.sheet import paper
from medtransfer.analysis.report.words import (
    NONE,
    counted,
    interval,
    listed,
    number,
    probability,
    title,
)
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medtransfer.analysis.report.blocks import Picture
    from medtransfer.analysis.results import Contrast, Results


def sections(results: Results, pictures: tuple[Picture, ...] = ()) -> tuple[Section, ...]:
    """Return everything that a report shows below its headline, drawn and told."""
    with paper():
        found = [each for each in _all(results, pictures) if each.blocks]
    names = {each.name for each in found} | {"checklist"}
    items = Section(
        "checklist",
        "Reporting guidelines",
        (
            Text(
                "What of CLAIM (2024 update) and TRIPOD+AI this report answers, in words of our "
                "own; the guidelines themselves are binding."
            ),
            checklist({*names}),
        ),
        short=False,
    )
    return (*found, items)


def _all(results: Results, pictures: tuple[Picture, ...]) -> Iterator[Section]:
    yield Section("primary", *_question(results))
    yield Section("contrasts", "Contrasts", _contrasts(results))
    yield Section("arms", "Arms", _blocks(tables.arms(results)))
    yield Section("curves", "Learning curves", _curves(results))
    yield Section("spread", "Distributions", _spread(results))
    yield Section("price", "Quality against cost", _prices(results))
    yield Section("calibration", "Calibration", _calibration(results))
    wanted = ("roc", "pr", "decision", "froc")
    yield Section("diagnostics", "Diagnostic curves", _charts(results, *wanted))
    yield Section("subgroups", "Subgroups", _subgroups(results))
    yield Section("external", "External data", _external(results))
    yield Section("across", "Across datasets", _across(results))
    yield Section("worst", "Worst cases", _worst(results))
    yield Section("pictures", "Test cases", _blocks(Pictures(pictures)))
    yield Section("tuning", "Tuning", _tuning(results))
    yield Section("budget", "Budget", _budget(results))
    yield Section("gaps", "Incomplete grid", _gaps(results))
    yield Section("failures", "Failures", _blocks(tables.failures(results)))
    waivers = "Found in the data, and put up with by whoever ran the study:"
    yield Section("waivers", "Waivers", _told(waivers, Bullets(results.waivers)))
    yield Section("notes", "Notes", _blocks(Bullets(results.notes)))
    yield Section("data", "Data", _data(results), short=False)
    yield Section("environment", "Environment", _environment(results), short=False)
    yield Section("method", "How this was computed", _method(results))


def _blocks(*given: Block) -> tuple[Block, ...]:
    """Return the blocks that show something."""
    return tuple(block for block in given if _shows(block))


def _shows(block: Block) -> bool:
    match block:
        case Text(text=content) | Cards(cards=content) | Table(rows=content):
            return bool(content)
        case Bullets(items=content) | Figures(figures=content) | Pictures(pictures=content):
            return bool(content)


def _told(text: str, *given: Block) -> tuple[Block, ...]:
    """Return the text and the blocks; nothing where no block shows anything."""
    shown = _blocks(*given)
    return (Text(text), *shown) if shown else ()


def _question(results: Results) -> tuple[str, tuple[Block, ...]]:
    contrast = central(results)
    if contrast is None:
        return "Headline", ()
    declared = results.primary is not None
    setting = f" with {where(contrast.axes)}" if contrast.axes else ""
    why = (
        "declared beforehand as the study's question; its p-value is not corrected"
        if declared
        else "chosen by a fixed rule, for the study declared no question beforehand"
    )
    return (
        "Primary contrast" if declared else "Contrast of the headline",
        _blocks(
            Text(f"A: {contrast.a}. B: {contrast.b}{setting}; {why}."),
            Cards(tuple(_cards(results, contrast))),
            *_told("Seen by other methods, which decide nothing:", _checks(results)),
        ),
    )


def _cards(results: Results, contrast: Contrast) -> Iterator[Card]:
    lower = ", less is better" if results.metric in LOWER_IS_BETTER else ""
    provisional = "provisional: fewer than 5 seeds" if contrast.provisional else ""
    yield Card("A is", contrast.verdict, provisional)
    name = f"A \N{MINUS SIGN} B, {title(results.metric)}{lower}"
    ends = f"95 % CI {interval(contrast)}, over {contrast.over}" if contrast.lo is not None else ""
    yield Card(name, number(contrast.diff, signed=True), ends)
    corrected = "not corrected" if contrast.primary else "corrected by Holm"
    yield Card("p", probability(contrast.p if contrast.primary else contrast.p_adj), corrected)
    yield Card("Seeds", f"{contrast.n_seeds}", "paired")
    of = f"of {counted(contrast.n_groups, 'patient')}" * (contrast.n_groups < contrast.n_cases)
    yield Card("Test cases", f"{contrast.n_cases or NONE}", of)
    told = "smaller differences do not matter"
    yield Card("Equivalence", f"\N{PLUS-MINUS SIGN}{results.rope:g}", told)


def _checks(results: Results) -> Bullets:
    return Bullets(tuple(f"{check.name}: {check.told}" for check in results.checks))


def _contrasts(results: Results) -> tuple[Block, ...]:
    return _blocks(
        Text(
            "Paired differences with their 95 % intervals; the band is the region of practical "
            f"equivalence, \N{PLUS-MINUS SIGN}{results.rope:g}. {draw.omitted(results)}".strip()
            if results.contrasts
            else ""
        ),
        Figures(tuple(draw.forests(results, results.contrasts))),
        tables.contrasts(results.contrasts, results.arms),
    )


def _curves(results: Results) -> tuple[Block, ...]:
    crossings = Bullets(tuple(each.text for each in results.crossings if each.text))
    return _blocks(crossings, Figures(tuple(curves.learning_curves(results))))


def _spread(results: Results) -> tuple[Block, ...]:
    told = (
        f"{_there(results)}Seeds: a point each, the bar is their mean. Cases: the mean over seeds "
        "of each case; below the density its median and quartiles."
    )
    return _told(told, Figures(tuple(draw.distributions(results))))


def _there(results: Results) -> str:
    """Return where the details were looked at, where there is a choice."""
    setting = results.details.setting
    return f"With {where(setting)}. " if setting and len(settings(results)) > 1 else ""


def _prices(results: Results) -> tuple[Block, ...]:
    axes = central_setting(results)
    setting = f"With {where(axes)}. " if axes and len(settings(results)) > 1 else ""
    told = (
        f"{setting}Arms on the dashed line are best for their price: none is cheaper and as good."
    )
    return _told(told, Figures(tuple(draw.prices(results))))


def _charts(results: Results, *wanted: str) -> tuple[Block, ...]:
    notes = []
    for chart in (c for c in results.details.charts if c.name in wanted):
        dashed = listed([line.label for line in chart.references])
        told = filter(None, [chart.note, f"dashed: {dashed}" if dashed else ""])
        notes += [f"{chart.title}: {each}" for each in ["; ".join(told)] if each]
    return _told(
        f"{_there(results)}Lines are means over seeds, bands reach from the least to the greatest.",
        Figures(tuple(draw.charts(results, *wanted))),
        Bullets(tuple(notes)),
    )


def _calibration(results: Results) -> tuple[Block, ...]:
    charts = _charts(results, "reliability", "reliability_scaled")
    table = _blocks(tables.calibration(results))
    told = "ECE, Brier score and negative log-likelihood, less is better, as means over seeds"
    if any(each.temperature is not None for each in results.details.calibration):
        told += "; scaled: after temperature scaling fitted on validation data"
    return (*charts, *((Text(f"{told}."), *table) if table else ()))


def _subgroups(results: Results) -> tuple[Block, ...]:
    figures = Figures(tuple(draw.subgroups(results)))
    told = f"{_there(results)}Small groups have wide intervals; nothing here is tested."
    return _told(told, figures, tables.subgroups(results))


def _external(results: Results) -> tuple[Block, ...]:
    if results.external is None:
        return ()
    arms, contrasts = results.external.arms, results.external.contrasts
    return _told(
        "The same trials, unchanged, on data of another site.",
        tables.external(results),
        Figures(tuple(draw.forests(results, contrasts, "external"))),
        tables.contrasts(contrasts, arms),
    )


def _across(results: Results) -> tuple[Block, ...]:
    across = results.across
    if across is None:
        return ()
    told = (
        f"{counted(len(across.datasets), 'dataset')}: {', '.join(across.datasets)}. Friedman's "
        f"test that all arms rank alike: p {probability(across.p)}. The baseline is "
        f"{across.baseline}; p-values against it are of Wilcoxon's signed-rank test, corrected by "
        "Holm."
    )
    return _told(told, Figures(tuple(draw.ranking(results))), tables.across(results))


def _worst(results: Results) -> tuple[Block, ...]:
    of = next((s.of for s in results.details.spread if s.kind == "cases"), "")
    what = f" ({of}, mean over seeds)" if of else ""
    told = f"{_there(results)}The cases that the arms judge worst together{what}."
    return _told(told, tables.worst(results))


def _tuning(results: Results) -> tuple[Block, ...]:
    search = results.protocol.get("search") or {}
    sampler, pruner = search.get("sampler", "random"), search.get("pruner")
    told = (
        f"Sampler: {sampler}; pruner: {pruner or 'none'}. Scores are of validation data. Points "
        "are draws, the line is the best so far, the large point is what final trials ran with. "
        "The first draw is the strategy's defaults."
    )
    return _told(told, Figures(tuple(curves.tunings(results))), tables.tuning(results))


def _budget(results: Results) -> tuple[Block, ...]:
    if not results.spent:
        return ()
    equal, told = budgets(results.spent)
    verdict = "By what was counted budgets are equal." if equal else "Budgets are NOT equal."
    return _told(verdict, Bullets(told), tables.budget(results))


def _gaps(results: Results) -> tuple[Block, ...]:
    told = (
        "Seeds that arms lack. Contrasts use the seeds that both arms have; means of arms that "
        "lack seeds are over those there are, and are not to be ranked."
    )
    return _told(told, tables.grid(results))


def _data(results: Results) -> tuple[Block, ...]:
    table = tables.splits(results)
    if not table.rows:
        return ()
    audit = (
        "Found in the data and waived: see Waivers."
        if results.waivers
        else "No leak in the data was waived."
    )
    return _blocks(Text(audit), table)


def _environment(results: Results) -> tuple[Block, ...]:
    return _told("Of the first finished trial.", tables.environment(results))


def _method(results: Results) -> tuple[Block, ...]:
    texts = tuple(Text(text, paste=True) for text in method(results))
    return (*texts, *_blocks(Bullets(references(results))))
