"""What `bench train` times: a phase whose batches come from elsewhere, or again and again."""

import dataclasses

import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import job, pretraining
from mctx.errors import UserError


def made():
    settings = dataclasses.replace(job.settings(10**6, 1, 1), save_every=0)
    return pretraining.Trained(job.phase(), settings)


def test_steps_go_on_from_timing_to_timing():
    trained = made()
    before = trained.seconds(trained.phase, 3)
    assert trained.seconds(pretraining.repeated(trained.phase), 3) > 0 and before > 0
    assert int(trained._state.step) == 8  # each timing begins with a step that is not counted
    forward = trained.forward_flops()
    tokens = job.BATCH * job.SIZE.window
    weights = job.SIZE.vocab_size * job.SIZE.d_model  # of the head alone
    assert forward > 2 * tokens * weights


def test_a_repeated_batch_is_the_first_one():
    phase = job.phase()
    again = pretraining.repeated(phase)
    first, fifth = phase.batch(0, slice(None)), again.batch(5, slice(2, 4))
    np.testing.assert_array_equal(first["tokens"][2:4], fifth["tokens"])


@pytest.mark.parametrize("only", ["data", "nothing"])
def test_what_it_cannot_do_is_said_in_one_sentence(only):
    args = bench.flags().parse_args(["train", f"--only={only}", "--smoke"])
    with pytest.raises(UserError, match="--corpus=DIR|choose of"):
        list(pretraining.run(args))
