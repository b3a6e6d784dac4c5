"""Every cell of the capability table that is ours is ok, now; and the page is what the result file says."""

import pytest
import torch
from benchmarks.capabilities import PAGE, render
from benchmarks.capability_checks import CHECKS, NeedsPickle, Untouched, outcome
from benchmarks.capability_contenders import CONTROL, OURS, Contender
from benchmarks.common import read_results


@pytest.mark.filterwarnings("ignore")  # deprecations inside torch.compile, autocast and checkpointing
@pytest.mark.parametrize("contender", [CONTROL, *OURS], ids=lambda contender: contender.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_ours_is_able_to(check, contender):
    check(contender)


def test_what_is_missing_is_seen():
    def nothing(model, parameters, batches):
        run = CONTROL.start(model, parameters, batches)
        run.optimizers = [torch.optim.SGD(model.parameters(), lr=0.0)]
        return run

    idle = Contender("idle", "torch", "torch", nothing)
    outcomes = {check.__name__: outcome(check, idle)[0] for check in CHECKS}
    assert outcomes["perceptron_trains"] == outcomes["transformer"] == outcomes["grad_scaler"] == "part"
    assert outcomes["frozen_layer"] == "fail"

    def refuse(error):
        def check(contender):
            raise error

        return check

    errors = {"pickle": NeedsPickle(), "part": Untouched("weight"), "fail": RuntimeError("one\ntwo")}
    assert {cell: outcome(refuse(error), idle)[0] for cell, error in errors.items()} == {cell: cell for cell in errors}
    assert outcome(refuse(RuntimeError("one\ntwo")), idle)[1] == "RuntimeError: one"


def test_the_page_is_made_from_the_result_file():
    record = read_results("capabilities")
    assert PAGE.read_text(encoding="utf-8") == render(record)
    columns = record["details"]["columns"]
    for contender in [CONTROL, *OURS]:
        assert {cell for cell, _ in columns[contender.name]["cells"].values()} == {"ok"}, contender.name
