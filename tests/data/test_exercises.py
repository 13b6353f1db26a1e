from data import bpe, exercises
from data.sampling import Corpus
from data.written import workers
from mctx.tokenizer import Tokenizer
from tests.data.conftest import code


def test_tasks_depend_on_the_seed_and_not_on_the_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(exercises, "SHARES", 2)
    tokenizer = bpe.train([code(i) for i in range(3)], 400)
    texts = [code(i) for i in range(8)]
    for name, processes, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1)):
        with workers(processes) as pool:
            written = exercises.write(
                tmp_path / name, 4_000, (1_500, 2_500), texts, tokenizer, seed, pool
            )
        corpus = Corpus.load(tmp_path / name)
        assert 4_000 <= written == len(corpus.tokens) < 12_000
        assert (corpus.tokens[corpus.documents[:, 1] - 1] == tokenizer.eot_id).all()
        assert len(corpus.packages) == exercises.SHARES
        assert Tokenizer.load(tmp_path / name).fingerprint == corpus.manifest["tokenizer"]
    one, two, other = ((tmp_path / n / "tokens.npy").read_bytes() for n in ("one", "two", "other"))
    assert one == two != other
