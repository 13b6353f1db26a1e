"""import_hf and export_hf: there and back again is the identity, and nothing half-written stays."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from experiments import export_hf, import_hf
from mctx import checkpoint
from mctx.errors import UserError
from mctx.models import hf
from mctx.models.base import BaseConfig, logits
from mctx.models.wrapped import read
from mctx.opened import open_checkpoint
from mctx.runtime import Session, SessionConfig
from mctx.tokenizer import Tokenizer
from tests import tiny
from tests.experiments import tiny_checkpoint

FIXTURES = Path(__file__).parents[1] / "models" / "fixtures"


@pytest.fixture
def source(tmp_path):
    """A Hugging Face checkpoint with a tokenizer of 48 words."""
    folder = shutil.copytree(FIXTURES / "qwen3", tmp_path / "source")
    words = {f"word{i}": i for i in range(47)} | {"<|endoftext|>": 47}
    model = tokenizers.models.WordLevel(words, unk_token="word0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_import_then_export_is_the_identity(source, tmp_path):
    import_hf.main([str(source), str(tmp_path / "base")])
    config, params = hf.load(source)
    items, configs = checkpoint.load_items(tmp_path / "base", ("base",))
    assert BaseConfig.from_dict(configs["base"]) == config
    assert_same(items["base"], params)
    assert Tokenizer.load(tmp_path / "base").vocab_size == config.vocab_size
    assert "source" in (tmp_path / "base" / "CARD.md").read_text()

    export_hf.main([str(tmp_path / "base"), str(tmp_path / "again")])
    assert hf.load(tmp_path / "again")[0] == config
    assert_same(hf.load(tmp_path / "again")[1], params)
    names = {path.name for path in (tmp_path / "again").iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"config.json", "model.safetensors"} | tokenizer


def test_a_workdir_is_exported_with_its_tokenizer(source, tmp_path):
    import_hf.main([str(source), str(tmp_path / "workdir" / "base"), "--dtype=bfloat16"])
    export_hf.main([str(tmp_path / "workdir"), str(tmp_path / "out"), "--dtype=bfloat16"])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(hf.load(tmp_path / "out")[1])} == {
        "bfloat16"
    }
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_transformers_reads_an_export_with_its_tokenizer(source, tmp_path):
    transformers = pytest.importorskip("transformers")
    import_hf.main([str(source), str(tmp_path / "base")])
    export_hf.main([str(tmp_path / "base"), str(tmp_path / "out")])
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == 47
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("word3 word5")["input_ids"] == [3, 5]


def test_transformers_gives_the_logits_of_the_base_that_was_exported(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    export_hf.main([str(tiny_checkpoint.write(tmp_path / "bundle")), str(tmp_path / "out")])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tiny_checkpoint.text(24)
    ids = Tokenizer.load(tmp_path / "bundle").encode(text)
    assert tokenizer(text)["input_ids"] == ids.tolist()
    tokens = np.concatenate([tiny.BASE.prefix, ids])[None]
    with torch.no_grad():
        theirs = model(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    base = tiny.params()["base"]
    hidden = read(tiny.MODEL, {"base": base}, tokens, np.arange(tokens.shape[1])[None]).hidden
    np.testing.assert_allclose(theirs, logits(base, hidden), atol=1e-4)


def test_a_session_runs_on_an_imported_base_alone(source, tmp_path, capsys):
    """Its own tokenizer, no gists and no lens: what is shown is the recent blocks."""
    import_hf.main([str(source), str(tmp_path / "workdir" / "base")])
    with pytest.raises(UserError, match="holds no gistnet, only base: train it"):
        open_checkpoint(tmp_path / "workdir")
    opened = open_checkpoint(tmp_path / "workdir", untrained=True)
    config = SessionConfig(budget=256, recent=2, every=2)
    session = Session(opened, tmp_path / "tree", config)
    text = " ".join(f"word{i % 46}" for i in range(400))
    assert session.ingest(text) == 400
    layout = jax.tree.map(lambda x: x[0], session.layouts)
    shown = layout.index[: layout.count][layout.shown[: layout.count]]
    assert (layout.level[: layout.count][layout.shown[: layout.count]] == 0).all()
    np.testing.assert_array_equal(shown, np.arange(session.blocks - len(shown), session.blocks))
    assert len(shown) > config.recent  # the budget is spent
    assert session.generate("word1 word2", tokens=2)


def test_a_checkpoint_without_tokenizer_is_imported_and_exported(tmp_path, capsys):
    import_hf.main([str(FIXTURES / "llama"), str(tmp_path / "base")])
    assert "add a tokenizer.json" in capsys.readouterr().out
    export_hf.main([str(tmp_path / "base"), str(tmp_path / "out")])
    assert not (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("prefix", [(), (0, 3)])
def test_a_prefix_of_other_than_one_token_comes_back(prefix, tmp_path, capsys):
    base = dataclasses.replace(tiny.BASE, prefix=prefix)
    files = {"tokenizer.json": tiny_checkpoint.tokenizer_json()}
    params = {"base": tiny.params()["base"]}
    checkpoint.save_bundle(tmp_path / "base", params, {"base": base.to_dict()}, files, np.float32)
    export_hf.main([str(tmp_path / "base"), str(tmp_path / "out")])
    assert ("begin every text with" in capsys.readouterr().out) == (len(prefix) > 1)
    import_hf.main([str(tmp_path / "out"), str(tmp_path / "again")])
    _, configs = checkpoint.load_items(tmp_path / "again", ("base",))
    assert BaseConfig.from_dict(configs["base"]).prefix == prefix


def test_a_failed_export_leaves_nothing(source, tmp_path, monkeypatch):
    import_hf.main([str(source), str(tmp_path / "base")])
    with pytest.raises(UserError, match="use qwen3"):
        export_hf.main([str(tmp_path / "base"), str(tmp_path / "out"), "--family=llama"])

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Tokenizer, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export_hf.main([str(tmp_path / "base"), str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "source"]


@pytest.mark.parametrize("command", [import_hf, export_hf])
def test_what_exists_is_not_written_over(command, source, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="choose a new directory"):
        command.main([str(source), str(tmp_path / "there")])


def test_an_export_into_a_file_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, where a folder is needed"):
        export_hf.main([str(tmp_path / "none"), str(tmp_path / "file" / "out")])


def test_a_tokenizer_of_another_model_is_refused(source, tmp_path):
    small = shutil.copytree(FIXTURES / "llama", tmp_path / "small")
    text = (source / "tokenizer.json").read_text().replace("47", "4700")
    (small / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="belongs to the model"):
        import_hf.main([str(small), str(tmp_path / "base")])
