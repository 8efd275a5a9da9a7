# SPDX-License-Identifier: Apache-2.0
"""Holds what the user of the live view has chosen: order, filter, pause, details. Pure.

Must not know the keys that choose, nor what is drawn.
"""

from dataclasses import dataclass, replace

from probes.render.live.rows import Order

FILTER_MAX = 60
"""The most characters of a filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewState:
    """The state of the view."""

    order: Order = Order.SEVERITY
    words: str = ""
    """The filter; empty: everything is shown."""
    paused: bool = False
    details: bool = True
    """Whether rows are followed by why they are emulated, and by what KVM's statistics say."""

    def sorted_by(self, order: Order) -> "ViewState":
        """Return the view in an order, or by severity if it is in that order already."""
        return replace(self, order=Order.SEVERITY if self.order is order else order)
