"""What TAB offers, in the program and in the shells."""

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("medtransfer")


def wants(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture
def ask(cli):
    """Return a function that gives what could stand at the end of a line."""

    def complete(line):
        result = cli("completion", "--query", line)
        assert result.code == 0, result.err
        return result.out.splitlines()

    return complete


@pytest.fixture
def own(tmp_path):
    """Return a folder with a strategy of the user's own."""
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "conf" / "strategy" / "fine_mine.yaml").write_text("# Mine.\n_target_: mine.Mine\n")
    return tmp_path / "conf"


def test_commands(ask):
    assert {"train", "list", "doctor", "completion"} <= set(ask("medtransfer "))
    assert ask("medtransfer tr") == ["train"]
    assert ask("medtransfer train") == ["train"]
    assert ask("medtransfer --ver") == ["--version"]
    assert ask("A=1 B=2 ./bin/medtransfer doc") == ["doctor"]
    assert ask("medtransfer nonsense ") == []


def test_options_and_their_values(ask):
    assert ask("medtransfer list --") == ["--config-dir", "--help", "--json", "--search"]
    assert ask("medtransfer list --s") == ["--search"]
    assert ask("medtransfer train --c") == ["--cfg", "--config-dir"]
    assert ask("medtransfer train --cfg ") == ["all", "hydra", "job"]
    assert "--multirun" in ask("medtransfer train -")
    assert "--cfg" not in ask("medtransfer doctor -")
    assert ask("medtransfer export RUN --format o") == ["onnx"]
    assert "--query" not in ask("medtransfer completion -")


def test_positional_arguments(ask):
    assert ask("medtransfer list stra") == ["strategy"]
    assert "hydra/launcher" in ask("medtransfer list --json ")
    assert ask("medtransfer new st") == ["strategy", "study"]
    assert ask("medtransfer completion ") == ["bash", "fish", "zsh"]


@pytest.mark.parametrize(
    "line",
    [
        "report S --out ",
        "predict RUN im",
        "list --config-dir ",
        "new study n --dir ",
        "train -h o=",
    ],
)
def test_where_files_are_wanted_nothing_is_found(ask, line):
    assert ask(f"medtransfer {line}") == []


def test_groups_and_their_choices(ask):
    assert ask("medtransfer train strat") == ["strategy.", "strategy="]
    assert ask("medtransfer train strategy=fi") == ["strategy=fine_tuning"]
    assert {"strategy=lora", "strategy=bitfit"} <= set(ask("medtransfer train strategy="))
    assert ask("medtransfer train hydra/launcher=ba") == ["hydra/launcher=basic"]
    assert ask("medtransfer pretrain source=sa") == ["source=sae"]
    assert "source=" not in ask("medtransfer train ")
    assert not any("common" in each for each in ask("medtransfer train "))
    assert ask("medtransfer train dataset.external=ph") == ["dataset.external=phantom"]
    assert "dataset.external=" in ask("medtransfer train dataset.ex")


def test_keys_and_what_they_are_now(ask):
    assert ask("medtransfer train trainer.ma") == [
        f"trainer.max_{each}=" for each in ("epochs", "seconds", "steps")
    ]
    assert ask("medtransfer train trainer.checkpoint=") == ["trainer.checkpoint=best"]
    assert ask("medtransfer train test=") == ["test=true"]
    assert ask("medtransfer train dataset.split.ratios=") == []
    assert ask("medtransfer train nothing.at.a") == []
    assert "tracking.uri=" in ask("medtransfer doctor tracking.")
    assert ask("medtransfer report S --out DIR tracking.u") == ["tracking.uri="]
    assert not any("_target_" in each for each in ask("medtransfer train strategy."))


def test_keys_are_those_of_what_is_chosen_before(ask):
    assert ask("medtransfer train strategy=lora strategy.ra") == ["strategy.rank="]
    assert ask("medtransfer train strategy=fine_tuning strategy.ra") == []
    assert ask("medtransfer train strategy=nonsense trainer.max_e") == ["trainer.max_epochs="]
    assert ask("medtransfer train -m strategy=lora,ssf trainer.max_e") == ["trainer.max_epochs="]


def test_lists_of_choices(ask):
    before = "medtransfer train -m strategy=lora,fi"
    assert ask(before) == ["strategy=lora,fine_tuning"]
    rest = ask("medtransfer train -m weights=random,")
    assert "weights=random,file" in rest
    assert "weights=random,random" not in rest


def test_own_groups(ask, own):
    for flag in (f"--config-dir {own}", f"--config-dir={own}"):
        found = ask(f"medtransfer train {flag} strategy=fine")
        assert found == ["strategy=fine_mine", "strategy=fine_tuning"]
    assert ask(f"medtransfer train -m --config-dir {own} strategy=fine_m") == ["strategy=fine_mine"]


def test_an_open_quote_is_no_obstacle(ask):
    assert ask("medtransfer train 'strategy=fi") == ["strategy=fine_tuning"]
    assert ask('medtransfer train "a b=c" strategy=fi') == ["strategy=fine_tuning"]


def test_what_cannot_be_answered_goes_to_the_error_stream(cli, tmp_path):
    result = cli("completion", "--query", f"medtransfer train --config-dir {tmp_path}/no strategy=")
    assert result.code == 2
    assert result.out == ""
    assert cli("completion").code == 2


