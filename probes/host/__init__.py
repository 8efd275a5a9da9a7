"""What /proc, /sys and /dev say of this node and its processes."""
