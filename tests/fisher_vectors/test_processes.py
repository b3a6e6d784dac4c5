"""One model, or one error, from several processes: the whole fit over gloo, with 2 and with 4."""

import multiprocessing
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import distributed

from fisher_vectors.texture_images import CLASSES, QUICK, textures
from fisherlayers.fisher_vectors import DeepFisherNetwork, classifier, execution
from fisherlayers.fisher_vectors.execution import Execution
from fisherlayers.fisher_vectors.images import ImageList
from fisherlayers.fisher_vectors.processes import Processes

IMAGES, LABELS = textures(10)
UNSEEN, _ = textures(3, seed=1)
# A process that waits for others in vain ends in an error of its own.
IN_VAIN = timedelta(seconds=20)

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def in_processes(size, folder, function):
    """Return what a function of the group returns in each of `size` processes."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def run(rank):
        torch.set_num_threads(1)
        store = distributed.FileStore(str(folder / "rendezvous"), size)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=IN_VAIN)
        try:
            answers.put((rank, function(distributed.group.WORLD)))
        except Exception as error:
            answers.put((rank, error))
        except pytest.fail.Exception as failed:  # which does not pickle
            answers.put((rank, AssertionError(str(failed))))
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


def test_processes_may_differ_in_how_they_run_a_fit(tmp_path):
    """And in the seed, which the first one gives to all."""
    weight = {label: 1.0 + index for index, label in enumerate(CLASSES)}

    def fit(group):
        rank = distributed.get_rank()
        ordered = dict(sorted(weight.items(), reverse=rank == 1))
        own = {"n_jobs": 1 + rank, "memory": f"{1 + rank}GB", "random_state": 7 * rank}
        model = DeepFisherNetwork(**(QUICK | own), class_weight=ordered)
        return model.fit(IMAGES, LABELS, process_group=group).decision_function(UNSEEN)

    first, second = in_processes(2, tmp_path, fit)
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("given", "difference"),
    [
        (
            lambda rank: (IMAGES[rank::2], LABELS[rank::2], {}),
            r"fingerprint of some images \(\w+ on rank 0; \w+ on rank 1\)",
        ),
        (lambda rank: (IMAGES[rank:], LABELS[rank:], {}), r"number of images \(40 on rank 0; 39 on rank 1\)"),
        (lambda rank: (IMAGES, np.roll(LABELS, rank), {}), r"fingerprint of the labels \(\w+ on rank 0; \w+ on"),
        (lambda rank: (IMAGES, [f"{label}{rank}" for label in LABELS], {}), r"fingerprint of the labels \(\w+ on"),
        (lambda rank: (IMAGES, LABELS, {"components": 4 + rank}), r"components \(4 on rank 0; 5 on rank 1\): give"),
        (lambda rank: (IMAGES, LABELS, {"C": (1.0, 2.0 + rank)}), r"C \(\[1.0, 2.0\] on rank 0; \[1.0, 3.0\] on"),
    ],
    ids=["shards", "lengths", "order of labels", "labels", "setting", "costs"],
)
def test_processes_that_do_not_make_the_same_call_are_refused(given, difference, tmp_path):
    def fit(group):
        images, labels, options = given(distributed.get_rank())
        DeepFisherNetwork(**(QUICK | options)).fit(images, labels, process_group=group)

    first, second = in_processes(2, tmp_path, fit)
    assert str(first) == str(second)
    with pytest.raises(ValueError, match=f"must make the same call, but they differ in {difference}"):
        raise first


def test_what_differs_is_listed_by_global_ranks_and_not_without_end(tmp_path):
    def check(group):
        last = distributed.new_group([1, 2, 3, 4, 5, 6])
        rank = distributed.get_rank()
        if rank:
            Processes(last).check_same({"same": "a", "some": str(rank // 4), "each": str(rank)})

    found = in_processes(7, tmp_path, check)
    assert len({str(error) for error in found[1:]}) == 1
    assert "some (0 on rank 1, 2, 3; 1 on rank 4, 5, 6), each (1 on rank 1; " in str(found[1])
    assert "4 on rank 4; ...): give" in str(found[1])


def test_a_process_outside_the_group_is_refused(tmp_path):
    def fit(group):
        others = distributed.new_group([0])
        if distributed.get_rank() == 1:
            DeepFisherNetwork(**QUICK).fit(IMAGES, LABELS, process_group=others)

    with pytest.raises(ValueError, match="the process of rank 1 is not in process_group"):
        raise in_processes(2, tmp_path, fit)[1]


class Failing:
    """Images of a disk that fails once it has been read from so often."""

    def __init__(self, reads):
        self.reads = reads

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        self.reads -= 1
        if self.reads < 0:
            raise OSError("the disk failed")
        return IMAGES[index]


def full(*arguments, **options):
    raise OSError("the disk is full")


def full_at_the_end(stage, done, total):
    if (stage, done) == ("classifier", total):
        full()


@pytest.mark.parametrize(
    ("failing", "broken", "message"),
    [
        (1, {"device": "nonsense"}, "device must be one of"),
        (1, {"images": Failing(18)}, "the disk failed"),
        (1, {"images": Failing(40)}, "the disk failed"),
        (0, {"workspace": "/dev/null/folder"}, "cannot use the workspace"),
        (0, {"replaced": (execution._Held, "write")}, "the disk is full"),
        (0, {"replaced": (classifier, "select_svm")}, "the disk is full"),
        (0, {"progress": full_at_the_end}, "the disk is full"),
    ],
    ids=["device", "checked image", "image of a later pass", "workspace", "rows", "classifier", "last report"],
)
def test_an_error_in_one_process_is_raised_in_all(failing, broken, message, tmp_path, monkeypatch):
    def fit(group):
        given = {"images": IMAGES, "progress": None} | (broken if distributed.get_rank() == failing else {})
        if "replaced" in given:
            monkeypatch.setattr(*given.pop("replaced"), full)
        images, progress = given.pop("images"), given.pop("progress")
        model = DeepFisherNetwork(**(QUICK | given))
        with pytest.raises(Exception, match=message) as raised:
            model.fit(images, LABELS, process_group=group, progress=progress)
        notes = getattr(raised.value, "__notes__", [])
        return repr(raised.value), [note for note in notes if "rank" in note], hasattr(model, "coef_")

    found = in_processes(2, tmp_path, fit)
    error, notes, _ = found[1 - failing]
    assert notes == [f"raised in the process of rank {failing}"]
    assert found[failing] == (error, [], False)
    assert not found[1 - failing][2]


def test_different_errors_at_once_are_the_first_everywhere(tmp_path):
    def fail(group):
        with Processes(group).together():
            raise (KeyError, IndexError)[distributed.get_rank()]("own")

    assert [type(error) for error in in_processes(2, tmp_path, fail)] == [KeyError, KeyError]


class Unsendable(Exception):
    """Pickle makes it with the wrong arguments."""

    def __init__(self, code, reason):
        super().__init__(f"{reason} ({code})")


def test_an_error_that_cannot_be_sent_is_described(tmp_path):
    def fail(group):
        processes = Processes(group)
        try:
            with processes.together():
                if processes.rank == 1:
                    raise Unsendable(5, "out of paper")
                processes.share("value")
        except Exception as error:
            return repr(error)

    described = "Unsendable('out of paper (5)')"
    assert in_processes(2, tmp_path, fail) == ["RuntimeError('Unsendable: out of paper (5)')", described]


def test_an_error_is_not_hidden_by_the_loss_of_the_others(tmp_path):
    def fail(group):
        left = distributed.new_group(timeout=timedelta(seconds=1))
        if distributed.get_rank() == 1:
            with Processes(left).together():
                raise KeyError("own")

    assert repr(in_processes(2, tmp_path, fail)[1]) == "KeyError('own')"


def test_an_interrupt_ends_its_process_without_a_word_to_the_others(tmp_path):
    def interrupt(group):
        started = time.perf_counter()
        if distributed.get_rank() == 1:
            with pytest.raises(KeyboardInterrupt), Processes(group).together():
                raise KeyboardInterrupt
        return time.perf_counter() - started

    assert max(in_processes(2, tmp_path, interrupt)) < IN_VAIN.total_seconds() / 2


def test_no_thread_goes_on_once_another_process_has_failed(tmp_path):
    images = ImageList(IMAGES)
    done = []

    def function(pixels, batch):
        if distributed.get_rank() == 1:
            raise KeyError("own")
        time.sleep(0.02)
        done.append(batch)

    def run(group):
        processes = Processes(group)
        pieces = images.batches(keys=list(range(len(images))))
        with pytest.raises(KeyError) as held, processes.together():
            list(Execution(n_jobs=2, processes=processes).map(function, images, pieces, "pass"))
        before = len(done)
        time.sleep(0.5)
        assert held.tb is not None
        return len(done) - before, before

    (more, before), _ = in_processes(2, tmp_path, run)
    assert more == 0
    assert 4 <= before < 20


def test_a_bad_image_is_named_by_every_process(tmp_path):
    images = [*IMAGES[:5], IMAGES[5] * np.nan]

    def check(group):
        processes = Processes(group)
        try:
            with processes.together():
                ImageList(images, each=Execution(processes=processes).each)
        except ValueError as error:
            return str(error)

    assert in_processes(2, tmp_path, check) == ["images[5] has NaN or infinite pixels"] * 2


def test_one_process_is_a_group_of_its_own():
    alone = Processes()
    assert (alone.size, alone.rank, alone.is_first) == (1, 0, True)
    assert alone.gather(3, everywhere=False) == [alone.share(3)] == [3]
    assert torch.equal(alone.sum(torch.ones(2)), torch.ones(2))
