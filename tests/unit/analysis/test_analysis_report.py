"""The headline, the files and the tables, from memory and from a real store."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console
from simulated import FE, FT, ODD, changed, of_test, stored, study

from medtransfer.analysis.load import load_study
from medtransfer.analysis.report.build import build
from medtransfer.analysis.report.console import tables
from medtransfer.analysis.report.markdown import escape
from medtransfer.analysis.report.markdown import markdown as as_markdown
from medtransfer.analysis.report.sections import sections
from medtransfer.analysis.report.words import large, megabytes, number, seconds
from medtransfer.analysis.report.write import read, write
from medtransfer.errors import StoreError


def line(*arguments, **options):
    return build(study(*arguments, **options)).headline


def markdown(results):
    return as_markdown(results, sections(results))


def printed(results, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables(results):
        console.print(table)
    return console.export_text()


def test_better():
    text = line({FE: 1.0, FT: 2.5})
    assert text.startswith(f"{FT} is better than {FE} by 0.2")
    assert "AUROC (95 % CI 0." in text
    assert "3 seeds, 120 cases; provisional: fewer than 5 seeds) at 12 times" in text


def test_better_and_faster():
    assert line({FT: 1.0, FE: 2.5}).endswith("and trains 12 times faster.")
    assert line({f"{FE}/a": 1.0, f"{FE}/b": 2.5}).endswith("at about the same training time.")


def test_less_is_better():
    text = line({FE: 1.0, FT: 2.5}, metric="brier")
    assert text.startswith(f"{FT} is better than {FE} by 0.1")
    assert "Brier score (lower is better; 95 % CI 0." in text


def test_equivalent():
    text = line({FE: 1.0, FT: 1.1}, range(5), rope=0.2)
    assert text.startswith(f"{FT} and {FE} are equivalent within 0.2 AUROC: {FT} is ahead by")
    assert text.endswith(f"{FT} takes 12 times the training time of {FE}.")
    assert "provisional" not in text


def test_undecided():
    text = line({FE: 1.0, FT: 1.02}, n=30)
    assert text.startswith(f"Undecided between {FT} and {FE}: ")
    assert ", which may be chance." in text
    same = line({f"{FE}/a": 1.0, f"{FE}/b": 1.0})
    assert "no case tells them apart" in same
    assert same.endswith("Both train about as long.")


def test_undecided_after_correction():
    axes = [{"dataset.fraction": f"{i}"} for i in range(1, 11)]
    text = line({FE: 1.0, FT: 1.25}, axes=axes)
    assert "but corrected for all contrasts p is" in text
    assert text.endswith(f" {FT} in 9 other settings: undecided in 9.")


def test_undecided_without_numbers():
    made = study({FE: 1.0, FT: 2.0}, [0])
    single = replace(made, predictions=stored({}))
    assert ", and a single value has no interval" in build(single).headline
    one_class = replace(
        made, predictions=of_test(lambda run: made.predictions(run).query("target == 1"))
    )
    assert "no case has a value in all trials" in build(one_class).headline


def test_the_question_comes_before_the_two_best_arms():
    arms = {
        "feature_extraction/random": 0.2,
        "fine_tuning/random": 1.0,
        "feature_extraction/imagenet": 1.5,
        "fine_tuning/imagenet": 2.0,
        "lora/imagenet": 3.0,
    }
    assert line(arms).startswith("fine_tuning/imagenet is better than feature_extraction/imagenet")
    del arms["fine_tuning/imagenet"]
    assert line(arms).startswith("fine_tuning/random is better than feature_extraction/random")
    del arms["fine_tuning/random"]
    assert line(arms).startswith("lora/imagenet is better than feature_extraction/imagenet")


def test_other_settings_are_counted():
    axes = [{"dataset.fraction": value} for value in ("0.1", "1")]
    text = line({FE: 1.0, FT: 2.5}, axes=axes)
    assert text.startswith(f"With dataset.fraction=1: {FT} is better than {FE}")
    assert text.endswith(f" {FT} in 1 other setting: better.")


def test_other_settings_are_told_from_the_same_side():
    axes = [{"dataset.fraction": value} for value in ("0.1", "1")]
    made = study({FE: 1.0, FT: 2.5}, axes=axes)

    def turned(run):
        swap = run.replace(FE, "?").replace(FT, FE).replace("?", FT)
        return made.predictions(swap if "'0.1'" in run else run)

    text = build(replace(made, predictions=of_test(turned))).headline
    assert text.startswith(f"With dataset.fraction=1: {FT} is better than {FE}")
    assert f" {FT} in 1 other setting: worse. {FT} overtakes {FE} at 0.32 of the" in text


def declared(made, a, b, at=None):
    return replace(made, protocol={"primary": {"a": a, "b": b, "at": at or {}}})


def test_the_headline_is_that_of_the_declared_contrast():
    arms = {FE: 1.0, FT: 2.5, "lora/file": 2.4, "bitfit/file": 1.0}
    axes = [{"dataset.fraction": value} for value in ("0.1", "1")]
    made = study(arms, axes=axes)
    assert build(made).headline.startswith(f"With dataset.fraction=1: {FT} is better than {FE}")
    text = build(declared(made, "bitfit/file", "lora/file", {"dataset.fraction": 0.1})).headline
    assert text.startswith("With dataset.fraction=0.1: lora/file is better than bitfit/file by 0.")
    assert text.endswith(" lora/file in 1 other setting: better.")


def test_the_headline_says_where_the_declared_contrast_could_not_be_tested():
    made = declared(study({FE: 1.0, FT: 2.5}), FE, "lora")
    results = build(made)
    assert results.headline == "The primary contrast could not be tested: no trial is of lora."
    assert results.primary is None
    assert "the primary contrast could not be tested: no trial is of lora" in results.notes


def test_what_an_undecided_contrast_would_need_is_said():
    made = study({FE: 1.0, FT: 1.3}, range(5), n=60)
    results = build(declared(made, FT, FE))
    assert results.primary.verdict == "undecided"
    cases = results.primary.more_cases
    assert cases > 0
    found = re.search(
        r"About (\d+) more cases? .*would decide it, if the difference", results.headline
    )
    assert abs(int(found[1]) - cases) <= 0.05 * cases


def test_the_headline_marks_an_arm_that_lacks_seeds():
    made = study({FE: 1.0, FT: 2.5})
    lacking = replace(made, trials=made.trials[:-1])
    assert f"; seeds are missing of {FT})" in build(lacking).headline
    assert "missing" not in build(made).headline


def test_one_arm_no_pair_and_nothing():
    assert line({FE: 1.0}, per_patient=2).endswith(
        "3 seeds, 120 cases of 60 groups); there is no second arm to compare it with."
    )
    made = study({FE: 1.0, FT: 2.0})
    apart = changed(made, lambda t: {"split_hash": t.arm})
    assert build(apart).headline.endswith("; no two arms could be paired.")
    dead = changed(made, lambda _: {"status": "FAILED", "metrics": {}, "failure": "x"})
    results = build(dead)
    assert results.headline == "No trial finished with a test AUROC; 6 trials failed."
    assert results.budget["failed"] == len(results.failures) == 6
    assert "No trial finished" in markdown(results)
    assert "Trials without a result" in printed(results)
    empty = build(replace(made, trials=()))
    assert empty.headline == "No trial finished with a test AUROC; 0 trials failed."
    assert markdown(empty)


def test_a_report_of_a_real_store(store, tmp_path):
    client, _ = store
    results = build(load_study(client, "sid"))
    paths = write(results, tmp_path / "new" / "report")
    assert [path.name for path in paths][:5] == [
        *("results.json", "results.csv", "contrasts.csv", "report.md", "report.html")
    ]
    assert {path for path in paths[0].parent.rglob("*") if path.is_file()} == {*paths}
    assert read(paths[0]) == results

    content = json.loads(paths[0].read_text())
    assert set(content) >= {
        *("schema_version", "study", "headline", "arms", "contrasts"),
        *("failures", "budget", "waivers", "metric"),
    }
    assert (content["schema_version"], content["study"]) == (1, "BUSI | probe")
    assert set(content["arms"][0]) >= {
        *("arm", "n_seeds", "mean", "lo", "hi", "cost", "axes", "failed"),
    }
    assert set(content["contrasts"][0]) >= {
        *("a", "b", "diff", "lo", "hi", "p_adj", "verdict", "provisional"),
        *("n_cases", "n_seeds", "axes"),
    }
    assert content["failures"][0]["reason"].startswith("CUDA | out of")
    assert set(content["failures"][0]) >= {"run_id", "arm", "seed", "reason"}
    assert content["budget"] == {
        "trials": 9,
        "finished": 8,
        "failed": 1,
        "train_seconds": pytest.approx(3 * 120 + 5 * 10),
    }
    assert {arm["arm"]: (arm["n_seeds"], arm["failed"]) for arm in content["arms"]} == {
        FE: (3, 0),
        FT: (3, 0),
        ODD: (2, 1),
    }
    assert f"{ODD}: seed 1 failed" in content["notes"]

    table = pd.read_csv(paths[1])
    assert list(table["arm"]) == [arm["arm"] for arm in content["arms"]]
    assert table["cost/trainable_parameters"].max() == 11_181_642


def test_writing_twice_replaces_and_a_failure_leaves_the_old(tmp_path):
    results = build(study({FE: 1.0, FT: 2.0}))
    write(results, tmp_path)
    write(replace(results, study="second"), tmp_path)
    assert read(tmp_path / "results.json").study == "second"
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--out DIR"):
        write(results, tmp_path / "file")


def test_names_from_outside_are_only_names(store):
    client, _ = store
    results = build(load_study(client, "sid"))
    text = markdown(results)
    assert "<" not in text.replace("<0.001", "")
    assert "\x1b" not in text
    for table in (block for block in text.split("\n\n") if block.startswith("|")):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table
    console = printed(results, width=200)
    assert ODD in console
    assert "CUDA | out of <memory> [31m" in console


def test_escaping():
    assert escape("fine_tuning/file") == "fine_tuning/file"
    assert escape("_x_ a_b") == "&#95;x&#95; a_b"
    assert escape("# 1\n- x") == "&#35; 1 - x"
    assert escape("1. x") == "&#49;&#46; x"
    for char in "<>&|`*[]~$\\":
        assert escape(f"a{char}b") == f"a&#{ord(char)};b"


@pytest.mark.parametrize("per_patient", [1, 3])
def test_the_markdown_states_all(per_patient):
    axes = [{"dataset.fraction": value} for value in ("0.1", "1")]
    made = study({FE: 1.0, FT: 2.5}, axes=axes, per_patient=per_patient)
    text = markdown(build(made))
    assert text.startswith("# made up\n\nWith dataset.fraction=1: ")
    for heading in ("## Arms", "## Contrasts", "## How this was computed"):
        assert heading in text
    assert "| dataset.fraction=0.1 | better (provisional) | +0." in text
    assert ("one patient" in text) == (per_patient > 1)


def test_the_method_says_what_the_intervals_cover():
    made = study({FE: 1.0, FT: 2.5}, [0])
    assert "With a single seed" in markdown(build(made))
    seeds = replace(study({FE: 1.0, FT: 2.5}), predictions=stored({}))
    assert "covers seeds alone" in markdown(build(seeds))


def test_the_tables_fit_a_hundred_columns():
    arms = {
        f"{strategy}/imagenet": s
        for s, strategy in enumerate(
            ("feature_extraction", "fine_tuning", "probe_then_fine_tune"), start=1
        )
    }
    text = printed(build(study(arms)))
    assert max(map(len, text.splitlines())) <= 100
    assert "..." not in text
    assert "…" not in text
    names = [row.split()[0] for row in text.splitlines() if "/imagenet " in row][:3]
    assert names == [
        "probe_then_fine_tune/imagenet",
        "fine_tuning/imagenet",
        "feature_extraction/imagenet",
    ]
    assert "* provisional: fewer than 5 seeds" in text
    assert "Memory" not in text


def test_a_screen_shows_the_best_of_many_arms_against_each_other_one():
    six = build(study({f"arm{k}": 0.2 * k for k in range(1, 7)}))
    assert printed(six).count("versus arm") == 15
    seven = build(study({f"arm{k}": 0.2 * k for k in range(1, 8)}))
    text = printed(seven)
    assert text.count("versus arm") == 6
    assert text.count("arm7") >= 7
    assert "all 21 pairs" in text


def test_a_standalone_trial_is_one_arm(store):
    client, ids = store
    results = build(load_study(client, ids["standalone"]))
    (row,) = results.arms
    assert (row.over, row.n_seeds, row.n_cases) == ("cases", 1, 120)
    assert row.lo < row.mean < row.hi
    assert results.contrasts == ()
    assert "the interval covers cases alone" in results.headline


def test_numbers():
    assert [number(v) for v in (None, 0.1, -0.0001, -0.02)] == ["-", "0.100", "0.000", "-0.020"]
    assert [number(v, signed=True) for v in (0.1, -0.1, 0.0001)] == ["+0.100", "-0.100", "0.000"]
    given = (None, 8.12, 95, 600, 9000)
    assert [seconds(v) for v in given] == ["-", "8.1 s", "95 s", "10 min", "2.5 h"]
    assert [large(v) for v in (None, 513, 1026, 2.5e9)] == ["-", "513", "1.0 k", "2.5 G"]
    assert [megabytes(v) for v in (None, 812.4, 1812.0)] == ["-", "812 MB", "1.8 GB"]
