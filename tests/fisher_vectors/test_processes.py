"""One model from several processes: the whole fit over gloo, with 2 and with 4."""

import multiprocessing

import numpy as np
import pytest
import torch
from torch import distributed

from fisher_vectors.texture_images import QUICK, textures
from fisherlayers.fisher_vectors import DeepFisherNetwork, execution
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.processes import Processes

IMAGES, LABELS = textures(10)
UNSEEN, _ = textures(3, seed=1)


def in_processes(size, folder, function):
    """Return what a function of the group returns in each of `size` processes."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def run(rank):
        torch.set_num_threads(1)
        store = distributed.FileStore(str(folder / "rendezvous"), size)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
        try:
            answers.put((rank, function(distributed.group.WORLD)))
        except Exception as error:
            answers.put((rank, error))
        distributed.barrier()
        distributed.destroy_process_group()

    workers = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    found = dict(answers.get() for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    return [found[rank] for rank in range(size)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_fit_the_model_of_one(size, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(execution, "_LEAST_CHUNK", 8)

    def fit(group):
        workspace = tmp_path / "workspace" if size == 2 else None
        model = DeepFisherNetwork(**QUICK, workspace=workspace).fit(IMAGES, LABELS, process_group=group)
        return model.decision_function(UNSEEN), model.C_, model.temperature_

    expected = DeepFisherNetwork(**QUICK).fit(IMAGES, LABELS)
    found = in_processes(size, tmp_path, fit)
    for scores, cost, temperature in found:
        assert np.array_equal(scores, found[0][0])
        np.testing.assert_allclose(scores, expected.decision_function(UNSEEN), atol=1e-4)
        assert cost == expected.C_
        assert temperature == pytest.approx(expected.temperature_, rel=1e-3)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_bad_image_is_named_by_every_process(tmp_path):
    images = [*IMAGES[:5], IMAGES[5] * np.nan]

    def check(group):
        try:
            ImageList(images, each=Execution(processes=Processes(group)).each)
        except ValueError as error:
            return str(error)

    assert in_processes(2, tmp_path, check) == ["images[5] has NaN or infinite pixels"] * 2


def test_one_process_is_a_group_of_its_own():
    alone = Processes()
    assert (alone.size, alone.rank, alone.is_first) == (1, 0, True)
    assert alone.gather(3, everywhere=False) == [alone.share(3)] == [3]
    assert torch.equal(alone.sum(torch.ones(2)), torch.ones(2))
