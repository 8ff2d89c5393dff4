"""Pieces cover every entry once, in order, and threads of ours leave torch's number of threads alone."""

import itertools
import threading

import pytest
import torch

from evomerge.merging import chunks
from evomerge.merging.chunks import over_chunks


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 95])
def test_pieces_cover_everything_in_order(monkeypatch, size):
    monkeypatch.setattr(chunks, "CHUNK", 10)
    pieces = over_chunks(lambda start, stop: (start, stop), size)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == size
    assert all(first[1] == second[0] for first, second in itertools.pairwise(pieces))


def test_numbers_of_threads_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 10)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert set(over_chunks(lambda start, stop: torch.get_num_threads(), 100)) == {1}
        assert torch.get_num_threads() == 2
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [2]
        torch.set_num_threads(1)
        assert set(over_chunks(lambda start, stop: threading.current_thread(), 100)) == {threading.current_thread()}
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_piece_is_raised(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 10)
    with pytest.raises(ZeroDivisionError):
        over_chunks(lambda start, stop: 1 / (start - 50), 100)
