# SPDX-License-Identifier: Apache-2.0
"""From kernel facts to a named VMI, and out: metrics, live view, JSON, page."""
