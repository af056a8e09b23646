"""What people see of a command: progress bars on stderr, tables and sentences on stdout.

The commands use one ``show_*`` function each and :class:`.progress.RichProgress`. No function here computes a result or
knows an option.
"""
