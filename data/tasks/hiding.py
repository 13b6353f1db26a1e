"""A plan and a haystack make a sample."""

import numpy as np

from data.tasks.assembly import Plan, Sample, Setting, occurs, room, separated, splice
from data.tasks.haystack import Haystack
from mctx.errors import UserError

_DRAWS = 16  # stretches of a haystack that are tried before it is held to say the answer everywhere


def hide(plan: Plan, haystack: Haystack, setting: Setting) -> Sample:
    """The first question of a plan, hidden in a haystack, at the setting's exact length.

    Raises:
      UserError: there is no room, or the haystack says the answer by itself wherever one looks.
    """
    hay, cuts = clean_hay(plan, haystack, setting, room(plan, setting.length))
    text, begins = splice(plan, hay, cuts)
    return as_sample(plan, text, begins, setting)._replace(
        facts={**plan.facts, "haystack": haystack.name, "in_text": len(plan.questions[0].near)}
    )


def as_sample(plan: Plan, text: np.ndarray, begins: np.ndarray, setting: Setting) -> Sample:
    """The first question of a plan, asked behind its text.

    Args:
      plan: what stands in the text.
      text: int32 [t].
      begins: where each statement of the plan begins in it, [statements].
    """
    question, comma = plan.questions[0], setting.encoder.one(",")
    support = tuple(
        (int(begins[i]), int(begins[i]) + len(plan.statements[i])) for i in question.support
    )
    candidates = tuple(
        separated(answers, comma) for answers in (question.answers, *question.near, *question.far)
    )
    first, stop = min(support)
    span = len(text) - len(plan.front) - (stop - first)
    return Sample(
        family="",
        prompt=np.concatenate([text, question.ask]).astype(np.int32, copy=False),
        answers=question.answers,
        continuation=candidates[0],
        candidates=candidates,
        support=support,
        depth=(first - len(plan.front)) / max(span, 1),
        rule=plan.rule,
        facts=plan.facts,
    )


def clean_hay(
    plan: Plan, haystack: Haystack, setting: Setting, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hay of `count` tokens that does not say an answer by itself, and its cuts.

    Raises:
      UserError: it says one wherever one looks.
    """
    for _ in range(_DRAWS):
        hay, cuts = haystack.draw(setting.rng, count)
        if not plan.alone or not any(
            occurs(answer, hay) for question in plan.questions for answer in question.answers
        ):
            return hay, cuts
    raise UserError(f"The haystack {haystack.name} says the answer itself; take another.")
