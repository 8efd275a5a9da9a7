# SPDX-License-Identifier: Apache-2.0
"""What tests share: worlds, doubles, builders of facts. The only place for it."""
