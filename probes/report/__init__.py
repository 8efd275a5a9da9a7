"""The one report of this node, from which every output is made."""
