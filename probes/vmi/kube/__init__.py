# SPDX-License-Identifier: Apache-2.0
"""Lists and watches the VMIs of this node at the API server. It knows nothing about processes."""
