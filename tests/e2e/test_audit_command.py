"""The audit from the command line, and the gate that it is in front of every study."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PILImage
from PIL import ImageFilter

SMALL = (
    *("backbone=timm", "backbone.name=test_resnet", "trainer=quick", "trainer.threads=1"),
    *("trainer.max_epochs=1", "trainer.batch_size=8", "trainer.precision=fp32"),
)
SWEEP = ("train", "-m", *SMALL, "strategy=feature_extraction", "seed=0,1")


@pytest.fixture
def table(tmp_path):
    """Return a function that writes images with a given split, and returns what names them.

    A copy is made of the first training image for the first image of testing.
    """

    def write(copy=None, *, patient=False):
        folder = tmp_path / "data"
        folder.mkdir()
        rng = np.random.default_rng(0)
        rows = []
        for i in range(36):
            noise = PILImage.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8))
            image = noise.filter(ImageFilter.GaussianBlur(2))
            image = PILImage.fromarray(np.clip(np.asarray(image) * 3.0 - 250, 0, 255).astype("u1"))
            side = ("train", "val", "test")[i // 12]
            if i == 0:
                first = image
            if i == 24 and copy is not None:
                image = copy(first)
            image.save(folder / f"{i:02}.png")
            who = "P0" if patient and i in {0, 24} else f"P{i}"
            rows.append({"image": f"{i:02}.png", "label": i % 2, "patient": who, "split": side})
        pd.DataFrame(rows).to_csv(folder / "all.csv", index=False)
        return (
            *("dataset=csv_manifest", f"dataset.root={folder}", "dataset.file=all.csv"),
            *("dataset.patient=patient", "dataset.split_column=split", "dataset.split.kind=own"),
            "dataset.image_size=32",
        )

    return write


LEAKS = {
    "exact_duplicates": {"copy": lambda image: image},
    "near_duplicates": {"copy": lambda image: image.point(lambda value: min(255, value + 25))},
    "patient_overlap": {"patient": True},
}


@pytest.mark.parametrize("code", sorted(LEAKS))
def test_a_leak_is_shown_kept_and_refused(cli, table, home, code, list_runs):
    done = cli("audit", *table(**LEAKS[code]))
    assert done.code == 3
    assert code in done.out
    assert f"audit.waive=[{code}]" in done.err
    found = json.loads((home / "audits" / "csv_manifest" / "audit.json").read_text())
    assert [f["code"] for f in found["findings"] if f["severity"] == "leak"] == [code]
    assert (home / "audits" / "csv_manifest" / "audit.png").stat().st_size > 1000
    assert not list_runs()


@pytest.mark.parametrize("code", sorted(LEAKS))
def test_a_study_on_leaking_data_is_refused_before_any_run(cli, table, list_runs, code):
    done = cli(*SWEEP, *table(**LEAKS[code]))
    assert done.code == 3
    assert code in done.err
    assert not list_runs()


@pytest.mark.parametrize("code", sorted(LEAKS))
def test_a_waived_leak_is_told_in_the_report(cli, table, home, code):
    done = cli(*SWEEP, *table(**LEAKS[code]), f"audit.waive=[{code}]")
    assert done.code == 0, done.err
    (path,) = (home / "reports").glob("*/results.json")
    (waiver,) = json.loads(path.read_text())["waivers"]
    assert code in waiver
    assert "## Waivers" in path.with_name("report.md").read_text()
    assert code in done.out


@pytest.mark.parametrize("code", ["exact_duplicates", "patient_overlap"])
def test_what_leaks_can_be_left_out_of_training(cli, table, list_runs, code):
    done = cli(*SWEEP, *table(**LEAKS[code]), "dataset.split.leaks=drop")
    assert done.code == 0, done.err
    trial = next(r for r in list_runs() if r.data.tags["medtransfer.phase"] == "final")
    folder = trial.info.artifact_uri.removeprefix("file://")
    data = json.loads(open(f"{folder}/data.json").read())  # noqa: PTH123, SIM115
    assert data["dropped"] == 1


def test_near_duplicates_are_kept_together_on_request(cli, table):
    leak = LEAKS["near_duplicates"]
    keys = ("dataset.split.duplicates=near", "dataset.split.leaks=drop")
    done = cli("audit", *table(**leak), *keys)
    assert done.code == 0, done.out


def test_sound_data_pass_and_their_split_can_be_shared(cli, table, home):
    arguments = table()
    assert cli("audit", *arguments).code == 0
    split = home / "audits" / "csv_manifest" / "split.json"
    again = [a for a in arguments if not a.startswith("dataset.split")]
    shared = ("dataset.split.kind=file", f"dataset.split.file={split}")
    assert cli("audit", *again, *shared, f"out={home / 'again'}").code == 0
    assert (home / "again" / "split.json").read_text() == split.read_text()


def test_a_code_that_is_none_cannot_be_waived(cli, table):
    done = cli("audit", *table(), "audit.waive=[everything]")
    assert done.code == 2
    assert "near_duplicates" in done.err


def test_images_that_a_network_takes_for_the_same_are_found_on_request(cli, table):
    tiny = ("backbone=timm", "backbone.name=test_resnet", "weights=random", "audit.embeddings=true")
    turned = table(copy=lambda image: image.filter(ImageFilter.GaussianBlur(0.3)))
    done = cli("audit", *turned, *tiny, "audit.similarity=0.9", "trainer.threads=1")
    assert done.code == 3
    assert "near_duplicates" in done.out
