"""Schedules against the NFE column of MDGR Table 3, and parameters that are refused."""

import pytest

from service.decoding.schedule import Schedule

# (r_warm, m_par): steps. The NFE column of MDGR Table 3 for its seven schedules, then the extremes.
OF_EIGHT_POSITIONS = {
    (0, 1): (1, 1, 1, 1, 1, 1, 1, 1),
    (0, 2): (2, 2, 2, 2),
    (2, 2): (1, 1, 2, 2, 2),
    (4, 2): (1, 1, 1, 1, 2, 2),
    (6, 2): (1, 1, 1, 1, 1, 1, 2),
    (4, 3): (1, 1, 1, 1, 3, 1),
    (4, 4): (1, 1, 1, 1, 4),
    (0, 8): (8,),
    (1, 7): (1, 7),
    (8, 1): (1, 1, 1, 1, 1, 1, 1, 1),
    (8, 8): (1, 1, 1, 1, 1, 1, 1, 1),
    (7, 8): (1, 1, 1, 1, 1, 1, 1, 1),
}
MDGR_TABLE_3_STEPS = {(0, 1): 8, (0, 2): 4, (2, 2): 5, (4, 2): 6, (6, 2): 7, (4, 3): 6, (4, 4): 5}


@pytest.mark.parametrize(("r_warm", "m_par"), OF_EIGHT_POSITIONS)
def test_from_params(r_warm: int, m_par: int) -> None:
    schedule = Schedule.from_params(num_subspaces=8, r_warm=r_warm, m_par=m_par)
    assert schedule.steps == OF_EIGHT_POSITIONS[r_warm, m_par]
    assert schedule.num_subspaces == 8


@pytest.mark.parametrize(("params", "nfe"), MDGR_TABLE_3_STEPS.items())
def test_nfe_is_the_step_count_of_mdgr_table_3(params: tuple[int, int], nfe: int) -> None:
    r_warm, m_par = params
    assert Schedule.from_params(num_subspaces=8, r_warm=r_warm, m_par=m_par).nfe == nfe


def test_every_schedule_fills_every_position_once() -> None:
    for num_subspaces in range(1, 10):
        for r_warm in range(num_subspaces + 1):
            for m_par in range(1, num_subspaces + 1):
                schedule = Schedule.from_params(
                    num_subspaces=num_subspaces, r_warm=r_warm, m_par=m_par
                )
                assert schedule.num_subspaces == num_subspaces
                assert schedule.nfe == r_warm + -(-(num_subspaces - r_warm) // m_par)


@pytest.mark.parametrize(("r_warm", "m_par"), [(-1, 1), (9, 1), (0, 0), (0, 9), (4, -2)])
def test_params_out_of_bounds(r_warm: int, m_par: int) -> None:
    with pytest.raises(ValueError, match="must be between"):
        Schedule.from_params(num_subspaces=8, r_warm=r_warm, m_par=m_par)


@pytest.mark.parametrize("steps", [(), (0,), (2, 0, 1), (1, -1)])
def test_a_step_fills_at_least_one_position(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one position"):
        Schedule(steps)


def test_equal_schedules_are_one_key() -> None:
    by_params = {
        Schedule.from_params(num_subspaces=8, r_warm=8, m_par=1),
        Schedule.from_params(num_subspaces=8, r_warm=0, m_par=1),
    }
    assert by_params == {Schedule((1,) * 8)}
