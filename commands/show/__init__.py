"""The human-readable output of the commands: progress bars on stderr, tables and summaries on stdout.

The commands use one ``show_*`` function each and :class:`.progress.RichProgress`. No function here computes a result or
knows an option.
"""
