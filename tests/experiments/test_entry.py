"""The command line: configs, their overrides, errors as one sentence, result files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import entry, train
from experiments.train import check_used, configuration
from mctx.errors import UserError
from mctx.telemetry import Telemetry

ROOT = Path(__file__).parents[2]
CONFIG = '''
from ml_collections import ConfigDict, config_dict

def get_config():
    return ConfigDict({
        "phase": "base", "corpus": config_dict.placeholder(str), "remat": False,
        "gist": {"fanouts": (32, 8), "width": 256}, "train": {"steps": 10, "learning_rate": 1e-3},
    })
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(CONFIG)
    return path


def test_overrides_take_the_type_of_the_default(file):
    overrides = ["remat=true", "gist.fanouts=4,4,4", "corpus=x=y", "train.learning_rate=2"]
    config = entry.load_config(file, [f"--config.{text}" for text in overrides])
    assert config.remat is True
    assert config.gist.fanouts == (4, 4, 4)
    assert config.corpus == "x=y"
    assert config.train.learning_rate == 2.0 and type(config.train.learning_rate) is float
    assert config.gist.width == 256


@pytest.mark.parametrize("value", ["(4,)", "4", "[4]"])
def test_a_tuple_of_one(file, value):
    assert entry.load_config(file, [f"--config.gist.fanouts={value}"]).gist.fanouts == (4,)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--config.train.step=3", "no key 'train.step': did you mean train.steps"),
        ("--config.learning_rate=3", "did you mean train.learning_rate"),
        ("--config.trian.learning_rate=3", "did you mean train.learning_rate"),
        ("--config.gist=3", "did you mean gist.fanouts or gist.width"),
        ("--config.zzz=3", "no key 'zzz'; keys: .*corpus"),
        ("--config.train.steps=many", "train.steps wants an int, not 'many'"),
        ("--config.remat=maybe", "remat wants a bool, not 'maybe'"),
        ("--config.gist.fanouts=4,x", "gist.fanouts wants a tuple, not '4,x'"),
        ("--config.train.steps", "overrides look like --config.key=value"),
        ("--steps=3", "overrides look like --config.key=value"),
    ],
)
def test_overrides_that_are_wrong(file, override, sentence):
    with pytest.raises(UserError, match=sentence):
        entry.load_config(file, [override])


def test_files_that_are_no_config(tmp_path):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "text.txt").write_text("")
    for name, sentence in [
        ("none.py", "there is no config file"),
        ("empty.py", "must define get_config"),
        ("text.txt", "give a .py file"),
    ]:
        with pytest.raises(UserError, match=sentence):
            entry.load_config(tmp_path / name)


def test_every_train_setting_can_be_overridden(file):
    config = configuration(file, ["--config.corpus=c", "--config.train.fsdp=2"])
    assert (config.train.fsdp, config.train.steps, config.train.schedule) == (2, 10, "cosine")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("", ""), "no corpus"),
        (('"phase": "base"', '"phase": "bass"'), "no phase 'bass'"),
        (('"steps": 10', '"stesp": 10'), "sets train.stesp, .*did you mean train.steps"),
        (('"remat"', '"eval_bach": 8, "remat"'), "phase base does not .*did you mean eval_batch"),
        (('"remat"', '"questions": 0.5, "remat"'), "sets questions, which phase base does not"),
        (('"phase"', '"init": "a", "phase"'), "phase base begins from nothing"),
        (('"phase": "base"', '"phase": "gist", "with_lora": True'), "gist cannot be trained on"),
    ],
)
def test_configs_that_cannot_be_trained(file, change, sentence):
    file.write_text(CONFIG.replace(*change) if change[0] else CONFIG)
    with pytest.raises(UserError, match=sentence):
        configuration(file, [])


def test_what_was_settled_before_cannot_be_overridden():
    used = {"base": {"window": 64, "prefix": (0,)}, "gist": {"slots": (8, 8)}, "window": 32}
    config = ConfigDict({"phase": "lens", "window": 16, "gist": {"slots": 8}, "train": {}})
    config.base = {"window": 16, "prefix": (0,)}
    check_used(config, [], used)
    check_used(config, ["--config.base.prefix=(0,)", "--config.train.steps=3"], used)
    for name, value in (("base.window", 64), ("window", 32)):
        with pytest.raises(UserError, match=f"{name} is {value} .* and cannot become 16"):
            check_used(config, [f"--config.{name}=16"], used)
    config.phase = "gist"
    check_used(config, ["--config.gist.slots=8", "--config.window=16"], used)  # its own


def test_configs_of_the_project_can_be_trained():
    given = ["--config.corpus=c", "--config.remat=True"]
    for path in (ROOT / "experiments" / "configs").glob("pico_*.py"):
        config = configuration(path, given)
        assert config.train.steps > 0 and config.remat
    for name in ("small.py:base", "small.py:gist"):
        assert configuration(ROOT / "experiments/configs" / name, given).train.steps > 0


def test_a_users_error_is_one_line_and_status_2():
    command = [sys.executable, "-m", "experiments.train", "--config=none.py", "--workdir=w"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no config file none.py: see experiments/configs.\n"


def test_wrong_arguments_are_a_users_error():
    parser = entry.Parser(prog="python -m experiments.train")
    parser.add_argument("--workdir", required=True)
    with pytest.raises(UserError, match="required: --workdir; see .python -m experiments.train"):
        parser.parse_args([])


def test_run_joins_lines_and_lets_other_errors_through(capsys):
    def mendable():
        raise UserError("one\n  two.")

    with pytest.raises(SystemExit) as exited:
        entry.run(mendable)
    assert exited.value.code == 2 and capsys.readouterr().err == "error: one two.\n"
    with pytest.raises(SystemExit) as exited:
        entry.run(lambda: None)
    assert exited.value.code == 0
    with pytest.raises(ZeroDivisionError):
        entry.run(lambda: 1 / 0)


def test_what_the_system_refuses_is_one_sentence_with_its_path(tmp_path, capsys):
    def unwritable():
        Telemetry(tmp_path / "file")

    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exited:
        entry.run(unwritable)
    assert exited.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/file cannot be written or read (File exists): name another path, or "
        "mend this one.\n"
    )

    def no_fault_of_a_path():
        raise OSError("of nothing known")

    with pytest.raises(OSError, match="of nothing known"):
        entry.run(no_fault_of_a_path)


def test_places_are_checked_before_the_work_and_nothing_is_made(tmp_path):
    (tmp_path / "file").touch()
    entry.check_folder(tmp_path / "a" / "b")
    entry.check_file(tmp_path / "a" / "r.json")
    entry.check_file(tmp_path / "file")
    with pytest.raises(UserError, match="file is a file, where a folder is needed"):
        entry.check_folder(tmp_path / "file")
    with pytest.raises(UserError, match="file is a file, where a folder is needed"):
        entry.write_result(tmp_path / "file" / "b" / "r.json", "again", 7, [])
    with pytest.raises(UserError, match="is a folder: name a file"):
        entry.check_file(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="of Linux: not even root may write it")
def test_a_folder_that_the_system_keeps_is_refused():
    with pytest.raises(UserError, match="/proc/none/x cannot be written or read"):
        entry.check_file("/proc/none/x/r.json")


def test_training_does_not_begin_where_nothing_can_be_written(file, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    given = ["train", f"--config={file}", f"--workdir={tmp_path / 'file'}", "--config.corpus=none"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(UserError, match="file is a file, where a folder is needed"):
        train.main()


@pytest.mark.parametrize(
    "content, says",
    [
        ("x = 1\ndef get_config(:\n", r"toy.py, line 2: mend .* \(invalid syntax\)"),
        ("\nimport no_such_module\n", r"toy.py, line 2: .* \(ModuleNotFoundError: No module"),
        ("def f():\n    return 1 / 0\n\nf()\n", r"toy.py, line 2: .* \(ZeroDivisionError"),
        ("\ndef get_config():\n    return nothing\n", r"toy.py, line 3: .* \(NameError: name"),
    ],
)
def test_a_config_file_that_fails_is_told_with_its_line(tmp_path, content, says):
    (tmp_path / "toy.py").write_text(content)
    with pytest.raises(UserError, match=says):
        entry.load_config(tmp_path / "toy.py")


def test_result_file_is_whole_and_says_where_it_comes_from(tmp_path):
    path = tmp_path / "deep" / "r.json"
    rows = [{"what": "speed", "value": 2.0, "unit": "tokens/s", "low": 1.0, "high": 3.0, "n": 5}]
    entry.write_result(path, "python -m experiments.bench", 7, rows, model="pico")
    found = json.loads(path.read_text())
    assert found["rows"] == rows and found["seed"] == 7 and found["model"] == "pico"
    assert found["machine"]["devices"].startswith("8 × ") and found["machine"]["cores"] >= 1
    assert found["commit"] == entry.git_commit()
    with pytest.raises(TypeError):
        entry.write_result(path, "again", 7, [{"value": object()}])
    assert json.loads(path.read_text()) == found and len(list(path.parent.iterdir())) == 1
