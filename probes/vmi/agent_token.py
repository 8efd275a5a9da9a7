# SPDX-License-Identifier: Apache-2.0
"""Names what a client behind the pod proxy shows an agent that wants a token. Pure data.

The API server removes the Authorization header of a request once it has authenticated the user, so
the token travels in a header of our own. It is never the user's own token, because an agent, or a
pod that pretends to be one, could act as the user with it. It is the token of a service account
that may only read agents, made for a few minutes and for an audience that is no API server's.
"""

AGENT_HEADER = "X-Hvprobe-Token"
"""Its value is the token alone."""
AGENT_AUDIENCE = "hvprobe"
"""The audience that an agent must ask for in a TokenReview of such a token."""
AGENT_TOKEN_S = 600
"""How long such a token is valid: the shortest time that the API server grants."""
