"""The search for a measured latency, step by step: networks that know their share of MACs, and clocks that are formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.latency_goal import check_latency, latency_in_words, reach_latency, read_latency


class Share(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share


class Search:
    """What was cut and measured on the way. clock: milliseconds by the share of MACs."""

    def __init__(self, clock: Callable[[float], float], latency: float | str, least: float = 0.1, most: float = 0.95) -> None:
        self.cut: list[float] = []
        self.measured: list[float] = []

        def measure(network: nn.Module) -> float:
            assert isinstance(network, Share) and not network.training
            self.measured.append(network.share)
            return clock(network.share)

        def cut(share: float) -> nn.Module:
            self.cut.append(share)
            return Share(share)

        self.found = reach_latency(latency, measure, Share(1.0), cut, least, most)


def line(share: float) -> float:
    return 10 + 90 * share


def test_the_first_try_is_the_goals_own_share() -> None:
    search = Search(lambda share: 100 * share, 0.6)
    assert search.found == (0.6, pytest.approx(0.6)) and search.measured == [1.0, 0.6] and search.cut == [0.6]
    search = Search(lambda share: 100 * share, "60ms")
    assert search.found == (0.6, pytest.approx(60)) and search.cut == [0.6]
    search = Search(lambda share: 101 * share, "60ms")  # 0.594 of 101 is 60.0 to the last digit
    assert search.found == (pytest.approx(60 / 101), pytest.approx(60))
    search = Search(lambda share: 100.9 * share if share < 1 else 100, "60ms")  # 60.54 is within a hundredth
    assert search.found == (0.6, pytest.approx(60.54)) and search.cut == [0.6]
    assert len(Search(lambda share: 50.5 if share < 1 else 100.0, "50ms").cut) == 1  # as is 50.5 of 50
    assert len(Search(lambda share: 101.1 * share if share < 1 else 100, "60ms").cut) > 1  # and 60.66 is not


def test_networks_may_take_less_than_a_millisecond_but_not_none() -> None:
    assert Search(lambda share: share, 0.6).found == (0.6, pytest.approx(0.6))
    for clock in (0.0, -1.0):
        with pytest.raises(StudyError, match=f"^measure must return milliseconds above 0, got {clock}"):
            Search(lambda share, clock=clock: clock, "1ms")


def test_the_line_between_two_measures_leads_and_stays_off_their_ends() -> None:
    # Goal 55. At 0.55 59.5; then the least, 0.1, 19. The line meets 55 at 36 / 40.5 of the way, of which 0.8 are taken: 0.46, 51.4.
    # Between 0.46 and 0.55 it meets 55 at 3.6 / 8.1: 0.5.
    search = Search(line, 0.55)
    assert search.cut == pytest.approx([0.55, 0.1, 0.46, 0.5]) and search.found == pytest.approx((0.5, 0.55))
    # A clock that jumps from 20 to 90 at one half. The line from 0.1 to 0.6 meets 54 after 34 / 70.
    search = Search(lambda share: 20.0 if share < 0.5 else 90.0, "54ms")
    assert search.cut[:3] == pytest.approx([0.6, 0.1, 0.1 + 34 / 70 * 0.5])
    search = Search(lambda share: 20.0 if share < 0.5 else 90.0, "24ms")
    # At 24 / 90 it takes 20. The line to the dense network's 90 meets 24 after 4 / 70, of which a fifth is made.
    assert search.cut[:2] == pytest.approx([24 / 90, 24 / 90 + 0.2 * (1 - 24 / 90)])


def test_after_ten_tries_the_nearest_counts_and_is_cut_again() -> None:
    search = Search(lambda share: 20.0 if share < 0.5 else 90.0, "40ms")
    assert len(search.measured) == 11 and len(search.cut) == 11
    assert search.cut[0] == search.cut[-1] == pytest.approx(40 / 90) and search.found == (search.cut[0], 20.0)
    assert search.cut[-2] != search.cut[0]


def test_the_dense_network_is_no_answer() -> None:
    search = Search(lambda share: 20.0 if share < 1 else 100.0, 0.95, most=0.9)
    assert search.found == (0.9, pytest.approx(0.2)) and search.cut == [0.9]


def test_what_only_the_least_that_can_be_left_comes_near_to() -> None:
    search = Search(line, 0.185)
    assert search.found == (0.1, pytest.approx(0.19)) and search.cut == [0.185, 0.1]  # 5 hundredths above the goal are 0.194
    assert Search(lambda share: 21.0 if share < 1 else 100.0, "20ms", least=0.2).found == (0.2, 21)  # and these are 21
    with pytest.raises(
        StudyError, match="latency=0.18 is not allowed; allowed: 0.190 and more: pruning these layers leaves no less"
    ):
        Search(line, 0.18)
    with pytest.raises(StudyError, match="latency='5ms' is not allowed; allowed: 19ms and more"):
        Search(line, "5ms")
    assert Search(line, "100ms").found == (0.95, pytest.approx(95.5))  # and the most


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, True, None, "12", "ms", "0ms", "0.0 ms", "-1ms", "1e3ms", "1 s", [0.5]])
def test_what_is_no_latency(value: object) -> None:
    with pytest.raises(ValueError, match="a share of the dense network's, above 0 and below 1, or milliseconds as a string"):
        read_latency(value)


def test_shares_and_milliseconds_and_what_belongs_together() -> None:
    assert [read_latency(value) for value in (0.5, "12.5ms", "12. ms", ".5ms")] == [0.5, "12.5ms", "12. ms", ".5ms"]
    assert latency_in_words("0.5") == 0.5 and latency_in_words("12.5 ms") == "12.5 ms"
    check_latency(None, None)
    check_latency(0.5, len)
    for pair, said in (((0.5, None), "latency without measure"), ((None, len), "measure without latency")):
        with pytest.raises(StudyError, match=f"^{said}: they belong together"):
            check_latency(*pair)
