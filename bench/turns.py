# SPDX-License-Identifier: Apache-2.0
"""Programs measured in turns, so that machine, frequency and neighbours are the same for all. Pure.

A sample of each every round; what is told of one is its difference from another of the same round.
"""

from collections.abc import Callable, Sequence

Samples = dict[str, list[float]]
"""By name, in the order of the rounds."""


def take_turns(names: Sequence[str], cost: Callable[[str], float], rounds: int) -> Samples:
    """A sample of each name a round; who is first moves on by one each round."""
    samples: Samples = {name: [] for name in names}
    for number in range(rounds):
        at = number % len(names)
        for name in (*names[at:], *names[:at]):
            samples[name].append(cost(name))
    return samples


def over(samples: Samples, name: str, base: str) -> list[float]:
    """What one costs over another, round by round."""
    return [mine - its for mine, its in zip(samples[name], samples[base], strict=True)]
