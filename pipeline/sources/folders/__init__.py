"""Image folders: layouts as patterns of path parts, and how the layout of a folder is recognised."""
