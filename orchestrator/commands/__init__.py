"""What each command of the command line does, a file for each group. Imported when called."""
