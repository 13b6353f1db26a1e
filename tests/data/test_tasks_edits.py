import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks.assembly import occurs
from data.tasks.sample import edit, make
from mctx.tokenizer import Tokenizer
from tests.data.tasks_readers import NEEDLE

PICO = Tokenizer.load("data/checkpoints/pico")


@settings(max_examples=25)
@given(
    st.integers(0, 2**31), st.integers(1, 9), st.integers(-2, 2), st.sampled_from([16, 32]),
    st.none() | st.floats(0, 1),
)
def test_an_edit_changes_one_document_and_the_answer(seed, documents, grow, block, depth):
    made = edit(
        PICO, 2000, seed, documents=documents, grow=grow, block=block, depth=depth
    )
    assert all(len(text) % block == 0 for text in (*made.documents, made.replacement))
    assert len(made.question) % block == 1 and len(made.documents) == documents
    for texts, sample in ((made.documents, made.before), (made.edited, made.after)):
        np.testing.assert_array_equal(np.concatenate([*texts, made.question]), sample.prompt)
        (start, stop), = sample.support
        begin = sum(map(len, texts[:made.replaced]))
        assert begin <= start < stop <= begin + len(texts[made.replaced])
        key, value = NEEDLE.findall(PICO.decode(sample.prompt[start:stop]))[0]
        assert PICO.decode(sample.continuation).strip() == value
        assert PICO.decode(sample.prompt).endswith(f" The code of {key} is")
    assert len(made.after.prompt) - len(made.before.prompt) == grow * block
    old, new = made.before.continuation, made.after.continuation
    assert not np.array_equal(old, new)
    assert not occurs(old, made.after.prompt) and not occurs(new, made.before.prompt)
    np.testing.assert_array_equal(made.after.candidates[1], old)
    np.testing.assert_array_equal(made.before.candidates[1], new)
    if depth is not None:
        assert made.replaced == round(depth * (documents - 1))


def test_make_gives_the_sample_after_the_edit():
    np.testing.assert_equal(make("edits", PICO, 1500, 4), edit(PICO, 1500, 4).after)