def test_it_answers_while_one_waits():
    took = []
    for _ in range(3):  # the machine may be busy
        start = time.perf_counter()
        line = "medtransfer train strategy=fi"
        done = subprocess.run(
            [PROGRAM, "completion", "--query", line], capture_output=True, text=True, check=True
        )
        took.append(time.perf_counter() - start)
        assert done.stdout == "strategy=fine_tuning\n"
    assert min(took) < 1.5


def test_an_answer_loads_nothing_heavy():
    code = (
        "import sys\nfrom medtransfer.cli import main\n"
        "main(['completion', '--query', 'medtransfer train strategy=fi'])\n"
        "heavy = {'torch', 'mlflow', 'pytorch_lightning', 'timm', 'pandas', 'numpy', 'optuna'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")


BASH = """\
eval "$({program} completion bash)"
COMP_WORDBREAKS={breaks}
COMP_LINE={line} COMP_POINT={point} COMP_WORDS=({line}) COMP_CWORD=1
_medtransfer {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
complete -p medtransfer
"""
USUAL = "$' \\t\\n\"\\'@><=;|&(:'"


@wants("bash")
@pytest.mark.parametrize(
    ("line", "breaks", "found"),
    [
        ("train strategy=fi", USUAL, ["fine_tuning"]),
        ("train strategy=fi", "' '", ["strategy=fine_tuning"]),
        ("train -m strategy=lora,fi", USUAL, ["lora,fine_tuning"]),
        ("tr", USUAL, ["train"]),
        ("train trainer.max_e", USUAL, ["trainer.max_epochs="]),
        ("predict RUN --out re", USUAL, [""]),
    ],
)
def test_bash_gets_what_follows_where_it_began_the_word(line, breaks, found, tmp_path):
    line = f"medtransfer {line}"
    script = BASH.format(
        program=shlex.quote(str(PROGRAM)),
        line=shlex.quote(line + " and more"),
        point=len(line),
        breaks=breaks,
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    *offered, registered = done.stdout.splitlines()
    assert offered == found
    assert "-o default" in registered  # where nothing is found, names of files


@wants("bash")
def test_bash_itself_completes_what_is_typed(tmp_path):
    (tmp_path / "reports").mkdir()
    lead, follow = pty.openpty()
    termios.tcsetwinsize(follow, (24, 200))  # else a long line is shown in parts
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), follow),
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "TERM": "dumb", "HISTFILE": "", "INPUTRC": "/dev/null"},
        start_new_session=True,
    )
    os.close(follow)

    def type_(text, awaited):
        """Type a text, and read what the terminal shows until something stands there."""
        os.write(lead, text.encode())
        shown, until = "", time.monotonic() + 30
        while awaited not in shown and time.monotonic() < until:
            if select.select([lead], [], [], 0.2)[0]:
                shown += os.read(lead, 4096).decode()
        assert awaited in shown
        return shown

    try:
        type_('eval "$(medtransfer completion bash)"; echo rea""dy\n', "ready")
        type_("medtransfer train strategy=fi\t", "strategy=fine_tuning ")
        type_("trainer.max_e\t", "trainer.max_epochs=")
        type_("3 --out rep\t", "reports/")
        # what stands on the line is shown once more, as the shell has it
        shown = type_("\x01echo '<' \x05 '>'\n", " >")
    finally:
        shell.kill()
        shell.wait()
        os.close(lead)
    line = "medtransfer train strategy=fine_tuning trainer.max_epochs=3 --out reports/"
    assert f"< {line} >" in shown


ZSH = """\
compdef() {{ print -r -- "compdef $*"; }}
compadd() {{ while [[ $1 != -- ]]; do shift; done; shift; print -rl -- "$@"; }}
compset() {{ : }}
_files() {{ print files; }}
eval "$({program} completion zsh)"
words=({program} {words}) CURRENT={current} PREFIX={prefix}
_medtransfer
"""


@wants("zsh")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["train", "strategy=fi"], ["strategy=fine_tuning"]),
        (["train", "trainer.max_e"], ["trainer.max_epochs="]),
        (["li"], ["list"]),
        (["predict", "RUN", "--out", ""], ["files"]),
    ],
)
def test_zsh_gets_whole_words(words, found):
    script = ZSH.format(
        program=shlex.quote(str(PROGRAM)),
        words=shlex.join(words),
        current=len(words) + 1,
        prefix=shlex.quote(words[-1]),
    )
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["compdef _medtransfer medtransfer", *found], done.stderr


@wants("fish")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("train strategy=fi", ["strategy=fine_tuning"]),
        ("train trainer.max_e", ["trainer.max_epochs="]),
        ("li", ["list"]),
        ("predict RUN --out rep", ["reports/"]),
    ],
)
def test_fish_gets_whole_words(line, found, tmp_path):
    (tmp_path / "reports").mkdir()
    program = shlex.quote(str(PROGRAM))
    script = f"{program} completion fish | source; complete -C '{PROGRAM} {line}'"
    around = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=around,
    )
    assert [each.partition("\t")[0] for each in done.stdout.splitlines()] == found, done.stderr
