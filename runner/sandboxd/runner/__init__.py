"""What runs in the zygote and in its children."""
