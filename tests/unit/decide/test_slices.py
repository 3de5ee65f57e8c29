"""How large slices are, and what goes back."""

from hypothesis import given
from hypothesis import strategies as st

from llmbudget.decide.slices import UNCAPPED, slice_size, to_give_back

AMOUNTS = st.integers(0, 2**61)
REGIONS = st.integers(1, 16)


def test_a_share_of_what_is_left_goes_to_each_region() -> None:
    assert slice_size(1, 16_000, 4) == 1_000


def test_a_call_that_asks_for_more_than_a_share_gets_it() -> None:
    assert slice_size(2_000, 16_000, 4) == 2_000


def test_near_the_end_each_call_gets_its_own_bound() -> None:
    assert [slice_size(10, left, 4) for left in (100, 50, 10)] == [10, 10, 10]


def test_a_slice_without_any_cap_is_large_enough_for_the_call() -> None:
    assert slice_size(5, None, 4) == UNCAPPED
    assert slice_size(2 * UNCAPPED, None, 4) == 2 * UNCAPPED


@given(asked=AMOUNTS, left=AMOUNTS, regions=REGIONS)
def test_no_slice_is_more_than_what_is_left(asked, left, regions) -> None:
    size = slice_size(asked, left, regions)
    assert 0 <= size <= left
    assert size >= min(asked, left)


@given(left=st.integers(10**9, 2**61), regions=REGIONS)
def test_when_all_regions_ask_at_once_three_quarters_stay(left, regions) -> None:
    rest = left
    for _ in range(regions):
        rest -= slice_size(1, rest, regions)
    assert rest >= left * 3 // 4


@given(unused=AMOUNTS, left=AMOUNTS, recent=AMOUNTS, regions=REGIONS)
def test_nothing_goes_back_that_is_not_there_or_was_just_needed(
    unused, left, recent, regions
) -> None:
    back = to_give_back(unused, left, recent, regions)
    assert 0 <= back <= unused
    assert back == 0 or unused - back >= recent


@given(asked=AMOUNTS, left=AMOUNTS, regions=REGIONS)
def test_a_slice_does_not_go_back_as_soon_as_it_is_there(asked, left, regions) -> None:
    size = slice_size(0, left, regions)
    assert to_give_back(size, left - size, 0, regions) == 0


def test_idle_regions_let_go_when_nothing_is_left_for_others() -> None:
    unused = [1_000, 1_000, 1_000]
    left = 0
    for _ in range(8):
        for region, mine in enumerate(unused):
            back = to_give_back(mine, left, 0, 4)
            unused[region] -= back
            back and (left := left + back)
        left -= slice_size(left, left, 4)  # Another one takes it.
    assert sum(unused) <= 3


def test_near_the_end_every_rest_goes_back() -> None:
    assert to_give_back(33, 0, recent=1_000, regions=3, largest=100) == 33


def test_without_a_cap_nothing_needs_to_go_back() -> None:
    assert to_give_back(UNCAPPED, None, 0, 4) == 0
