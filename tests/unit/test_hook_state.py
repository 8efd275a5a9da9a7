# SPDX-License-Identifier: Apache-2.0
"""What is done with a hook after each change of its driver and of the need for it."""

import itertools

import pytest

from ebpf.hook_state import DriverState, Situation, Step, next_step

GONE = DriverState(device=False, module_inode=None)
IDLE = DriverState(device=False, module_inode=7)
"""KVM's module without its vendor module."""
LOADED = DriverState(device=True, module_inode=7)
RELOADED = DriverState(device=True, module_inode=8)


def situation(driver: DriverState, *, needed: bool) -> Situation:
    return Situation(driver=driver, needed=needed)


NEEDED = situation(LOADED, needed=True)
UNNEEDED = situation(LOADED, needed=False)


@pytest.mark.parametrize(
    ("before", "now", "step"),
    [
        (None, NEEDED, Step.ATTACH),
        (None, UNNEEDED, Step.NOT_NEEDED),
        (None, situation(GONE, needed=True), Step.DRIVER_GONE),
        (None, situation(GONE, needed=False), Step.DRIVER_GONE),
        (UNNEEDED, NEEDED, Step.ATTACH),
        (NEEDED, UNNEEDED, Step.NOT_NEEDED),
        # The driver goes and comes back, as another module or not, while the hook is needed.
        (NEEDED, situation(GONE, needed=True), Step.DRIVER_GONE),
        (NEEDED, situation(IDLE, needed=True), Step.DRIVER_GONE),
        (situation(IDLE, needed=True), NEEDED, Step.ATTACH),
        (situation(GONE, needed=True), situation(RELOADED, needed=True), Step.ATTACH),
        (NEEDED, situation(RELOADED, needed=True), Step.ATTACH),
        # The same while nothing needs the hook.
        (UNNEEDED, situation(GONE, needed=False), Step.DRIVER_GONE),
        (situation(GONE, needed=False), UNNEEDED, Step.NOT_NEEDED),
        (UNNEEDED, situation(RELOADED, needed=False), Step.NOT_NEEDED),
        # The need changes while the driver is gone.
        (situation(GONE, needed=True), situation(GONE, needed=False), Step.DRIVER_GONE),
        (situation(GONE, needed=False), situation(GONE, needed=True), Step.DRIVER_GONE),
        # Both change between two refreshes.
        (UNNEEDED, situation(GONE, needed=True), Step.DRIVER_GONE),
        (NEEDED, situation(GONE, needed=False), Step.DRIVER_GONE),
        (situation(GONE, needed=False), NEEDED, Step.ATTACH),
        (situation(GONE, needed=True), UNNEEDED, Step.NOT_NEEDED),
        (UNNEEDED, situation(RELOADED, needed=True), Step.ATTACH),
        (NEEDED, situation(RELOADED, needed=False), Step.NOT_NEEDED),
    ],
)
def test_step(before: Situation | None, now: Situation, step: Step) -> None:
    """A hook is attached if its driver is there and it is needed, and again after a reload."""
    assert next_step(before, now) is step


def test_without_a_change_nothing_is_done() -> None:
    """A hook in the same situation stays as it is, so a failed one is not tried again."""
    for driver, needed in itertools.product((GONE, IDLE, LOADED, RELOADED), (True, False)):
        now = situation(driver, needed=needed)
        assert next_step(now, now) is Step.KEEP


def test_the_past_decides_only_whether_there_is_a_change() -> None:
    """From every other situation the same one is reached by the same step."""
    every = [
        situation(driver, needed=needed)
        for driver, needed in itertools.product((GONE, IDLE, LOADED, RELOADED), (True, False))
    ]
    for now in every:
        steps = {next_step(before, now) for before in (None, *every) if before != now}
        assert len(steps) == 1
        assert (Step.ATTACH in steps) is (now.driver.device and now.needed)
