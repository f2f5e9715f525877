"""All mutants, and the reported bugs that the four methods of an adapter cannot show."""

from __future__ import annotations

from tests.sabotage.mutants_accuracy import ACCURACY, DOWNGRADED
from tests.sabotage.mutants_formula import FORMULA
from tests.sabotage.mutants_gradients import GRADIENTS
from tests.sabotage.mutants_inference import INFERENCE
from tests.sabotage.mutants_memory import LAYOUT, RETURNS, WRITES
from tests.sabotage.mutants_reduction import REDUCTION
from tests.sabotage.mutants_running import RUNNING
from tests.sabotage.mutants_state import STATE

__all__ = ["DOWNGRADED", "MUTANTS", "OUT_OF_REACH"]

MUTANTS = (
    *REDUCTION, *FORMULA, *ACCURACY, *RUNNING, *INFERENCE, *GRADIENTS, *LAYOUT, *WRITES, *STATE, *RETURNS,
)  # fmt: skip

OUT_OF_REACH = {
    "pytorch#586, pytorch#4284, cudnn.torch#244, torch/nn#768, xla#913, mxnet#9580": "vjp is that of training",
    "mxnet#18499": "results are returned, not added to a buffer",
    "pytorch#121651": "which memory layout results have is not specified",
    "pytorch#22192, pytorch#36688, Paddle#32464": "no method merges statistics of parts",
    "pytorch#4422, pytorch#4569, pytorch#2264, pytorch#2268, pytorch#186256": "no method differentiates twice",
    "keras#19848, keras#20815, tensorflow#30161": "no method takes a mask",
    "pytorch#106605": "a negative running variance is refused by each library in its own words",
}
"""For each report, why no mutant can show the bug."""
