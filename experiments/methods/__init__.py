"""Every way to show a history, at equal budget in entries, under one interface.

    scorer = Scorer(opened, history)          # whole blocks of tokens, or an open tree
    scorer.nll("bm25", tail), scorer.continuation("lens", tail[:1], 8), scorer.cost("recent")
"""

from experiments.methods.cost import Cost
from experiments.methods.scorer import Scorer
from experiments.methods.standing import Answer, Method, Protocol
from experiments.methods.table import METHODS

__all__ = ["METHODS", "Answer", "Cost", "Method", "Protocol", "Scorer"]
